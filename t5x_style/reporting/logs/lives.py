"""The seconds of a run that no ledger has: those between a checkpoint and the next start."""

import contextlib
import itertools
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.reporting.logs.log_lines import LOG_EVENTS

# The events with which a process takes up a run.
BEGINNINGS = ("started", "resumed")
# Those with which it leaves the run on purpose.
ENDINGS = ("preempted", "finished")
ALIVE_FILE = ".alive"


def beat(folder: pathlib.Path) -> None:
    """Write the time into the run's folder, so that the next start knows when this one ended."""
    # A sign that cannot be written is no reason to stop.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / ALIVE_FILE, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            # The same bytes of one block each time: there is no moment without a content.
            os.pwrite(descriptor, f"{time.time():<20.3f}".encode(), 0)
        finally:
            os.close(descriptor)


def last_beat(folder: pathlib.Path) -> float:
    """The unix time of the last `beat`; 0 if there is none."""
    try:
        return float((folder / ALIVE_FILE).read_text())
    except (OSError, ValueError):
        return 0.0


def unbooked_seconds(
    events: Sequence[Mapping[str, Any]],
    *,
    resume_step: int | None,
    booked_until: float | None,
    last_sign: float,
    began: float,
) -> tuple[dict[str, float], float]:
    """The seconds before this start that are not in the ledger of its checkpoint.

    Args:
      events: all lines of events.jsonl so far.
      resume_step: of the checkpoint; None if the run starts from nothing.
      booked_until: the unix time up to which the checkpoint's ledger goes. Without one, that of
        the event of the save.
      last_sign: the unix time of the run's last line or beat.
      began: the unix time at which this process began.

    Returns:
      The seconds by cause, and how long no process had the run before this one. The pause after a
      finished run is booked on no cause: the run had ended.
    """
    last_sign = max([last_sign, *(event["time"] for event in events[-1:])])
    events = [event for event in events if event["event"] not in LOG_EVENTS]
    if booked_until is None:
        if not events:
            return {}, 0.0
        first = events[0].get("began", events[0]["time"])
        saves = [e["time"] for e in events if e["event"] == "saved" and e["step"] == resume_step]
        booked_until = first if resume_step is None else max(saves, default=events[-1]["time"])
    assert booked_until is not None
    last: Mapping[str, Any] = events[-1] if events else {"event": None, "step": None}
    pause = max(0.0, began - max(last_sign, booked_until))
    pauses = [(last["event"], pause)]
    # Processes that took up the run since then, and saved nothing that is left.
    for before, event in itertools.pairwise(events):
        if event["event"] in BEGINNINGS and event["time"] > booked_until:
            # An older version did not write it.
            since = max(before["time"], booked_until)
            pauses.append((before["event"], event.get("pause_seconds", event["time"] - since)))
    idle = sum(seconds for kind, seconds in pauses if kind != "finished")
    away = sum(seconds for _, seconds in pauses)
    alive = max(0.0, began - booked_until - away)
    left = len(pauses) == 1 and last["event"] in ENDINGS and last["step"] == resume_step
    # After a process has left on purpose, nothing is done again: it had waited for its save.
    return {"save" if left else "lost": alive, "idle": idle}, pause


def process_began() -> float:
    """The unix time at which this process began; now, where the system does not say."""
    try:
        fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        # Since the machine's start, in ticks.
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        age = 0.0
    return time.time() - max(0.0, age)
