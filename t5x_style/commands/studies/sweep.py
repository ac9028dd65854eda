"""`t5x-style sweep`: the trials of a gin grid, run one after another or side by side."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from t5x_style.config.checks import current, refuse_unconsumed
from t5x_style.errors import Fault, UsageError

CONFIGURABLES: tuple[str, ...] = ()


@gin.configurable
def sweep(
    *,
    grid: Mapping[str, Sequence[object]],
    run_files: Sequence[str],
    sweep_dir: str,
    bindings: Mapping[str, object] | None = None,
    concurrent_trials: int = 1,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Runs `t5x-style train` for every combination of values in a grid, and tabulates the results.

    Each trial is a run directory in sweep_dir, with its output in a .log beside it; sweep.json
    holds the table. A trial that fails is reported and the others go on. Started again after a
    kill, it goes on where it was.

    Args:
      grid: a macro or binding -> its values, as {'LEARNING_RATE': [1e-3, 2e-3]}; a reference is
        written as a string, '@adamw()'.
      run_files: gin files of the run that all trials share.
      sweep_dir: folder of the trials.
      bindings: macros or bindings with one value for all trials.
      concurrent_trials: how many run at a time on this machine.
    """
    refuse_unconsumed()
    from t5x_style.sweeps import gin_flag, grid_trials, results_table, run_trials

    bindings = bindings or {}
    if twice := sorted(set(grid) & set(bindings)):
        raise UsageError(f"{twice[0]!r} is in both sweep.grid and sweep.bindings")
    if concurrent_trials < 1:
        raise UsageError(f"sweep.concurrent_trials = {concurrent_trials}: must be 1 or more")
    trials = grid_trials(grid)
    written = current()
    texts = [written.expanded(name, f"sweep.run_files = [{name!r}]") for name in run_files]
    arguments = [
        *(f"--gin_search_paths={','.join(written.search_paths)}" for _ in written.search_paths[:1]),
        *(f"--gin_file={name}" for name in run_files),
        *(gin_flag(name, value) for name, value in bindings.items()),
    ]
    _check_every_trial([(trial.name, trial.values) for trial in trials], run_files, bindings)
    if dry_run:
        entries = [
            {"name": t.name, "values": dict(t.values), "status": "waiting", "result": {}}
            for t in trials
        ]
    else:
        entries = run_trials(
            trials,
            sweep_dir,
            arguments=arguments,
            identity=hashlib.sha256("\0".join(texts).encode()).hexdigest(),
            concurrent_trials=concurrent_trials,
        )
    print(results_table(entries))
    failed = [entry for entry in entries if entry["status"] == "failed"]
    if failed:
        reasons = "; ".join(f"{entry['name']}: {entry['reason']}" for entry in failed)
        raise Fault(f"{len(failed)} of {len(entries)} trials failed: {reasons}")
    return {"sweep_dir": sweep_dir, "trials": entries}


def _check_every_trial(
    trials: Sequence[tuple[str, Mapping[str, object]]],
    run_files: Sequence[str],
    bindings: Mapping[str, object],
) -> None:
    """Refuses before the first trial what `train` would refuse of any: mistakes, odd widths."""
    from t5x_style.commands import main
    from t5x_style.config import checks
    from t5x_style.config.flags import FlagBinding
    from t5x_style.sweeps.grid import gin_flag, gin_text

    module = main.load_verb("train")
    search_paths = current().search_paths
    for trial, values in trials:
        flags = [
            FlagBinding(name, gin_text(value, name), gin_flag(name, value))
            for name, value in {**bindings, **values, "MODEL_DIR": trial}.items()
        ]
        try:
            checks.parse(run_files, flags, search_paths=search_paths, load=main.load_named)
            checks.check(module.train, verbs=main.selectors())
            checks.evaluate_bindings(module.train)
        except UsageError as error:
            raise UsageError(f"trial {trial}: {error}") from None
