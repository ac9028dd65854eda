"""Many runs from one description: a grid of trials, run, continued and compared."""

from t5x_style.sweeps.grid import Trial, gin_flag, gin_text, grid_trials
from t5x_style.sweeps.points import (
    BLENDED,
    LeftOut,
    Point,
    points_of_csv,
    points_of_runs,
    without_highest,
)
from t5x_style.sweeps.record import SweepRecord, TrialEntry, read_sweep
from t5x_style.sweeps.results import results_table, trial_result
from t5x_style.sweeps.trials import run_trials

__all__ = [
    "BLENDED",
    "LeftOut",
    "Point",
    "SweepRecord",
    "Trial",
    "TrialEntry",
    "gin_flag",
    "gin_text",
    "grid_trials",
    "points_of_csv",
    "points_of_runs",
    "read_sweep",
    "results_table",
    "run_trials",
    "trial_result",
    "without_highest",
]
