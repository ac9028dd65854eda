"""Reads the files of a run directory."""

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from t5x_style.accounting import ParametricLaw
from t5x_style.accounting.audit.audit_record import skipped_tokens
from t5x_style.errors import Fault, UsageError, did_you_mean
from t5x_style.files import local_path
from t5x_style.reporting.logs.log_lines import (
    EVALUATION_PREFIX,
    EVENTS_FILE,
    LOG_EVENTS,
    METRICS_FILE,
    is_evaluation,
    missing_lines,
    read_log,
)
from t5x_style.reporting.run.derived_run import DerivedRun
from t5x_style.reporting.run.held_out_text import Replacement, replacements
from t5x_style.reporting.run.writer import CONFIG_FILE, EVALUATION_MEASURES, PLAN_FILE

_SECONDS_PREFIX = "seconds/"
_NOISE_FIGURES = ("noise/signal", "noise/variance")  # of `step.monitors`

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
      faults: what of the files cannot be read and is left out, or is missing, in words.
    """

    model_dir: pathlib.Path
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    events: list[Event]
    derived: DerivedRun | None
    config: str
    faults: list[str]

    @property
    def own_law(self) -> ParametricLaw | None:
        """The user's own fit that the run was last audited against."""
        return None if self.derived is None else self.derived.own_law

    @property
    def replacements(self) -> list[Replacement]:
        """The held-out texts that were replaced between starts of the run."""
        return [] if self.derived is None else replacements(self.derived.held_out)

    @property
    def last_event(self) -> Event | None:
        """The last event that is not about the logs; None if there is none."""
        return next((e for e in reversed(self.events) if e.kind not in LOG_EVENTS), None)

    @property
    def state(self) -> str | None:
        """The kind of the last event; None if there is none."""
        return self.last_event.kind if self.last_event else None

    @property
    def ending(self) -> str | None:
        """Why the run ended before its planned tokens; None if it did not."""
        last = self.last_event
        return last.details.get("reason") if last and last.kind == "finished" else None

    @property
    def learnt_tokens(self) -> float:
        """D so far: the tokens of the last training line, less those nothing was learnt from."""
        last = self.training[-1] if self.training else {}
        return last.get("tokens", 0) - sum(skipped_tokens(last).values())

    @property
    def parameters(self) -> float | None:
        """N, from the last training line; None if that line has no audit."""
        ratio = self.training[-1].get("tokens_per_param") if self.training else None
        return self.learnt_tokens / ratio if ratio else None

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by cause up to the last event if it has them, else to the last training line."""
        event = self.last_event
        if event and "seconds" in event.details:
            return event.details["seconds"]
        last = self.training[-1] if self.training else {}
        return {
            key.removeprefix(_SECONDS_PREFIX): value
            for key, value in last.items()
            if key.startswith(_SECONDS_PREFIX) and value is not None
        }

    @property
    def gradient_noise_scale(self) -> float | None:
        """In tokens, of the last half of the training lines; None where they say nothing of it.

        A step on a batch of so many tokens gains half of what one on an endless batch would
        (McCandlish et al. 2018, section 2.2, where every curvature is the same).
        """
        half = self.training[len(self.training) // 2 :]
        known = [line for line in half if None not in map(line.get, _NOISE_FIGURES)]
        signal, variance = (math.fsum(line[name] for line in known) for name in _NOISE_FIGURES)
        # Both are estimates, and a mean of few may be on the wrong side of zero.
        return variance / signal if signal > 0 and variance > 0 else None

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

    Lines of its logs that are broken are left out, and named in `faults`.

    Raises:
      UsageError: if there is no such directory, or no run in it, or its path has a scheme.
      Fault: if plan.json is broken.
    """
    path = local_path(model_dir, "model_dir")
    if not path.is_dir():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no run directory {path}{did_you_mean(path.name, siblings)}")
    if not (path / METRICS_FILE).exists():
        if (path / PLAN_FILE).exists():
            raise UsageError(f"{path} is a run whose {METRICS_FILE} is missing: nothing to read")
        raise UsageError(f"{path} has no {METRICS_FILE}: it is not the directory of a run")
    logs = {name: read_log(path / name) for name in (METRICS_FILE, EVENTS_FILE)}
    lines = logs[METRICS_FILE].fields
    training = [line for line in lines if not is_evaluation(line)]
    faults = [f"{name}: {fault}" for name, log in logs.items() for fault in log.faults]
    faults += [f"{METRICS_FILE}: {fault}" for fault in missing_lines(training, None)]
    return RunRecord(
        model_dir=path,
        training=training,
        evaluations=[line for line in lines if is_evaluation(line)],
        events=[_event(line) for line in logs[EVENTS_FILE].fields],
        derived=read_derived(path) if (path / PLAN_FILE).exists() else None,
        config=(path / CONFIG_FILE).read_text(errors="replace")
        if (path / CONFIG_FILE).exists()
        else "",
        faults=faults,
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
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        kind = type(error).__name__
        raise Fault(f"{path} is not the plan.json of a run ({kind}: {error})") from None


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
