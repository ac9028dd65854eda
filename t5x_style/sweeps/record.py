"""The record of a sweep, sweep.json: its trials, their status and their results."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from t5x_style.errors import Fault
from t5x_style.files import write_whole

SWEEP_FILE = "sweep.json"


@dataclasses.dataclass
class TrialEntry:
    """One trial of a sweep.

    Attributes:
      name: of its run directory.
      values: macro or binding -> value.
      status: of its last start.
      reason: the error in its log, if it failed.
      seconds: duration of its last start.
      result: see trial_result; empty before the first start.
    """

    name: str
    values: Mapping[str, Any]
    status: Literal["waiting", "running", "finished", "failed", "preempted"] = "waiting"
    reason: str | None = None
    seconds: float | None = None
    result: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The entry in sweep.json."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class SweepRecord:
    """A sweep.

    Attributes:
      arguments: of `t5x-style train`, the same for all trials.
      identity: a hash of the text of the run files; trials with another one are not comparable.
      trials: in the order in which they start.
    """

    arguments: Sequence[str]
    identity: str
    trials: Sequence[TrialEntry]

    def write(self, folder: Path) -> None:
        """Writes sweep.json into the folder of the sweep."""
        write_whole(folder / SWEEP_FILE, json.dumps(dataclasses.asdict(self), indent=1))


def read_sweep(folder: Path) -> SweepRecord | None:
    """The record in the folder of a sweep; None if it has none.

    Raises:
      Fault: the file is not the record of a sweep.
    """
    path = folder / SWEEP_FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        trials = [TrialEntry(**entry) for entry in content.pop("trials")]
        return SweepRecord(trials=trials, **content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Fault(f"{path}: not the record of a sweep ({error})") from error
