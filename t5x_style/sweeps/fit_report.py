"""A fitted law for people: its text, its figures for JSON, and the reasons to doubt it."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from t5x_style.accounting import FREE_EPOCHS
from t5x_style.accounting.laws.fitting import Fit
from t5x_style.quantities import count, scientific
from t5x_style.reporting import table
from t5x_style.sweeps.points import Point

# Below a factor of ten in N or in D, alpha or beta is a slope at one place.
LEAST_SPAN = 10
# An interval of the exponent of N ~ C^a this wide changes N by a factor of 1.6 in a decade of C.
WIDEST_EXPONENT = 0.2
# Share of the best loss: the irreducible loss of natural language is far above it.
LEAST_IRREDUCIBLE = 0.1
# On Hoffmann's points two thousand starts agree.
LEAST_AGREEING = 10
MEANINGS = {
    "E": "nats per token that no budget removes",
    "A": "scale of A / N^alpha",
    "B": "scale of B / D^beta",
    "alpha": "exponent of N",
    "beta": "exponent of D",
    "a": "optimal N ~ C^a, D ~ C^(1 - a)",
}


@dataclasses.dataclass(frozen=True)
class BudgetRow:
    """The optimum of a law at one budget.

    Attributes:
      flops: C = 6 N D.
      params: the best N.
      params_interval: 10 % to 90 % by bootstrap; None without one.
      tokens: the best D.
      tokens_interval: as for N.
      loss: nats per token.
    """

    flops: float
    params: float
    params_interval: tuple[float, float] | None
    tokens: float
    tokens_interval: tuple[float, float] | None
    loss: float


def budget_rows(fitted: Fit) -> list[BudgetRow]:
    """The law's optimum at its largest run, and one and two decades of C above."""
    if fitted.law.fitted_flops is None:
        raise ValueError("a fitted law has the range of its points")
    greatest = fitted.law.fitted_flops[1]
    rows = []
    for flops in (greatest, 10 * greatest, 100 * greatest):
        params, tokens = fitted.law.optimal(flops)
        intervals = fitted.law.interval(flops) or (None, None)
        loss = fitted.law.loss(params, tokens)
        rows.append(BudgetRow(flops, params, intervals[0], tokens, intervals[1], loss))
    return rows


def points_line(points: Sequence[Point], dropped: int) -> str:
    """The number of points and their ranges, in one line."""
    params = sorted(point.params for point in points)
    tokens = sorted(point.tokens for point in points)
    losses = sorted(point.loss for point in points)
    return (
        f"{len(points)} points: N {count(params[0])} to {count(params[-1])}, "
        f"D {count(tokens[0])} to {count(tokens[-1])}, loss {losses[0]:.3f} to {losses[-1]:.3f}"
        + (f"; {dropped} of the highest losses dropped" if dropped else "")
    )


def point_warnings(points: Sequence[Point]) -> list[str]:
    """Reasons to doubt any law of these points: a narrow range, or repeated tokens."""
    warnings = []
    columns = {"N": [point.params for point in points], "D": [point.tokens for point in points]}
    for name, values in columns.items():
        least, greatest = min(values), max(values)
        if greatest < LEAST_SPAN * least:
            warnings.append(
                f"{name} goes from {count(least)} to {count(greatest)}, a factor of "
                f"{greatest / least:.1f}: below {LEAST_SPAN} its exponent is hardly known"
            )
    epochs = {point.name: point.epochs for point in points if point.epochs is not None}
    repeating = {name: passes for name, passes in epochs.items() if passes > FREE_EPOCHS}
    if repeating:
        worst = max(repeating, key=repeating.__getitem__)
        warnings.append(
            f"{len(repeating)} runs repeat a source more than {FREE_EPOCHS:g} times ({worst}: "
            f"{repeating[worst]:.1f}): the law counts repeated tokens as new ones"
        )
    return warnings


def fit_warnings(fitted: Fit) -> list[str]:
    """Reasons to doubt a law: wide intervals, no visible floor, or a doubtful minimum."""
    warnings = []
    interval = fitted.law.params_exponent_interval
    if interval is not None and interval[1] - interval[0] > WIDEST_EXPONENT:
        warnings.append(
            f"the exponent a of N ~ C^a is between {interval[0]:.2f} and {interval[1]:.2f} (10 % "
            "to 90 %): these points do not determine how to divide a budget"
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
            f"E = {fitted.law.irreducible:.2g}, while the best loss is {best:.2f}: these runs are "
            "too far from their irreducible loss to show it, so the law promises too much to "
            "larger runs"
        )
    if fitted.agreeing_starts < LEAST_AGREEING:
        warnings.append(
            f"only {fitted.agreeing_starts} of {fitted.starts:,} starts ended in this minimum: "
            "there may be a lower one"
        )
    return warnings


def fit_json(fitted: Fit, bootstrap: int, seed: int) -> dict[str, Any]:
    """The quality of a fit for JSON, with the settings of its bootstrap."""
    return {
        "objective": fitted.objective,
        "log_residual_rms": fitted.log_residual_rms,
        "points": fitted.points,
        "params_range": list(fitted.params_range),
        "tokens_range": list(fitted.tokens_range),
        "agreeing_starts": fitted.agreeing_starts,
        "starts": fitted.starts,
        "bootstrap": bootstrap,
        "seed": seed,
        # JSON has no infinity, which a scale may reach where a resample does not determine it.
        "intervals_95": {
            key: [end if math.isfinite(end) else None for end in ends]
            for key, ends in fitted.intervals.items()
        },
    }


def fit_text(fitted: Fit, budgets: Sequence[BudgetRow]) -> str:
    """Coefficients, quality of the fit, and optima, as text."""
    coefficients = [
        (
            key,
            f"{value:.6g}",
            _interval(fitted.intervals.get(key), lambda end: f"{end:.4g}"),
            MEANINGS[key],
        )
        for key, value in fitted.coefficients().items()
    ]
    optima = [
        (
            scientific(row.flops),
            count(row.params),
            _interval(row.params_interval, count),
            count(row.tokens),
            _interval(row.tokens_interval, count),
            f"{row.tokens / row.params:.1f}",
            f"{row.loss:.4f}",
        )
        for row in budgets
    ]
    headers = ("C = 6ND", "best N", "10-90 %", "best D", "10-90 %", "D/N", "loss")
    return "\n".join(
        (
            table(coefficients, (fitted.law.name, "value", "95 % by bootstrap", "")),
            "",
            f"objective {fitted.objective:.6e}, a sum of Huber terms; the root mean square error of"
            f" the log losses is {fitted.log_residual_rms:.4f}; {fitted.agreeing_starts:,} of "
            f"{fitted.starts:,} starts ended here",
            "",
            table(optima, headers),
            "(the first row is the largest run of the fit; the others extrapolate)",
        )
    )


def _interval(interval: tuple[float, float] | None, text_of: Callable[[float], str]) -> str:
    return "-" if interval is None else f"{text_of(interval[0])} to {text_of(interval[1])}"
