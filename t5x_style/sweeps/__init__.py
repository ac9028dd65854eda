"""Many runs from one description: a grid of trials, run, continued and compared."""

from t5x_style.sweeps.grid import Trial, gin_flag, grid_trials
from t5x_style.sweeps.points import (
    Point,
    points_of_csv,
    points_of_runs,
    without_highest,
)
from t5x_style.sweeps.results import results_table, trial_result
from t5x_style.sweeps.trials import run_trials

__all__ = [
    "Point",
    "Trial",
    "gin_flag",
    "grid_trials",
    "points_of_csv",
    "points_of_runs",
    "results_table",
    "run_trials",
    "trial_result",
    "without_highest",
]
