"""A trained model, restored to evaluate it, to sample from it or to export it."""

from t5x_style.inference.export import export_parameters
from t5x_style.inference.restored import RestoredModel, restore_model
from t5x_style.inference.sampling import sample

__all__ = ["RestoredModel", "export_parameters", "restore_model", "sample"]
