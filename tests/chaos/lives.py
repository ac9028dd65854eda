"""Processes of a run that can be held, signalled and waited for."""

import contextlib
import json
import os
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

from tests import warm
from tests.chaos.hooks import Hook
from tests.chaos.records import Broken, check
from tests.conftest import WITHOUT_PROGRAM_CACHE, xla_flags

END_SECONDS = 240.0
START = "import sys; from tests.chaos.hooks import main; sys.exit(main(*sys.argv[1:]))"
# `multiprocessing` looks at all its children whenever one starts: one thread at a time.
_starts = threading.Lock()


class Life:
    """One process of a run, from its start to its end.

    `held` is the folder of the files that hold it.
    """

    def __init__(self, arguments: list[str], hooks: tuple[Hook, ...], held: pathlib.Path):
        environment = {**os.environ, **WITHOUT_PROGRAM_CACHE, "XLA_FLAGS": xla_flags(1)}
        self._held = held
        program = ["-c", START, json.dumps(hooks), *arguments]
        with _starts:
            self._child = warm.start(program, env=environment)
        self.pid = self._child.pid

    def poll(self) -> int | None:
        """The exit status, or None."""
        with _starts:
            return self._child.poll()

    def errors(self) -> str:
        """What it has written to standard error."""
        return self._child.output_so_far()[1]

    def wait(
        self, condition: Callable[[], object], what: str, seconds: float = END_SECONDS
    ) -> None:
        """Returns when the condition holds.

        Raises:
          Broken: the process has ended before, or it lasts too long.
        """
        deadline = time.monotonic() + END_SECONDS
        while not condition():
            ended = self.poll()
            check(ended is None, f"ended with {ended} before {what}:\n{last_lines(self.errors())}")
            check(time.monotonic() < deadline, f"{what} did not come in {END_SECONDS:.0f} s")
            time.sleep(0.005)

    def reaches(self, place: str) -> None:
        """Returns when the process is held at a place (see `hold`)."""
        self.wait((self._held / place).exists, place)

    def release(self, place: str) -> None:
        """Lets a held process go on."""
        (self._held / place).unlink(missing_ok=True)

    def signal(self, number: int) -> None:
        """Send a signal."""
        self._child.send_signal(number)

    def end(self, seconds: float = END_SECONDS) -> int:
        """The exit status, negative after a signal that killed it.

        Raises:
          Broken: it does not end, or a process that it started outlives it.
        """
        deadline = time.monotonic() + seconds
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                self.kill_all()
                raise Broken(f"it did not end in {seconds:.0f} s:\n{last_lines(self.errors())}")
            time.sleep(0.005)
        grace = time.monotonic() + 2.0
        while (left := processes_of(self.pid)) and time.monotonic() < grace:
            time.sleep(0.02)
        self.kill_all()
        check(not left, f"processes {left} are left after the end")
        return status

    def kill_all(self) -> None:
        """Kill it, and what it has started; returns when none is left."""
        # Once it has ended, its number may be another process's.
        while pids := {*processes_of(self.pid), *([self.pid] if self.poll() is None else ())}:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.005)


def last_lines(text: str, count: int = 4) -> str:
    """The last lines of a text, indented."""
    return "\n".join(f"      {line[:300]}" for line in text.strip().splitlines()[-count:])


class Slots:
    """So many processes may use the processor at a time."""

    def __init__(self, count: int):
        self._left, self._changed = count, threading.Condition()
        # Who waits for two is not passed by those that need one.
        self._turn = threading.Lock()

    @contextlib.contextmanager
    def taken(self, count: int) -> Iterator[None]:
        """Waits for `count` of them, for the duration of the block."""
        self._take(count)
        try:
            yield
        finally:
            self._give(count)

    @contextlib.contextmanager
    def lent(self, count: int) -> Iterator[None]:
        """Others may use them during the block: all in it sleep."""
        self._give(count)
        try:
            yield
        finally:
            self._take(count)

    def _take(self, count: int) -> None:
        with self._turn, self._changed:
            self._changed.wait_for(lambda: self._left >= count)
            self._left -= count

    def _give(self, count: int) -> None:
        with self._changed:
            self._left += count
            self._changed.notify_all()


def processes_of(session: int) -> list[int]:
    """The processes of a session that are alive."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, number, *_ = path.read_text().rpartition(")")[2].split()
            if int(number) == session and state not in "ZX":
                found.append(int(path.parent.name))
    return found
