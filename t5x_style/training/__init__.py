"""A training run: resolved, opened, trained, evaluated and saved."""

from t5x_style.training.derived import derive
from t5x_style.training.early_stopping import EarlyStopping
from t5x_style.training.evaluation import EvaluationSums, Evaluator, Metric
from t5x_style.training.loop import train
from t5x_style.training.run import Run, open_run, within_caps

__all__ = [
    "EarlyStopping",
    "EvaluationSums",
    "Evaluator",
    "Metric",
    "Run",
    "derive",
    "open_run",
    "train",
    "within_caps",
]
