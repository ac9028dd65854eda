"""`t5x-style fit`: a scaling law from the final losses of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.accounting import FREE_EPOCHS
from t5x_style.accounting.laws.fitting import Fit, check_points, fit_parametric_law
from t5x_style.accounting.laws.own import check_law_name, write_law
from t5x_style.config.checks import refuse_unconsumed
from t5x_style.errors import UsageError
from t5x_style.quantities import count, scientific
from t5x_style.reporting import table

if TYPE_CHECKING:
    from t5x_style.sweeps import Point

CONFIGURABLES: tuple[str, ...] = ()

# Below a factor of ten in N or in D, alpha or beta is a slope through one spot.
LEAST_SPAN = 10
# An interval of the exponent of N ~ C^a this wide moves N by a factor of 1.6 in a decade of C.
WIDEST_EXPONENT = 0.2
# Of the best loss: natural language has far more than that left.
LEAST_IRREDUCIBLE = 0.1
# Two thousand starts agree on Hoffmann's points.
LEAST_AGREEING = 10
BLENDED = "blended"
MEANINGS = {
    "E": "nats per token that no budget takes away",
    "A": "scale of A / N^alpha",
    "B": "scale of B / D^beta",
    "alpha": "exponent of N",
    "beta": "exponent of D",
    "a": "optimal N ~ C^a, D ~ C^(1 - a)",
}


@gin.configurable
def fit(
    *,
    points: str | None = None,
    columns: Mapping[str, str] | None = None,
    runs: str | Sequence[str] | None = None,
    loss: str = BLENDED,
    drop_highest: int = 0,
    name: str = "own",
    output: str | None = None,
    bootstrap: int = 4000,
    seed: int = 0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Fits L(N, D) = E + A / N^alpha + B / D^beta to the final losses of runs.

    By the method of Hoffmann et al. 2022 as Besiroglu et al. 2024 put it right: the sum of Huber
    terms of the log losses, minimised from 4,500 starts, with bootstrap intervals. The points come
    from --points or from --runs.

    Args:
      points: a CSV file whose first line names its columns: params, tokens (or flops) and loss.
      columns: other names of those columns, as {'params': 'Model Size', 'flops': 'Training FLOP'}.
      runs: the directory of a sweep, a pattern such as 'runs/*', or a list of those and of runs; of
        each finished run, the model's parameters, its tokens and its final loss.
      loss: which loss of the runs: blended, every source's evaluation loss weighted by its share,
        or a key of metrics.jsonl such as loss or eval/legal/loss.
      drop_highest: points of the highest losses to leave out (5 in Besiroglu et al. 2024).
      name: what the law is called.
      output: a JSON file for the law.
      bootstrap: resamples of the points behind the intervals; 0 for none.
      seed: of the resampling.
      dry_run: only read and check the points.
    """
    refuse_unconsumed()
    check_law_name(name, "--name")
    if bootstrap < 0:
        raise UsageError(f"--bootstrap={bootstrap}: must be 0 or more")
    read, left_out = _read(points, columns, runs, loss)
    from t5x_style.sweeps import without_highest

    for run in left_out:
        print(f"left out {run['name']}: {run['reason']}")
    kept = without_highest(read, drop_highest)
    values = [[getattr(point, of) for point in kept] for of in ("params", "tokens", "loss")]
    check_points(*values)
    warnings = _warnings_of_points(kept)
    _print_points(kept, dropped=len(read) - len(kept))
    result: dict[str, Any] = {"points": len(kept), "left_out": left_out}
    if dry_run:
        _print_warnings(warnings)
        return result | {"warnings": warnings}
    behind = points if points is not None else ", ".join(_listed(runs))
    fitted = fit_parametric_law(
        *values,
        name=name,
        source=f"fitted to {len(kept)} points of {behind}",
        bootstrap=bootstrap,
        seed=seed,
    )
    warnings += _warnings_of_fit(fitted)
    quality = {
        "objective": fitted.objective,
        "log_residual_rms": fitted.log_residual_rms,
        "points": fitted.points,
        "params_range": list(fitted.params_range),
        "tokens_range": list(fitted.tokens_range),
        "agreeing_starts": fitted.agreeing_starts,
        "starts": fitted.starts,
        "bootstrap": bootstrap,
        "seed": seed,
        # JSON has no infinity, which a scale may reach where a resample leaves it undetermined.
        "intervals_95": {
            key: [end if math.isfinite(end) else None for end in ends]
            for key, ends in fitted.intervals.items()
        },
    }
    rows = _budgets(fitted)
    _print_fit(fitted, rows)
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
        "budgets": rows,
        "warnings": warnings,
        "output": output,
    }


def _read(
    points: str | None,
    columns: Mapping[str, str] | None,
    runs: str | Sequence[str] | None,
    loss: str,
) -> tuple[list[Point], list[dict[str, str]]]:
    from t5x_style.sweeps import points_of_csv, points_of_runs

    if (points is None) == (runs is None):
        both = "are both given" if points is not None else "are both missing"
        raise UsageError(f"--points=FILE.csv and --runs=DIRS {both}: one of them gives the points")
    if points is not None:
        if loss != BLENDED:
            raise UsageError(f"--loss={loss} is for --runs: --columns={{'loss': '{loss}'}}")
        return points_of_csv(points, columns), []
    if columns is not None:
        raise UsageError("--columns is for --points: runs have no columns")
    return points_of_runs(_listed(runs), loss)


def _listed(runs: str | Sequence[str]) -> Sequence[str]:
    # Not split at commas, which the names of a sweep's trials hold.
    return [runs] if isinstance(runs, str) else runs


def _warnings_of_points(points: Sequence[Point]) -> list[str]:
    warnings = []
    for name, of in (("N", "params"), ("D", "tokens")):
        values = [getattr(point, of) for point in points]
        least, greatest = min(values), max(values)
        if greatest < LEAST_SPAN * least:
            warnings.append(
                f"{name} goes from {count(least)} to {count(greatest)}, a factor of "
                f"{greatest / least:.1f}: below {LEAST_SPAN} its exponent is hardly known"
            )
    repeating = [p for p in points if p.epochs is not None and p.epochs > FREE_EPOCHS]
    if repeating:
        worst = max(repeating, key=lambda point: point.epochs)
        warnings.append(
            f"{len(repeating)} runs repeat a source more than {FREE_EPOCHS:g} times ({worst.name}: "
            f"{worst.epochs:.1f}): the law takes repeated tokens for new ones"
        )
    return warnings


def _warnings_of_fit(fitted: Fit) -> list[str]:
    warnings = []
    interval = fitted.law.params_exponent_interval
    if interval is not None and interval[1] - interval[0] > WIDEST_EXPONENT:
        warnings.append(
            f"the exponent a of N ~ C^a lies between {interval[0]:.2f} and {interval[1]:.2f} (10 % "
            "to 90 %): these points do not say how to divide a budget"
        )
    for key in ("alpha", "beta") if fitted.intervals else ():
        (low, high), value = fitted.intervals[key], fitted.coefficients()[key]
        if high - low > value:
            warnings.append(
                f"{key} = {value:.3g} may be anything from {low:.3g} to {high:.3g} (95 %)"
            )
    best = fitted.law.loss(fitted.params_range[1], fitted.tokens_range[1])
    if fitted.law.irreducible < LEAST_IRREDUCIBLE * best:
        warnings.append(
            f"E = {fitted.law.irreducible:.2g}, where the loss has come down to {best:.2f}: these "
            "runs are too far from the loss that no budget takes away to see it, so the law "
            "promises too much to larger ones"
        )
    if fitted.agreeing_starts < LEAST_AGREEING:
        warnings.append(
            f"only {fitted.agreeing_starts} of {fitted.starts:,} starts ended in this minimum: "
            "there may be a lower one"
        )
    return warnings


def _budgets(fitted: Fit) -> list[dict[str, Any]]:
    """What the law says at the edge of its points and one and two decades beyond."""
    greatest = fitted.law.fitted_flops[1]
    rows = []
    for flops in (greatest, 10 * greatest, 100 * greatest):
        params, tokens = fitted.law.optimal(flops)
        interval = fitted.law.interval(flops)
        rows.append(
            {
                "flops": flops,
                "params": params,
                "params_interval": None if interval is None else interval[0],
                "tokens": tokens,
                "tokens_interval": None if interval is None else interval[1],
                "loss": fitted.law.loss(params, tokens),
            }
        )
    return rows


def _print_points(points: Sequence[Point], dropped: int) -> None:
    params, tokens, losses = (
        sorted(getattr(p, of) for p in points) for of in ("params", "tokens", "loss")
    )
    print(
        f"{len(points)} points: N {count(params[0])} to {count(params[-1])}, "
        f"D {count(tokens[0])} to {count(tokens[-1])}, loss {losses[0]:.3f} to {losses[-1]:.3f}"
        + (f"; {dropped} of the highest losses dropped" if dropped else "")
    )
    print()


def _print_fit(fitted: Fit, budgets: Sequence[Mapping[str, Any]]) -> None:
    rows = [
        (
            key,
            f"{value:.6g}",
            _ends(fitted.intervals.get(key), lambda end: f"{end:.4g}"),
            MEANINGS[key],
        )
        for key, value in fitted.coefficients().items()
    ]
    print(table(rows, (fitted.law.name, "value", "95 % by bootstrap", "")))
    print()
    print(
        f"objective {fitted.objective:.6e}, sum of Huber terms; log losses are off by "
        f"{fitted.log_residual_rms:.4f} (root mean square); {fitted.agreeing_starts:,} of "
        f"{fitted.starts:,} starts ended here"
    )
    print()
    print(
        table(
            [
                (
                    scientific(row["flops"]),
                    count(row["params"]),
                    _ends(row["params_interval"], count),
                    count(row["tokens"]),
                    _ends(row["tokens_interval"], count),
                    f"{row['tokens'] / row['params']:.1f}",
                    f"{row['loss']:.4f}",
                )
                for row in budgets
            ],
            ("C = 6ND", "best N", "10-90 %", "best D", "10-90 %", "D/N", "loss"),
        )
    )
    print("(the first row is the largest run behind the law; the others extrapolate)")
    print()


def _ends(interval: tuple[float, float] | None, shown: Callable[[float], str]) -> str:
    return "-" if interval is None else f"{shown(interval[0])} to {shown(interval[1])}"


def _print_warnings(warnings: Sequence[str]) -> None:
    for warning in warnings:
        print(f"warning: {warning}")
