"""The errors for the person at the keyboard, with their exit statuses, and two common checks."""

import difflib
from collections.abc import Collection, Iterable

EXIT_FAULT = 1
EXIT_USAGE = 2
EXIT_AGAIN = 75
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143


class UsageError(Exception):
    """The request is wrong, and another request is right: exit status 2.

    The message names the mistake, its place (file and line, or flag), the value, and the nearest
    correct one. Raised before any work starts.
    """


class Fault(Exception):
    """Work that had started cannot continue: exit status 1, the cause in the last line.

    Attributes:
      event: the kind of the event that process 0 of several writes when another one ends with
        this; None: there is none to write.
    """

    event: str | None = None


class StartAgain(Fault):
    """Something outside of this run stopped it, and another start may not meet it: exit status 75.

    A process was lost, or one hangs. A scheduler may start the same command again.
    """

    def __init__(self, message: str, event: str | None = None):
        super().__init__(message)
        self.event = event


class Preempted(Exception):
    """This process was asked to stop; its state is saved: exit status 143, start again."""


class NothingToSave(Preempted):
    """This process was asked to stop when nothing was there that is not saved."""


def exit_status(error: BaseException) -> int:
    """The exit status of a command that ends with `error` (see the table in the README)."""
    statuses = {
        UsageError: EXIT_USAGE,
        StartAgain: EXIT_AGAIN,
        Preempted: EXIT_PREEMPTED,
        KeyboardInterrupt: EXIT_INTERRUPTED,
    }
    return next((own for kind, own in statuses.items() if isinstance(error, kind)), EXIT_FAULT)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """The nearest of `candidates` as `; did you mean 'X'?`, or an empty string if none is near.

    The name itself is never suggested.
    """
    folded = {candidate.casefold(): candidate for candidate in candidates if candidate != name}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.6)
    return f"; did you mean {folded[near[0]]!r}?" if near else ""


def one_of(where: str, value: object, allowed: Collection[str]) -> None:
    """Check that a value is one of a few names.

    Args:
      where: the flag or binding that has the value, for the message: `Schedule.shape`.
      value: anything; a value that is no string is not one of them.
      allowed: the names.

    Raises:
      UsageError: it is not; the message lists the names, and the nearest one.
    """
    names = tuple(allowed)
    if value not in names:
        near = did_you_mean(str(value), names)
        raise UsageError(f"{where} = {value!r} is not one of {', '.join(names)}{near}")


def at_least(where: str, value: float, least: float) -> None:
    """Check that a number is not below a bound.

    Args:
      where: the flag or binding that has the value, for the message: `Topology.fsdp`.
      value: the number.
      least: the bound, which itself is allowed.

    Raises:
      UsageError: it is below, or not a number.
    """
    if not value >= least:
        raise UsageError(f"{where} = {value!r}: must be {least!r} or more")
