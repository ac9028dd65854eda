"""Train state, train step, loop, evaluation, checkpoints, sampling."""

from t5x_style.training.derived_table import (
    ACHIEVED_HEADERS,
    SOURCE_HEADERS,
    achieved_rows,
    derived_rows,
    source_rows,
)
from t5x_style.training.early_stopping import EarlyStopping
from t5x_style.training.evaluation import Evaluator
from t5x_style.training.loop import train
from t5x_style.training.restored import RestoredModel, restore_model
from t5x_style.training.run import Run, read_plan, within_caps
from t5x_style.training.sampling import sample

__all__ = [
    "ACHIEVED_HEADERS",
    "SOURCE_HEADERS",
    "EarlyStopping",
    "Evaluator",
    "RestoredModel",
    "Run",
    "achieved_rows",
    "derived_rows",
    "read_plan",
    "restore_model",
    "sample",
    "source_rows",
    "train",
    "within_caps",
]
