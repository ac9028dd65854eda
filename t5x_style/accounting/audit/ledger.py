"""Where the seconds of a run went, by cause, over all of its restarts."""

import time
from collections.abc import Callable, Mapping

# Seconds of no cause of their own are 'other'.
CAUSES = (
    "start",  # of a process, until it can train: imports, stores, waiting for other processes
    "restore",  # of a checkpoint or of other weights
    "compile",
    "data",
    "step",
    "evaluate",
    "save",
    "idle",  # between the end of a process and the start of the next
    "lost",  # work that a kill threw away and that is done again
    "other",
)
# What is done again after a run has gone back to a checkpoint.
WORK = ("data", "step", "evaluate", "save", "other")


class Ledger:
    """Seconds by cause. Not for use from several threads.

    After `begin`, every second is booked, so that the sum over all processes of a run is the wall
    clock since the first of them began.
    """

    def __init__(
        self,
        seconds: Mapping[str, float] | None = None,
        observer: Callable[[str], object] = lambda cause: None,
    ):
        """Starts empty, or from the `seconds` of an earlier process.

        Args:
          observer: called with the cause that seconds are booked on from now on.
        """
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        for cause, value in (seconds or {}).items():
            self.add(cause, value)
        self._observer = observer
        self._open: list[str] = []
        self._mark = 0.0

    def state(self) -> dict[str, float]:
        """The JSON values that a checkpoint keeps."""
        return self.seconds

    def add(self, cause: str, seconds: float) -> None:
        """Books seconds that were measured elsewhere. Raises KeyError for an unknown cause."""
        if cause not in self._seconds:
            raise KeyError(f"no cause {cause!r} in the ledger: one of {', '.join(CAUSES)}")
        self._seconds[cause] += seconds

    def lose_since(self, state: Mapping[str, float]) -> None:
        """Book the work since an earlier `state()` as lost: it is thrown away, and done again."""
        now = self.seconds
        for cause in WORK:
            lost = now[cause] - state.get(cause, 0.0)
            self._seconds[cause] -= lost
            self._seconds["lost"] += lost

    def begin(self) -> None:
        """From now on, the seconds outside of blocks are booked as well, on 'other'."""
        self._settle()
        self._open.insert(0, "other")

    def time(self, cause: str) -> "_Block":
        """A `with` block whose wall time is booked on `cause`.

        Blocks may nest: the clock of the outer one stops meanwhile, so no second is booked twice.
        """
        if cause not in self._seconds:
            raise KeyError(f"no cause {cause!r} in the ledger: one of {', '.join(CAUSES)}")
        return _Block(self, cause)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds per cause up to now, open blocks included."""
        self._settle()
        return dict(self._seconds)

    @property
    def goodput(self) -> float:
        """Share of all booked seconds that were steps and not lost; 0 while none is booked."""
        self._settle()
        total = sum(self._seconds.values())
        return self._seconds["step"] / total if total else 0.0

    def line(self) -> dict[str, float]:
        """`seconds/<cause>` and `goodput` as a training line carries them."""
        seconds = {f"seconds/{cause}": value for cause, value in self.seconds.items()}
        return {**seconds, "goodput": self.goodput}

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._mark
        self._mark = now


class _Block:
    __slots__ = ("_cause", "_ledger")

    def __init__(self, ledger: Ledger, cause: str):
        self._ledger = ledger
        self._cause = cause

    def __enter__(self) -> None:
        self._ledger._settle()
        self._ledger._open.append(self._cause)
        self._ledger._observer(self._cause)

    def __exit__(self, *exception) -> None:
        self._ledger._settle()
        self._ledger._open.pop()
        self._ledger._observer(self._ledger._open[-1] if self._ledger._open else "other")
