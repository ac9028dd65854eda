"""BFGS from many starts at once, for functions with kinks.

The residuals of real runs are ten times the Huber threshold of `fitting.py`. Its objective has a
kink at almost every point, and gradients do not shrink on the way to the minimum. BFGS with a weak
Wolfe search by bisection converges on such functions (Lewis and Overton 2013, "Nonsmooth
optimization via quasi-Newton methods").

It is written out here for many starts at once. On five coefficients the whole inverse Hessian is
smaller than the memory that L-BFGS keeps of it, and all starts together take as long as a few dozen
one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# A start is done when the next step promises less than this share of the objective, or than the
# rounding error of an objective of zero. Looser shares end on flat stretches between two kinks.
_TOLERANCE, _ROUNDING = 1e-14, 1e-30
_ITERATIONS = 400
_ENOUGH_DECREASE, _ENOUGH_CURVATURE = 1e-4, 0.9  # of the Wolfe conditions


def minimise(
    function: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    starting_points: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """BFGS from every start, one iteration of all starts at a time.

    An iteration tries one step for each start that is not done. Where the step meets the weak Wolfe
    conditions, it is taken and the direction is updated. Elsewhere the step is halved or doubled
    within the bounds that earlier iterations found (Lewis and Overton 2013, algorithm 4.6).

    Args:
      function: (points [K, M], the starts that they belong to [K]) -> values [K], gradients [K, M].
      starting_points: float64 [R, M], where `function` is finite.

    Rechanges:
      The point where each start ended, [R, M], and the values there, [R].
    """
    import numpy as np

    points = starting_points.copy()
    count, size = points.shape
    values, gradients = function(points, np.arange(count))
    inverse_hessians = np.tile(np.eye(size), (count, 1, 1))
    fresh = np.ones(count, bool)
    # The first step has length one: the length of the gradient is no measure of the distance.
    lengths = np.linalg.norm(gradients, axis=1)
    directions = -gradients / np.where(lengths > 0, lengths, 1)[:, None]
    steps, shortest, longest = np.ones(count), np.zeros(count), np.full(count, np.inf)
    active = np.flatnonzero(lengths > 0)
    for _ in range(_ITERATIONS):
        if not len(active):
            break
        trials = points[active] + steps[active, None] * directions[active]
        trial_values, trial_gradients = function(trials, active)
        slopes = (gradients[active] * directions[active]).sum(1)
        trial_slopes = (trial_gradients * directions[active]).sum(1)
        lower = trial_values <= values[active] + _ENOUGH_DECREASE * steps[active] * slopes
        flatter = trial_slopes >= _ENOUGH_CURVATURE * slopes

        too_long, too_short = active[~lower], active[lower & ~flatter]
        longest[too_long] = steps[too_long]
        shortest[too_short] = steps[too_short]
        retried = active[~(lower & flatter)]
        steps[retried] = np.where(
            np.isinf(longest[retried]),
            2 * shortest[retried],
            (shortest[retried] + longest[retried]) / 2,
        )

        taken = lower & flatter
        moved = active[taken]
        moves, changes = trials[taken] - points[moved], trial_gradients[taken] - gradients[moved]
        points[moved], values[moved] = trials[taken], trial_values[taken]
        gradients[moved] = trial_gradients[taken]
        inverse_hessians[moved] = _updated(inverse_hessians[moved], moves, changes, fresh[moved])
        fresh[moved] = False
        directions[moved] = -np.einsum("kij,kj->ki", inverse_hessians[moved], gradients[moved])
        steps[moved], shortest[moved], longest[moved] = 1, 0, np.inf

        promised = -(gradients[active] * directions[active]).sum(1) * steps[active]
        active = active[promised > _TOLERANCE * values[active] + _ROUNDING]
    return points, values


def _updated(
    inverse_hessians: np.ndarray, moves: np.ndarray, changes: np.ndarray, fresh: np.ndarray
) -> np.ndarray:
    """The BFGS update of inverse Hessians [K, M, M] after moves [K, M] and the gradients' changes.

    The Wolfe conditions make every move . change positive. A fresh inverse Hessian, the identity,
    is first scaled by the curvature along the move (Nocedal and Wright, equation 6.20).
    """
    import numpy as np

    along = (moves * changes).sum(1)
    scale = np.where(fresh, along / (changes**2).sum(1), 1)
    inverse_hessians = inverse_hessians * scale[:, None, None]
    scaled_changes = np.einsum("kij,kj->ki", inverse_hessians, changes)
    cross = scaled_changes[:, :, None] * moves[:, None, :]
    factor = (1 + (changes * scaled_changes).sum(1) / along) / along
    return (
        inverse_hessians
        - (cross + cross.transpose(0, 2, 1)) / along[:, None, None]
        + factor[:, None, None] * moves[:, :, None] * moves[:, None, :]
    )
