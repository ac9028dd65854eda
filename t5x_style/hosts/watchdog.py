"""A watch over the main thread: what it does, since when, and whether that is too long.

A main thread can wait for ever: for a file system that does not answer, for a lock, for a
collective in which another process never takes part. It cannot notice that by itself. The ledger
says in which phase it is, and a thread compares the time in it with a limit.
"""

import collections
import contextlib
import dataclasses
import faulthandler
import math
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NoReturn

import gin

from t5x_style.errors import StartAgain, exit_status
from t5x_style.hosts.backstop import STANDARD_ERROR, Backstop
from t5x_style.ranges import PositiveFloat, PositiveInt, check_ranges

# Before the ledger, which goes on with its own phases.
BEGINNING, BUILDING = "start", "build"
# A save may wait for a slow disk, and has a limit of its own.
IRREGULAR = ("compile", "restore", "save")
# A phase that was passed so often has a usual time: the median of the last ones.
ENOUGH, REMEMBERED = 5, 100
# How long an ending process may take to write its event, and to flush its output.
LAST_WORDS_SECONDS = 5.0
# So many processes in the same phase are named, with their hosts.
NAMED = 4


@dataclasses.dataclass(frozen=True)
class Activity:
    """What a main thread does.

    Attributes:
      phase: a cause of the ledger.
      step: number of steps done.
      seconds: in this phase, without those in which the process was stopped.
      limit: how many are too many.
    """

    phase: str
    step: int
    seconds: float
    limit: float

    @property
    def hangs(self) -> bool:
        """Whether it is too long in its phase."""
        return self.seconds > self.limit

    def __str__(self):
        return f"in {self.phase!r} at step {self.step:,} for {self.seconds:.0f} s"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Watchdog:
    """When a run hangs, so that it dumps its stacks and exits with status 75, "start me again".

    A phase is what the ledger books seconds on: data, step, evaluate, save ... A process hangs if
    it is in one for longer than the limit. A run hangs if all of its processes do: one that waits
    for another one's long save is no reason to end.

    Attributes:
      min_seconds: the least limit of a phase.
      medians: how many times its median so far a phase may take, if that is longer.
      first_seconds: the limit of what has no usual time: the start, compilations, restoring, saves,
        and the first few of any other phase. Nothing limits the building of stores: it may take
        days.
    """

    min_seconds: PositiveFloat = 60.0
    medians: PositiveInt = 10
    first_seconds: PositiveFloat = 7200.0

    def __post_init__(self):
        check_ranges(self)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """End this process, from another thread, if its main thread hangs in the block.

        In a run of several processes, `Lifeline` ends all of them once all of them hang.
        """
        global _watch
        _watch = _Watch(self)
        try:
            yield
        finally:
            _watch.close()
            _watch = None


class _Watch:
    """The main thread says what it does; another thread counts the time."""

    def __init__(self, limits: Watchdog):
        self._limits = limits
        # Seconds of this process, without those in which it was stopped.
        self._clock = 0.0
        # Phase, steps done, and time of the clock when it began: replaced as one.
        self._mark = (BEGINNING, 0, 0.0)
        self._began = time.perf_counter()
        self._spent: dict[str, float] = {}  # in each phase since the last step
        self._past: dict[str, collections.deque[float]] = {}
        self.alone = True
        self.write: Callable[[str, int, str], None] = lambda kind, step, reason: None
        self._backstop = Backstop()
        self._put_off_backstop()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._count, name="watchdog", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()
        self._backstop.cancel()

    def enter(self, phase: str) -> None:
        now = time.perf_counter()
        before, step, _ = self._mark
        self._spent[before] = self._spent.get(before, 0.0) + now - self._began
        self._began = now
        self._mark = (phase, step, self._clock)

    def pass_step(self, step: int) -> None:
        for phase, seconds in self._spent.items():
            past = self._past.setdefault(phase, collections.deque(maxlen=REMEMBERED))
            past.append(seconds)
        self._spent.clear()
        phase, _, since = self._mark
        self._mark = (phase, step, since)

    def activity(self) -> Activity:
        phase, step, since = self._mark
        return Activity(phase, step, self._clock - since, self._limit(phase))

    def _limit(self, phase: str) -> float:
        if phase == BUILDING:
            return math.inf
        past = list(self._past.get(phase, ()))
        if phase in IRREGULAR or len(past) < ENOUGH:
            return self._limits.first_seconds
        return max(self._limits.min_seconds, self._limits.medians * statistics.median(past))

    def _count(self) -> None:
        pause = self._limits.min_seconds / 60
        last = time.monotonic()
        while not self._closed.wait(pause):
            now = time.monotonic()
            self._clock += min(now - last, 5 * pause)
            last = now
            activity = self.activity()
            if self.alone and activity.hangs:
                reason = f"the run hangs: its main thread is {activity}"
                error = StartAgain(f"{reason}: start it again")
                # Even if nobody reads standard error, and the stacks are never through.
                self._backstop.put_off(self._limits.min_seconds)
                tell_hang(error, write=True)
                end_process(error)
            self._put_off_backstop()

    def _put_off_backstop(self) -> None:
        # A process that is stopped for longer does not survive it. The others of several do not
        # wait so long for it; one alone may have been stopped by its user.
        limits = self._limits
        self._backstop.put_off(limits.first_seconds if self.alone else limits.min_seconds)


# A process has one main thread.
_watch: _Watch | None = None


def enter_phase(phase: str) -> None:
    """The main thread is in another phase; the ledger says so."""
    if _watch is not None:
        _watch.enter(phase)


@contextlib.contextmanager
def building() -> Iterator[None]:
    """The main thread builds token stores in the block, or waits for who does."""
    enter_phase(BUILDING)
    try:
        yield
    finally:
        enter_phase(BEGINNING)


def pass_step(step: int) -> None:
    """The main thread has done so many steps."""
    if _watch is not None:
        _watch.pass_step(step)


def write_ends_by(write: Callable[[str, int, str], None]) -> None:
    """Who writes the event of a hang, or of another process's failure.

    Args:
      write: a function of the event's kind, step and reason, called in any thread.
    """
    if _watch is not None:
        _watch.write = write


def activity_of_several() -> Activity | None:
    """What the main thread does, if it is watched. From the first call on, the caller ends it."""
    if _watch is None:
        return None
    _watch.alone = False
    return _watch.activity()


def hang_reason(activities: Mapping[str, Activity]) -> str:
    """What the main thread of each process does, first those that are the furthest behind.

    Args:
      activities: by process, in words.
    """
    groups: dict[tuple[int, str], list[str]] = {}
    for who, activity in activities.items():
        groups.setdefault((activity.step, activity.phase), []).append(who)
    parts = []
    for _, group in sorted(groups.items()):
        longest = max((activities[who] for who in group), key=lambda activity: activity.seconds)
        who = ", ".join(group) if len(group) <= NAMED else f"{len(group):,} processes"
        parts.append(f"{who} {longest}")
    return f"the run hangs: {'; '.join(parts)}"


def tell_hang(error: Exception, *, write: bool) -> None:
    """Dump the stacks of all threads to standard error, and write the event of a hang.

    Args:
      write: whether this process writes the event.
    """
    faulthandler.dump_traceback(STANDARD_ERROR)
    if write:
        write_event("hung", str(error))


def write_event(kind: str, reason: str) -> None:
    """Write the event of an end that the main thread may never hear of, from any thread."""
    if _watch is not None:
        watch = _watch
        _try_for_seconds(lambda: watch.write(kind, watch.activity().step, reason))


def end_process(error: Exception) -> NoReturn:
    """End this process with the status of `error`, from any thread."""
    _try_for_seconds(sys.stdout.flush)
    os.write(STANDARD_ERROR, f"error: {error}\n".encode())
    os._exit(exit_status(error))


def _try_for_seconds(function: Callable[[], object]) -> None:
    """The main thread may hold the lock that `function` needs, or wait for the same disk."""

    def run() -> None:
        with contextlib.suppress(Exception):
            function()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LAST_WORDS_SECONDS)
