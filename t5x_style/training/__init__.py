"""A run: resolved, opened, trained, evaluated, saved."""

from t5x_style.training.early_stopping import EarlyStopping
from t5x_style.training.evaluation import Evaluator
from t5x_style.training.loop import train
from t5x_style.training.run import Run, read_plan, within_caps

__all__ = ["EarlyStopping", "Evaluator", "Run", "read_plan", "train", "within_caps"]
