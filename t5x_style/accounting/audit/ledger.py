"""Where the seconds of a run went, by cause, over all of its restarts."""

import time
from collections.abc import Mapping

CAUSES = ("compile", "data", "step", "evaluate", "save", "lost", "other")


class Ledger:
    """Seconds by cause. Not for use from several threads.

    'lost' is work that was lost in a kill and done again; 'other' is all without a name of its own
    (start-up, restoring).
    """

    def __init__(self, seconds: Mapping[str, float] | None = None):
        """Starts empty, or from the `seconds` of an earlier process (see `restore`)."""
        self._seconds = dict.fromkeys(CAUSES, 0.0)
        for cause, value in (seconds or {}).items():
            self.add(cause, value)
        self._open: list[str] = []
        self._mark = 0.0

    @classmethod
    def restore(cls, state: Mapping[str, float]) -> "Ledger":
        """The ledger with this `state()`, to be continued by another process."""
        return cls(state)

    def state(self) -> dict[str, float]:
        """The JSON values that a checkpoint keeps."""
        return self.seconds

    def add(self, cause: str, seconds: float) -> None:
        """Books seconds that were measured elsewhere. Raises KeyError for an unknown cause."""
        if cause not in self._seconds:
            raise KeyError(f"no cause {cause!r} in the ledger: one of {', '.join(CAUSES)}")
        self._seconds[cause] += seconds

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

    def __exit__(self, *exception) -> None:
        self._ledger._settle()
        self._ledger._open.pop()
