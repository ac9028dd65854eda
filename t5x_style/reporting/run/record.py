"""Reads the files of a run directory."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t5x_style.accounting import ParametricLaw
from t5x_style.errors import Fault, UsageError, did_you_mean
from t5x_style.files import local_path
from t5x_style.reporting.run.derived_run import DerivedRun
from t5x_style.reporting.run.held_out_text import Replacement, replacements
from t5x_style.reporting.run.writer import (
    CONFIG_FILE,
    EVALUATION_MEASURES,
    EVALUATION_PREFIX,
    EVENTS_FILE,
    METRICS_FILE,
    PLAN_FILE,
    read_lines,
)

_SECONDS_PREFIX = "seconds/"

# (tokens, value) of a curve's points, two lists of one length.
Points = tuple[list[float], list[float]]


@dataclasses.dataclass(frozen=True)
class Event:
    """One line of events.jsonl.

    Attributes:
      kind: one of writer.EVENT_KINDS.
      details: further fields, such as `reason`, `seconds` and `sources`.
    """

    kind: str
    step: int
    tokens: int
    details: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """The files of one run.

    Attributes:
      model_dir: the run's directory.
      training: training lines in order of step.
      evaluations: evaluation lines in order of step.
      events: the whole history, restarts included.
      derived: the values derived before step 0; None if there is no plan.json.
      config: the text of config.gin; empty if there is none.
    """

    model_dir: pathlib.Path
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    events: list[Event]
    derived: DerivedRun | None
    config: str

    @property
    def own_law(self) -> ParametricLaw | None:
        """The user's own fit that the run was last audited against."""
        return None if self.derived is None else self.derived.own_law

    @property
    def replacements(self) -> list[Replacement]:
        """The held-out texts that were replaced between starts of the run."""
        return [] if self.derived is None else replacements(self.derived.held_out)

    @property
    def state(self) -> str | None:
        """The kind of the last event; None if there is none."""
        return self.events[-1].kind if self.events else None

    @property
    def ending(self) -> str | None:
        """Why the run ended before its planned tokens; None if it did not."""
        return self.events[-1].details.get("reason") if self.state == "finished" else None

    @property
    def parameters(self) -> float | None:
        """N, from the last training line; None if that line has no audit."""
        last = self.training[-1] if self.training else {}
        ratio = last.get("tokens_per_param")
        return last["tokens"] / ratio if ratio else None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause up to the last event if it has them, else to the last training line."""
        if self.events and "seconds" in self.events[-1].details:
            return self.events[-1].details["seconds"]
        last = self.training[-1] if self.training else {}
        return {
            key.removeprefix(_SECONDS_PREFIX): value
            for key, value in last.items()
            if key.startswith(_SECONDS_PREFIX) and value is not None
        }

    @property
    def own_metrics(self) -> list[str]:
        """Names of the user's own metrics in the evaluation lines, sorted."""
        keys = {key for line in self.evaluations for key in line}
        names = {key.rpartition("/")[2] for key in keys if key.startswith(EVALUATION_PREFIX)}
        return sorted(names - set(EVALUATION_MEASURES))

    def curve(self, measure: str) -> Points:
        """One value of the training lines, such as `loss`; lines without a value are left out."""
        return _curves(self.training, measure, "").get("", ([], []))

    def curves_by_source(self, measure: str) -> dict[str, Points]:
        """Source -> its `loss`, `share`, `tokens` or `epochs` in the training lines."""
        return _curves(self.training, f"{measure}/", "")

    def evaluation_curves(self, measure: str) -> dict[str, Points]:
        """Source -> its `loss`, `bits_per_byte` or own metric in the evaluation lines."""
        return _curves(self.evaluations, EVALUATION_PREFIX, f"/{measure}")

    def curves_by_law(self, quantity: str) -> dict[str, Points]:
        """Law -> a quantity of its audit, such as `compute_efficiency`."""
        return _curves(self.training, "chinchilla/", f"/{quantity}")


def read_run(model_dir: str | os.PathLike) -> RunRecord:
    """Reads a run, finished, running or killed.

    Raises:
      UsageError: if there is no such directory, or no run in it, or its path has a scheme.
      Fault: if one of its files is broken, with the line.
    """
    path = local_path(model_dir, "model_dir")
    if not path.is_dir():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no run directory {path}{did_you_mean(path.name, siblings)}")
    if not (path / METRICS_FILE).exists():
        raise UsageError(f"{path} has no {METRICS_FILE}: it is not the directory of a run")
    lines = read_lines(path / METRICS_FILE)
    return RunRecord(
        model_dir=path,
        training=[line for line in lines if not is_evaluation(line)],
        evaluations=[line for line in lines if is_evaluation(line)],
        events=[_event(line) for line in read_lines(path / EVENTS_FILE)],
        derived=read_derived(path) if (path / PLAN_FILE).exists() else None,
        config=(path / CONFIG_FILE).read_text() if (path / CONFIG_FILE).exists() else "",
    )


def read_derived(model_dir: str | os.PathLike) -> DerivedRun:
    """The plan.json of a run.

    Raises:
      UsageError: the directory has no plan.json.
      Fault: the file is broken.
    """
    path = local_path(model_dir, "MODEL_DIR") / PLAN_FILE
    if not path.is_file():
        raise UsageError(f"MODEL_DIR = {model_dir}: no run there ({PLAN_FILE} is missing)")
    try:
        fields = json.loads(path.read_text())
    except ValueError as error:
        raise Fault(f"{path} is not JSON: {error}") from None
    try:
        return DerivedRun.from_json(fields)
    except (KeyError, TypeError) as error:
        kind = type(error).__name__
        raise Fault(f"{path} is not the plan.json of a run ({kind}: {error})") from None


def is_evaluation(line: Mapping[str, object]) -> bool:
    """Whether a line of metrics.jsonl is an evaluation line and not a training line."""
    return any(key.startswith(EVALUATION_PREFIX) for key in line)


def _event(line: Mapping[str, Any]) -> Event:
    known = ("event", "step", "tokens", "time")
    details = {key: value for key, value in line.items() if key not in known}
    return Event(line["event"], line["step"], line["tokens"], details)


def _curves(lines: list[dict[str, Any]], prefix: str, suffix: str) -> dict[str, Points]:
    """Name -> its curve, for all keys `<prefix><name><suffix>`; null values are left out."""
    found: dict[str, Points] = {}
    for line in lines:
        for key, value in line.items():
            if key.startswith(prefix) and key.endswith(suffix):
                name = key[len(prefix) : len(key) - len(suffix)]
                tokens, values = found.setdefault(name, ([], []))
                if value is not None:
                    tokens.append(line["tokens"])
                    values.append(value)
    return found
