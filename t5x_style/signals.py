"""Signals that ask a run to leave: SIGTERM, SIGHUP and the first SIGINT.

In its steps a run saves and leaves when it is asked. Before them it leaves at once. A second SIGINT
ends the process at once, whatever it does. A signal that the process ignored at its start stays
ignored: `nohup` ignores SIGHUP, and a shell's `&` ignores SIGINT.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator

from t5x_style.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, NothingToSave

ASKING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# How long the main thread may take to leave where there is nothing to save. In compiled code it
# hears no signal, so another thread then ends the process.
LEAVE_SECONDS = 5.0


class _Requests:
    """What this process was asked.

    Attributes:
      name: of the signal that asked first; None before.
      kept: whether the steps ask for it. Otherwise it is raised as NothingToSave.
      when: in which part of the run it would be raised.
      pass_on: called with the name of a signal that is kept; None: nobody else hears of it.
      record: called with the last line of a process that leaves; None: nobody writes it down.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.kept = False
        self.when = "before the first step"
        self.pass_on: Callable[[str], None] | None = None
        self.record: Callable[[str], None] | None = None
        self._interrupts = 0
        self._handled = False

    def __call__(self, number: int, _: object) -> None:
        """The handler, in the main thread between two instructions of Python."""
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            _leave_at_once()
        # `watch` may have read the number first, and set the name.
        again, self._handled = self._handled, True
        self.name = self.name or signal.Signals(number).name
        if not self.kept:
            if not again:  # while it leaves, it need not be asked again
                raise NothingToSave(self.message())
            return
        if not again and number == signal.SIGINT:
            _print("interrupted: the run saves and leaves; Ctrl-C again leaves at once")
        if self.pass_on is not None:
            self.pass_on(self.name)

    def message(self) -> str:
        """The last line of a process that leaves and has nothing to save."""
        return f"signal {self.name} {self.when}: nothing to save, start again"

    def watch(self, pipe: int) -> None:
        """Read the numbers of signals as they come, also while the main thread is in compiled code.

        Args:
          pipe: its other end closes when nobody asks any more.
        """
        interrupts = 0
        deadline: float | None = None
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([pipe], [], [], left)[0]:
                if not self.kept:
                    if self.record is not None:
                        self.record(self.message())
                    _print(f"preempted: {self.message()}")
                    os._exit(EXIT_PREEMPTED)
                deadline = None
                continue
            numbers = os.read(pipe, 64)
            if not numbers:
                return
            interrupts += numbers.count(signal.SIGINT)
            if interrupts > 1:
                _leave_at_once()
            asked = [number for number in numbers if number in ASKING]
            if asked and not self.kept:
                self.name = self.name or signal.Signals(asked[0]).name
                deadline = deadline or time.monotonic() + LEAVE_SECONDS


_requests: _Requests | None = None


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Let signals ask this process to leave, until the block ends.

    A block inside of another one changes nothing, nor does one outside of the main thread, which
    alone may have handlers.

    Raises:
      NothingToSave: in the main thread, when a signal asks outside of `requests_kept`.
    """
    global _requests
    if _requests is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    requests = _requests = _Requests()
    out, into = os.pipe()
    os.set_blocking(into, False)
    before = {
        number: signal.signal(number, requests)
        for number in ASKING
        if signal.getsignal(number) != signal.SIG_IGN
    }
    descriptor_before = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    thread = threading.Thread(target=requests.watch, args=(out,), name="signals", daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(descriptor_before)
        for number, handler in before.items():
            signal.signal(number, handler)
        _requests = None
        os.close(into)
        thread.join()
        os.close(out)


@contextlib.contextmanager
def requests_kept(
    pass_on: Callable[[str], None] | None = None,
) -> Iterator[Callable[[], str | None]]:
    """Keep requests to leave for who asks for them, until the block ends.

    Args:
      pass_on: called with the name of each signal that asks.

    Yields:
      A function that returns the name of the signal that asked first, None if none did.
    """
    with heard():
        requests = _requests
        if requests is None:  # outside of the main thread
            yield lambda: None
            return
        requests.pass_on, requests.kept = pass_on, True
        try:
            yield lambda: requests.name
        finally:
            requests.pass_on, requests.kept = None, False
            requests.when = "after the last step"


@contextlib.contextmanager
def recorded(record: Callable[[str], None]) -> Iterator[None]:
    """Write down that the block was left for a signal.

    Args:
      record: called once with the reason. If the main thread is in compiled code, another calls it,
        and ends the process then.
    """
    if _requests is not None:
        _requests.record = record
    try:
        yield
    except NothingToSave as left:
        record(str(left))
        raise
    finally:
        if _requests is not None:
            _requests.record = None


def _leave_at_once() -> None:
    _print("interrupted again: leaves at once, and saves nothing more")
    os._exit(EXIT_INTERRUPTED)


def _print(line: str) -> None:
    """To standard error, without the locks of its stream, which the main thread may hold."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())
