"""A trained model, restored to evaluate it or to sample from it."""

from t5x_style.inference.restored import RestoredModel, restore_model
from t5x_style.inference.sampling import sample

__all__ = ["RestoredModel", "restore_model", "sample"]
