"""Fitting L(N, D) = E + A / N^alpha + B / D^beta to the final losses of runs.

As in Hoffmann et al. 2022 (arXiv 2203.15556), equation 3 and appendix D.3: with a = log A,
b = log B and e = log E, minimise over (a, b, e, alpha, beta)

    sum_i Huber_1e-3( LSE(a - alpha log N_i, b - beta log D_i, e) - log L_i )

from every start of a grid. Two mistakes are easy here, and Besiroglu et al. 2024 (arXiv 2404.10102)
found both behind the paper's own numbers: the mean of the terms instead of their sum, and a loose
tolerance, let the optimiser stop long before the minimum.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from t5x_style.accounting.laws.bfgs import minimise
from t5x_style.accounting.laws.chinchilla import ParametricLaw
from t5x_style.errors import UsageError, at_least
from t5x_style.ranges import folded_seed

if TYPE_CHECKING:
    import numpy as np

HUBER_THRESHOLD = 1e-3  # of log losses
# Five coefficients pass through five points, whatever their losses; the sixth tests them.
LEAST_POINTS = 6
# Two sizes fix A / N^alpha up to a constant, and E is that constant.
LEAST_DISTINCT = 3
# Below, a term changes by less than 3 % over ten decades; above, it is there at one end alone.
LEAST_EXPONENT, GREATEST_EXPONENT = 1e-3, 10.0

# The starts of Hoffmann et al. 2022, appendix D.3: alpha, beta; log E; log A, log B.
EXPONENT_STARTS = (0.0, 0.5, 1.0, 1.5, 2.0)
LOG_IRREDUCIBLE_STARTS = (-1.0, -0.5, 0.0, 0.5, 1.0)
LOG_SCALE_STARTS = (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)

# Two ends are one minimum if they differ by less than this share of the objective. If points are
# exactly on a law the objective is zero: then of the term of one point at the Huber threshold.
_SAME = 1e-6
# Numbers per temporary array: several times as fast while a core's cache holds them.
_BLOCK = 16_384


@dataclasses.dataclass(frozen=True)
class Fit:
    """A law and how well the points hold it.

    Attributes:
      law: the coefficients that minimise the objective. Its `params_exponent_interval` is the 10 %
        to 90 % bootstrap interval of a = beta / (alpha + beta), as Hoffmann et al. print theirs.
      objective: the minimum, a sum of Huber terms over the points.
      log_residual_rms: root mean square of log L(N_i, D_i) - log L_i.
      points: how many.
      params_range, tokens_range: least and greatest N and D among them.
      agreeing_starts: how many of the grid's starts ended in this minimum; where only one or two
        did, there may be a lower one.
      starts: the starts of the grid.
      intervals: 95 % bootstrap intervals of E, A, B, alpha, beta and a; empty without a bootstrap.
    """

    law: ParametricLaw
    objective: float
    log_residual_rms: float
    points: int
    params_range: tuple[float, float]
    tokens_range: tuple[float, float]
    agreeing_starts: int
    starts: int
    intervals: dict[str, tuple[float, float]]

    def coefficients(self) -> dict[str, float]:
        """The fitted values, by the names of `intervals`."""
        law = self.law
        alpha, beta = law.params_exponent, law.tokens_exponent
        return {
            "E": law.irreducible,
            "A": law.params_scale,
            "B": law.tokens_scale,
            "alpha": alpha,
            "beta": beta,
            "a": beta / (alpha + beta),
        }


def fit_parametric_law(
    params: Sequence[float],
    tokens: Sequence[float],
    losses: Sequence[float],
    *,
    name: str,
    source: str = "a user's own points",
    bootstrap: int = 4000,
    seed: int = 0,
) -> Fit:
    """The law through points (N, D, L), with intervals from resampling them.

    Args:
      params: N of each run, every parameter counted.
      tokens: D of each run.
      losses: final loss of each run, nats per token.
      name: of the law.
      source: whose points they are.
      bootstrap: resamples of the points, with replacement; 0 for none. Every resample is minimised
        from the fit to all points. On Hoffmann's points this finds the minimum that the whole grid
        finds.
      seed: of the resampling.

    Raises:
      UsageError: see check_points; a negative `bootstrap`; points whose best law does not fall with
        N or with D, or only between the two least.
    """
    import numpy as np

    check_points(params, tokens, losses)
    at_least("bootstrap", bootstrap, 0)
    log_params, log_tokens, log_losses = (
        np.log(np.asarray(values, np.float64)) for values in (params, tokens, losses)
    )

    def all_points(coefficients: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return objective(coefficients, log_params, log_tokens, log_losses)

    found, values = minimise(all_points, starts())
    best = int(values.argmin())
    a, b, e, alpha, beta = found[best].tolist()
    for key, exponent, size in (("alpha", alpha, "N"), ("beta", beta, "D")):
        if not LEAST_EXPONENT < exponent < GREATEST_EXPONENT:
            falls = "does not fall" if exponent <= LEAST_EXPONENT else "falls at once, then no more"
            raise UsageError(
                f"the best fit to these {len(losses)} points has {key} = {exponent:.3g}: their "
                f"loss {falls} with {size}; add runs with {size} in between or further apart"
            )
    intervals, exponent_interval = {}, None
    if bootstrap:
        resamples = _bootstrap(
            found[best], log_params, log_tokens, log_losses, count=bootstrap, seed=seed
        )
        intervals = {key: _quantiles(drawn, 0.025, 0.975) for key, drawn in resamples.items()}
        exponent_interval = _quantiles(resamples["a"], 0.1, 0.9)
    flops = [6.0 * n * d for n, d in zip(params, tokens, strict=True)]
    law = ParametricLaw(
        name,
        irreducible=math.exp(e),
        params_scale=math.exp(a),
        tokens_scale=math.exp(b),
        params_exponent=alpha,
        tokens_exponent=beta,
        source=source,
        fitted_flops=(min(flops), max(flops)),
        params_exponent_interval=exponent_interval,
    )
    predicted = np.log([law.loss(n, d) for n, d in zip(params, tokens, strict=True)])
    return Fit(
        law=law,
        objective=float(values[best]),
        log_residual_rms=float(np.sqrt(np.mean((predicted - log_losses) ** 2))),
        points=len(losses),
        params_range=(float(min(params)), float(max(params))),
        tokens_range=(float(min(tokens)), float(max(tokens))),
        agreeing_starts=int(
            np.sum(values - values[best] <= _SAME * (values[best] + HUBER_THRESHOLD**2))
        ),
        starts=len(values),
        intervals=intervals,
    )


def check_points(params: Sequence[float], tokens: Sequence[float], losses: Sequence[float]) -> None:
    """Checks that a law can be fitted to the points.

    Raises:
      UsageError: columns of different lengths, a value that is no positive number (with its column
        and the point, counted from 1), fewer than six points, fewer than three distinct N or D.
    """
    columns = {"params": params, "tokens": tokens, "loss": losses}
    if len({len(values) for values in columns.values()}) != 1:
        lengths = ", ".join(f"{len(values)} of {name}" for name, values in columns.items())
        raise UsageError(f"points need a value in every column, not {lengths}")
    for name, values in columns.items():
        for number, value in enumerate(values, start=1):
            if not (value > 0 and math.isfinite(value)):
                raise UsageError(f"point {number}: {name} = {value!r} is not a positive number")
    if len(losses) < LEAST_POINTS:
        raise UsageError(
            f"too few points, {len(losses)}: five coefficients need at least {LEAST_POINTS}, and "
            "useful intervals need dozens"
        )
    for name in ("params", "tokens"):
        distinct = sorted(set(columns[name]))
        if len(distinct) < LEAST_DISTINCT:
            raise UsageError(
                f"{name} has {len(distinct)} distinct values among the points "
                f"({', '.join(f'{value:.4g}' for value in distinct)}): "
                f"at least {LEAST_DISTINCT} are needed to separate its exponent from E"
            )


def starts() -> np.ndarray:
    """float64 [4500, 5]: every combination of the starts, as (a, b, e, alpha, beta)."""
    import numpy as np

    return np.array(
        list(
            itertools.product(
                LOG_SCALE_STARTS,
                LOG_SCALE_STARTS,
                LOG_IRREDUCIBLE_STARTS,
                EXPONENT_STARTS,
                EXPONENT_STARTS,
            )
        )
    )


def objective(
    coefficients: np.ndarray,
    log_params: np.ndarray,
    log_tokens: np.ndarray,
    log_losses: np.ndarray,
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The sum of Huber terms and its gradient, for R sets of coefficients.

    Args:
      coefficients: float64 [R, 5], rows (a, b, e, alpha, beta).
      log_params, log_tokens, log_losses: float64 [n].
      weights: [R, n], how often each point counts; None counts every point once.

    Returns:
      float64 [R] and [R, 5]; not finite where coefficients are so far out that a term overflows.
    """
    import numpy as np

    rows = max(1, _BLOCK // len(log_losses))
    blocks = []
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        for start in range(0, len(coefficients), rows):
            block = slice(start, start + rows)
            a, b, e, alpha, beta = (column[:, None] for column in coefficients[block].T)
            # The maximum of the exponents is not subtracted first: that would take twice as long.
            # The exponentials overflow only far from a minimum, where the line search steps back.
            of_params = np.exp(a - alpha * log_params)
            of_tokens = np.exp(b - beta * log_tokens)
            irreducible = np.exp(e)
            loss = of_params + of_tokens + irreducible
            residual = (np.log(loss) - log_losses) / HUBER_THRESHOLD
            slope = np.clip(residual, -1, 1)
            # Huber: r^2 / 2 within the threshold, which is 1 here, and |r| - 1 / 2 outside it.
            terms = slope * (residual - slope / 2)
            if weights is not None:
                terms *= weights[block]
                slope *= weights[block]
            slope *= HUBER_THRESHOLD / loss
            of_params *= slope
            of_tokens *= slope
            gradient = (
                of_params.sum(1),
                of_tokens.sum(1),
                slope.sum(1) * irreducible[:, 0],
                -(of_params @ log_params),
                -(of_tokens @ log_tokens),
            )
            blocks.append((terms.sum(1) * HUBER_THRESHOLD**2, np.stack(gradient, axis=1)))
    values, gradients = zip(*blocks, strict=True)
    return np.concatenate(values), np.concatenate(gradients)


def _bootstrap(
    fitted: np.ndarray,
    log_params: np.ndarray,
    log_tokens: np.ndarray,
    log_losses: np.ndarray,
    *,
    count: int,
    seed: int,
) -> dict[str, np.ndarray]:
    """E, A, B, alpha, beta and a of `count` resamples of the points: name -> float64 [count]."""
    import numpy as np

    points = len(log_losses)
    weights = np.random.default_rng(folded_seed(seed)).multinomial(
        points, np.full(points, 1 / points), size=count
    )

    def resampled(coefficients: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return objective(coefficients, log_params, log_tokens, log_losses, weights[rows])

    found, _ = minimise(resampled, np.tile(fitted, (count, 1)))
    a, b, e, alpha, beta = found.T
    with np.errstate(over="ignore"):
        return {
            "E": np.exp(e),
            "A": np.exp(a),
            "B": np.exp(b),
            "alpha": alpha,
            "beta": beta,
            "a": beta / (alpha + beta),
        }


def _quantiles(values: np.ndarray, low: float, high: float) -> tuple[float, float]:
    import numpy as np

    # No interpolation between two values: a resample of few points may have a scale that is not
    # finite.
    below, above = np.quantile(values, (low, high), method="nearest").tolist()
    return below, above
