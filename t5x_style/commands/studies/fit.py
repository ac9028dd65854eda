"""`t5x-style fit`: a scaling law from the final losses of runs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from t5x_style.accounting.laws.fitting import check_points, fit_parametric_law
from t5x_style.accounting.laws.own import check_law_name, write_law
from t5x_style.config.checks import refuse_unconsumed
from t5x_style.errors import UsageError
from t5x_style.files import refuse_foreign
from t5x_style.ranges import NonNegativeInt
from t5x_style.sweeps import (
    BLENDED,
    LeftOut,
    Point,
    fit_report,
    points_of_csv,
    points_of_runs,
    without_highest,
)

CONFIGURABLES: tuple[str, ...] = ()


@gin.configurable
def fit(
    *,
    points: str | None = None,
    columns: Mapping[str, str] | None = None,
    runs: str | Sequence[str] | None = None,
    loss: str = BLENDED,
    drop_highest: NonNegativeInt = 0,
    name: str = "own",
    output: str | None = None,
    bootstrap: NonNegativeInt = 4000,
    seed: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Fits L(N, D) = E + A / N^alpha + B / D^beta to the final losses of runs.

    The method is that of Hoffmann et al. 2022, as corrected by Besiroglu et al. 2024: the sum of
    Huber terms of the log losses, minimised from 4,500 starts, with bootstrap intervals. The points
    come from --points or from --runs.

    Args:
      points: a CSV file whose first line names its columns: params, tokens (or flops) and loss.
      columns: other names of those columns, as {'params': 'Model Size', 'flops': 'Training FLOP'}.
      runs: the directory of a sweep, a pattern such as 'runs/*', or a list of sweeps and runs. A
        finished run is one point: its parameters, its tokens and its final loss.
      loss: the loss of a run. 'blended' weights the evaluation losses of all sources that have a
        validation split by their shares, as early stopping does; anything else is a key of
        metrics.jsonl, such as eval/legal/loss, or loss, which is the mean of the last logged steps.
      drop_highest: number of points to leave out, those of the highest losses (5 in Besiroglu et
        al. 2024).
      name: name of the law, in tables and metrics.
      output: a JSON file for the law.
      bootstrap: number of resamples of the points for the intervals; 0 for no intervals.
      seed: random seed of the resampling.
      dry_run: read and check the points, and stop.
    """
    refuse_unconsumed()
    check_law_name(name, "--name")
    if output is not None:
        refuse_foreign(output, "--output")
    found, left_out, origin = _read(points, columns, runs, loss)
    for run in left_out:
        print(f"left out {run.name}: {run.reason}")
    kept = without_highest(found, drop_highest)
    values = (
        [point.params for point in kept],
        [point.tokens for point in kept],
        [point.loss for point in kept],
    )
    check_points(*values)
    warnings = fit_report.point_warnings(kept)
    if kept[0].measured is not None:
        print(f"loss: {kept[0].measured}")
    print(fit_report.points_line(kept, dropped=len(found) - len(kept)) + "\n")
    result: dict[str, Any] = {
        "points": len(kept),
        "left_out": [dataclasses.asdict(run) for run in left_out],
    }
    if dry_run:
        _print_warnings(warnings)
        return result | {"warnings": warnings}
    fitted = fit_parametric_law(
        *values,
        name=name,
        source=f"fitted to {len(kept)} points of {origin}",
        bootstrap=bootstrap,
        seed=seed,
    )
    warnings += fit_report.fit_warnings(fitted)
    quality = fit_report.fit_json(fitted, bootstrap, seed)
    budgets = fit_report.budget_rows(fitted)
    print(fit_report.fit_text(fitted, budgets) + "\n")
    _print_warnings(warnings)
    if output is not None:
        write_law(output, fitted.law, quality)
        print(f"wrote {output}")
    return result | {
        "law": name,
        "coefficients": fitted.coefficients(),
        **quality,
        "exponent_interval_10_90": fitted.law.params_exponent_interval,
        "fitted_flops": fitted.law.fitted_flops,
        "budgets": [dataclasses.asdict(row) for row in budgets],
        "warnings": warnings,
        "output": output,
    }


def _read(
    points: str | None,
    columns: Mapping[str, str] | None,
    runs: str | Sequence[str] | None,
    loss: str,
) -> tuple[list[Point], list[LeftOut], str]:
    """The points, the runs left out with reasons, and the names of the file or the runs."""
    if points is not None and runs is None:
        if loss != BLENDED:
            raise UsageError(f"--loss={loss} is for --runs: --columns={{'loss': '{loss}'}}")
        return points_of_csv(points, columns), [], points
    if runs is None or points is not None:
        both = "are both given" if points is not None else "are both missing"
        raise UsageError(f"--points=FILE.csv and --runs=DIRS {both}: one of them gives the points")
    if columns is not None:
        raise UsageError("--columns is for --points: runs have no columns")
    # Not split at commas: the names of a sweep's trials have commas.
    names = [runs] if isinstance(runs, str) else runs
    return *points_of_runs(names, loss), ", ".join(names)


def _print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}")
