"""`t5x-style sweep`: runs the trials of a grid, one after another or in parallel."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from t5x_style.commands import main
from t5x_style.config import checks
from t5x_style.config.checks import current, refuse_unconsumed
from t5x_style.config.flags import FlagBinding
from t5x_style.errors import Fault, StartAgain, UsageError
from t5x_style.files import local_path
from t5x_style.ranges import PositiveInt
from t5x_style.sweeps import (
    Trial,
    TrialEntry,
    gin_flag,
    gin_text,
    grid_trials,
    results_table,
    run_trials,
)

CONFIGURABLES: tuple[str, ...] = ()


@gin.configurable
def sweep(
    *,
    grid: Mapping[str, Sequence[object]],
    run_files: Sequence[str],
    sweep_dir: str,
    bindings: Mapping[str, object] | None = None,
    concurrent_trials: PositiveInt = 1,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Runs `t5x-style train` for every combination of values in a grid, and tabulates the results.

    Every trial has a run directory in sweep_dir, and a .log file next to it with its output. The
    results are in sweep.json. A trial that fails is reported, and the others continue. After a
    kill, the same command continues the sweep.

    Args:
      grid: a macro or parameter -> its values, as {'LEARNING_RATE': [1e-3, 2e-3]}. A reference is
        written as a string: '@adamw()'.
      run_files: gin files of the run, the same for all trials.
      sweep_dir: folder of the trials.
      bindings: a macro or parameter -> its value, the same for all trials.
      concurrent_trials: number of trials that run at a time on this machine.
    """
    refuse_unconsumed()
    folder = local_path(sweep_dir, "--sweep_dir")
    for name in run_files:
        local_path(name, "sweep.run_files")
    bindings = bindings or {}
    if twice := sorted(set(grid) & set(bindings)):
        raise UsageError(f"{twice[0]!r} is in both sweep.grid and sweep.bindings")
    trials = grid_trials(grid)
    reader = current()
    texts = [reader.expanded(name, f"sweep.run_files = [{name!r}]") for name in run_files]
    paths = ",".join(reader.search_paths)
    arguments = [
        *([f"--gin_search_paths={paths}"] if paths else []),
        *(f"--gin_file={name}" for name in run_files),
        *(gin_flag(name, value) for name, value in bindings.items()),
    ]
    _check_every_trial(trials, run_files, bindings)
    if dry_run:
        entries = [TrialEntry(trial.name, dict(trial.values)) for trial in trials]
    else:
        entries = run_trials(
            trials,
            folder,
            arguments=arguments,
            identity=hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            concurrent_trials=concurrent_trials,
        )
    print(results_table(entries))
    failed = [entry for entry in entries if entry.status == "failed"]
    if failed:
        reasons = "; ".join(f"{entry.name}: {entry.reason}" for entry in failed)
        raise Fault(f"{len(failed)} of {len(entries)} trials failed: {reasons}")
    if left := [entry.name for entry in entries if entry.status == "preempted"]:
        names = ", ".join(left)
        raise StartAgain(
            f"{len(left)} of {len(entries)} trials can go on: {names}: start the sweep again"
        )
    return {"sweep_dir": sweep_dir, "trials": [entry.to_json() for entry in entries]}


def _check_every_trial(
    trials: Sequence[Trial],
    run_files: Sequence[str],
    bindings: Mapping[str, object],
) -> None:
    """Refuses, before the first trial starts, any trial that `train` would refuse."""
    module = main.load_verb("train")
    search_paths = current().search_paths
    for trial in trials:
        flags = [
            FlagBinding(name, gin_text(value, name), gin_flag(name, value))
            for name, value in {**bindings, **trial.values, "MODEL_DIR": trial.name}.items()
        ]
        try:
            checks.parse(run_files, flags, search_paths=search_paths, load=main.load_named)
            checks.check(module.train, verbs=main.selectors())
            checks.evaluate_bindings(module.train)
        except UsageError as error:
            raise UsageError(f"trial {trial.name}: {error}") from None
