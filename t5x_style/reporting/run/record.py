"""Reading back what a run left in its directory."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t5x_style.accounting import ParametricLaw
from t5x_style.errors import Fault, UsageError, did_you_mean
from t5x_style.reporting.run.writer import EVALUATION_PREFIX, EVENTS_FILE, METRICS_FILE, read_lines

PLAN_FILE = "plan.json"
CONFIG_FILE = "config.gin"


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """One run's files, read.

    Attributes:
      model_dir: where they lie.
      training: training lines in order of step.
      evaluations: evaluation lines in order of step.
      events: the whole history, restarts included.
      plan: what was derived before step 0; empty if there is no plan.json.
      config: the text of config.gin; empty if there is none.
    """

    model_dir: pathlib.Path
    training: list[dict]
    evaluations: list[dict]
    events: list[dict]
    plan: dict
    config: str

    @property
    def own_law(self) -> ParametricLaw | None:
        """The user's own fit that the run was last held against."""
        stored = self.plan.get("own_law")
        if stored is None:
            return None
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
        }
        return ParametricLaw(**fields)

    @property
    def ending(self) -> str | None:
        """Why the run ended before its planned tokens; None if it did not."""
        last = self.events[-1] if self.events else {}
        return last.get("reason") if last.get("event") == "finished" else None


def read_run(model_dir: str | os.PathLike) -> RunRecord:
    """Reads a run, finished, running or killed.

    Raises:
      UsageError: if there is no such directory, or no run in it.
      Fault: if one of its files is broken, with the line.
    """
    path = pathlib.Path(model_dir)
    if not path.is_dir():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no run directory {path}{did_you_mean(path.name, siblings)}")
    if not (path / METRICS_FILE).exists():
        raise UsageError(f"{path} holds no {METRICS_FILE}: it is not the directory of a run")
    lines = read_lines(path / METRICS_FILE)
    evaluations = [line for line in lines if is_evaluation(line)]
    return RunRecord(
        model_dir=path,
        training=[line for line in lines if not is_evaluation(line)],
        evaluations=evaluations,
        events=read_lines(path / EVENTS_FILE),
        plan=_read_plan(path / PLAN_FILE),
        config=(path / CONFIG_FILE).read_text() if (path / CONFIG_FILE).exists() else "",
    )


def is_evaluation(line: Mapping[str, object]) -> bool:
    """Whether a line of metrics.jsonl tells of an evaluation and not of a training step."""
    return any(key.startswith(EVALUATION_PREFIX) for key in line)


def _read_plan(path: pathlib.Path) -> dict:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Fault(f"{path}: not JSON ({error})") from error
