"""The result of a trial, read from the files of its run, and the table of all results."""

from collections.abc import Sequence
from pathlib import Path

from t5x_style.errors import Fault, UsageError
from t5x_style.reporting import read_run, table
from t5x_style.sweeps.record import TrialEntry

EFFICIENCY = "chinchilla/besiroglu/compute_efficiency"


def trial_result(model_dir: str | Path) -> dict[str, float | None]:
    """The last figures of a run; empty if it has no figures.

    Returns:
      `tokens` (learnt from), `train_loss` (nats per token, the mean of the last logged steps),
      `train_loss_steps` (how many these are), `compute_efficiency` (C'/C by Besiroglu et al. 2024),
      and for every source `<source>/loss` and `<source>/bits_per_byte` of the last evaluation.
    """
    try:
        run = read_run(model_dir)
    except (UsageError, Fault):
        return {}
    result: dict[str, float | None] = {}
    if run.training:
        last = run.training[-1]
        result["tokens"] = run.learnt_tokens
        result["train_loss"] = last.get("loss")
        result["train_loss_steps"] = last.get("loss_steps")
        result["compute_efficiency"] = last.get(EFFICIENCY)
    if run.evaluations:
        for key, value in run.evaluations[-1].items():
            if key.startswith("eval/") and key.endswith(("/loss", "/bits_per_byte")):
                result[key.removeprefix("eval/")] = value
    return result


def results_table(trials: Sequence[TrialEntry]) -> str:
    """The trials of a sweep as a table: grid values, status, then all results."""
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    measures = list(dict.fromkeys(name for trial in trials for name in trial.result))
    headers = [*names, "status", *measures]
    rows = [
        [
            *(_cell(trial.values[name]) for name in names),
            trial.status,
            *(trial.result.get(name) for name in measures),
        ]
        for trial in trials
    ]
    return table(rows, headers)


def _cell(value: object) -> object:
    return value if isinstance(value, int | float | str) else repr(value)
