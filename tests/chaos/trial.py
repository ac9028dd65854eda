"""One fault, and what must hold after it.

A `Kind` is a promise in words, the facts of it that can be looked up, and the function that brings
the fault. A `Trial` is one such fault with its own draws and folder. What every fault must leave as
it was is checked for all of them, in `Life.end` and `Trial.conclude`.
"""

import collections
import contextlib
import ctypes
import dataclasses
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from tests.chaos import hooks as hooks_of
from tests.chaos.home import SAVE_PERIOD, STEPS, make_home, train_arguments
from tests.chaos.lives import END_SECONDS, Life, Slots, last_lines
from tests.chaos.records import Broken, check, checkpoints, curve, difference, events, read_lines
from tests.hosts.test_lifeline import free_port

# How far the curves of one and of several processes are apart, relatively.
APART = 8e-8
# Names of what is being written, and must not be left over.
UNFINISHED = re.compile(r"tmp|\.part$|\.writing|\.building", re.IGNORECASE)
AGAIN = 75
PREEMPTED = 143


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of fault, and its promise.

    Attributes:
      name: as in the report. group: of similar kinds.
      bring: brings the fault in a trial, and follows the run to its end. Its docstring is the
        promise in words.
      ends: the exit statuses that the process may have in which the fault happens.
      tells: kinds of events of which one must be in events.jsonl, one of each tuple.
      repeats: the most steps that are computed a second time.
      curve: whether the curve must be that of an undisturbed run, bit for bit.
      processes: of the run.
    """

    name: str
    group: str
    bring: Callable[["Trial"], None]
    ends: tuple[int, ...] = (0,)
    tells: tuple[tuple[str, ...], ...] = ()
    repeats: int = 2 * SAVE_PERIOD
    curve: bool = True
    processes: int = 1

    @property
    def promise(self) -> str:
        return " ".join((self.bring.__doc__ or "").split())


KINDS: dict[str, Kind] = {}


def kind(name: str, group: str, **promise: Any) -> Callable[[Callable], Callable]:
    """Adds the function below to KINDS; the arguments are fields of `Kind`."""

    def add(bring: Callable[["Trial"], None]) -> Callable[["Trial"], None]:
        KINDS[name] = Kind(name, group, bring, **promise)
        return bring

    return add


# ---- Trials --------------------------------------------------------------------------------------


def own_mounts() -> bool:
    """Gives this process and its later children their own table of mounts; False if it may not."""
    only_mounts = 0x00020000  # CLONE_NEWNS
    if ctypes.CDLL(None).unshare(only_mounts):
        return False
    return subprocess.run(["mount", "--make-rprivate", "/"], check=False).returncode == 0


class Lab:
    """What the trials share: the home of the trainings, and runs that no fault has hit."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.home = folder, folder / "home"
        self.slots = Slots(2)
        self.may_mount = own_mounts()
        self._made: dict[str, pathlib.Path] = {}
        self._locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)
        make_home(self.home)

    def run(self, name: str, make: Callable[["Trial"], None]) -> pathlib.Path:
        """The folder of a run that is made once; nobody changes it."""
        with self._locks[name]:
            if name not in self._made:
                quiet = Kind(name, "undisturbed", make)
                trial = Trial(self, quiet, self.folder / name, random.Random(name))
                make(trial)
                self._made[name] = trial.model_dir
        return self._made[name]

    def base(self, processes: int = 1) -> pathlib.Path:
        """The undisturbed run of so many processes."""

        def make(trial: Trial) -> None:
            for one in trial.start_all(processes):
                check(one.end() == 0, f"the undisturbed run fails:\n{last_lines(one.errors())}")

        return self.run(f"base_{processes}", make)

    def stopped(self) -> pathlib.Path:
        """A run that was asked to leave at step STOPPED, and has saved."""

        def make(trial: Trial) -> None:
            life = trial.start(trial.hold("data", STOPPED))
            life.reaches("data")
            life.signal(signal.SIGTERM)
            life.release("data")
            check(life.end() == PREEMPTED, f"SIGTERM fails:\n{last_lines(life.errors())}")

        return self.run("stopped", make)


STOPPED = 22


class Trial:
    """One fault.

    Attributes:
      random: for all draws. model_dir: of its run.
      cache_dir: of its token stores, those of all trials unless it takes its own.
      hooks, bindings: of every process of the trial.
      trusted: the whole checkpoints to resume from; those that are there if None.
      struck: the time of the fault. reached: the step that was done then.
      repeated: steps that were computed again. notes: of what was drawn, for the report.
    """

    def __init__(self, lab: Lab, kind: Kind, folder: pathlib.Path, drawn: random.Random):
        self.lab, self.kind, self.random = lab, kind, drawn
        self.model_dir, self.held = folder / "run", folder / "held"
        self.held.mkdir(parents=True)
        self.cache_dir = lab.home / "stores"
        self.struck, self.reached, self.repeated = 0.0, 0, 0
        self.notes: list[str] = []
        self.lives: list[Life] = []
        self.hooks: tuple[hooks_of.Hook, ...] = ()
        self.bindings: dict[str, object] = {}
        self.trusted: dict[int, pathlib.Path] | None = None
        self._disk: pathlib.Path | None = None

    def hold(self, place: str, at: int = 0) -> hooks_of.Hook:
        """The hook `hold` of this trial."""
        self.notes.append(f"{place} {at}")
        return hooks_of.hold(place, at, str(self.held))

    def step(self, first: int = SAVE_PERIOD + 1, last: int = STEPS - 6) -> int:
        """Draws a step, which is noted."""
        return self.random.randint(first, last)

    def start(self, *hooks: hooks_of.Hook, **bindings: object) -> Life:
        """Start the training in one process."""
        return self.start_all(1, hooks, **bindings)[0]

    def start_all(
        self, processes: int, *hooks: tuple[hooks_of.Hook, ...], **bindings: object
    ) -> list[Life]:
        """Start the training, each process with its own hooks."""
        if processes == 1:
            return [self._life(hooks[0] if hooks else (), bindings)]
        port = free_port()
        each = (*hooks, *[()] * (processes - len(hooks)))
        return [
            self.start_one(index, processes, port, *hook, **bindings)
            for index, hook in enumerate(each)
        ]

    def start_one(
        self, index: int, processes: int, port: int, *hooks: hooks_of.Hook, **bindings: object
    ) -> Life:
        """Start one of several processes, which meet at a port of this machine."""
        place = {
            "Topology__fsdp": processes, "Hosts__coordinator": f"localhost:{port}",
            "Hosts__processes": processes, "Hosts__index": index,
        }  # fmt: skip
        return self._life(hooks, {**bindings, **place})

    def _life(self, hooks: tuple[hooks_of.Hook, ...], bindings: dict[str, object]) -> Life:
        own = {"CACHE_DIR": f"'{self.cache_dir}'", **self.bindings, **bindings}
        arguments = train_arguments(self.lab.home, self.model_dir, **own)
        life = Life(arguments, (*self.hooks, *hooks), self.held)
        self.lives.append(life)
        return life

    def copy(self, run: pathlib.Path) -> None:
        """Begin with a copy of a run."""
        shutil.copytree(run, self.model_dir, symlinks=True)

    def strike(self, reached: int | None = None) -> None:
        """Note the time of the fault, and the step that was done by then."""
        losses = curve(self.model_dir)[0]
        self.struck = time.time()
        self.reached = max(losses, default=0) if reached is None else reached

    def idle(self) -> contextlib.AbstractContextManager[None]:
        """All processes of this trial sleep in the block; others may run meanwhile."""
        return self.lab.slots.lent(self.kind.processes)

    def ends(self, *lives: Life, seconds: float = END_SECONDS, look: bool = True) -> None:
        """The processes with the fault end, as the kind promises."""
        for life in lives:
            status = life.end(seconds)
            wanted = " or ".join(map(str, self.kind.ends))
            check(
                status in self.kind.ends,
                f"exit status {status}, not {wanted}:\n{last_lines(life.errors())}",
            )
        if look:
            self.look()

    def look(self) -> None:
        """The newest event `saved` has its checkpoint."""
        saved = [event["step"] for event in events(self.model_dir, "saved")]
        if saved:
            there = sorted(checkpoints(self.model_dir))
            check(
                saved[-1] in there,
                f"the event says that step {saved[-1]} is saved; whole are {there}",
            )

    def finish(self, **bindings: object) -> None:
        """Start again, without a fault, until the run is finished; then `conclude`.

        The newest whole checkpoint, or of those that are `trusted`, is what it resumes from.
        """
        whole = checkpoints(self.model_dir) if self.trusted is None else self.trusted
        newest = max(whole, default=None)
        reached = max(self.reached, max(curve(self.model_dir)[0], default=0))
        known = len(events(self.model_dir, "resumed"))
        lives = self.start_all(self.kind.processes, **bindings)
        for life in lives:
            status = life.end()
            check(
                status == 0,
                f"started again, it ends with {status}:\n{last_lines(life.errors())}",
            )
        resumed = [event["step"] for event in events(self.model_dir, "resumed")[known:]]
        if newest is None:
            check(not resumed, f"resumed from {resumed}, with nothing whole to resume from")
        else:
            check(
                resumed == [newest],
                f"resumed from {resumed or 'nothing'}, the newest whole is of step {newest}",
            )
        self.repeated += max(0, reached - (newest or 0))
        self.reached = reached
        self.conclude()

    def conclude(self, base: pathlib.Path | None = None) -> None:
        """What holds at the end of the run, whatever the fault was."""
        self.look()
        check(events(self.model_dir, "finished"), "no event says that the run is finished")
        for choice in self.kind.tells:
            check(
                events(self.model_dir, *choice),
                f"no event {' or '.join(choice)}: {dict(self.kinds_of_events())}",
            )
        check(
            self.repeated <= self.kind.repeats,
            f"{self.repeated} steps computed again, {self.kind.repeats} are promised",
        )
        left = [path.name for path in self.model_dir.iterdir() if UNFINISHED.search(path.name)]
        check(not left, f"left over: {left}")
        if self.kind.curve:
            undisturbed = base or self.lab.base(self.kind.processes)
            if found := difference(self.model_dir, undisturbed, STEPS):
                raise Broken(f"not the undisturbed curve: {found}")

    def kinds_of_events(self) -> collections.Counter:
        """How many events of each kind there are."""
        return collections.Counter(event["event"] for event in events(self.model_dir))

    def recovery_seconds(self) -> float | None:
        """From the fault until the first step that had not been done before; None if not known."""
        times = [
            line["time"]
            for line in read_lines(self.model_dir / "metrics.jsonl")
            if line.get("step", 0) > self.reached and line.get("time", 0) > self.struck > 0
        ]
        return min(times) - self.struck if times else None

    def own_disk(self, megabytes: int) -> bool:
        """Let the run have a disk of its own; False if this machine or user may not mount one."""
        if not self.lab.may_mount:
            return False
        disk = self.model_dir.parent / "disk"
        disk.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={megabytes}m"]
        subprocess.run(["mount", *options, "tmpfs", disk], check=True)
        self._disk, self.model_dir = disk, disk / "run"
        return True

    @contextlib.contextmanager
    def locked(self, folder: pathlib.Path) -> Iterator[None]:
        """Nothing can be made in a folder or removed from it, not even by root."""
        if os.geteuid() == 0:
            lock, free = ["chattr", "+i", folder], ["chattr", "-i", folder]
        else:
            lock, free = ["chmod", "a-w", folder], ["chmod", "u+w", folder]
        subprocess.run(lock, check=True)
        try:
            yield
        finally:
            subprocess.run(free, check=True)

    def close(self) -> None:
        """End every process, leave what it has printed, and give the disk back."""
        for number, life in enumerate(self.lives):
            life.kill_all()
            (self.held.parent / f"printed_{number}.txt").write_text(life.errors())
        if self._disk:
            subprocess.run(["umount", "-l", self._disk], check=False)
