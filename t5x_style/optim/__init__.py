"""Schedules in tokens, and optimizers as optax transformations."""

from t5x_style.optim.adamw import AdamW
from t5x_style.optim.optimizer import LearningRateSchedule, Optimizer
from t5x_style.optim.schedule import Schedule

__all__ = ["AdamW", "LearningRateSchedule", "Optimizer", "Schedule"]
