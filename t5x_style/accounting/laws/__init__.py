"""Scaling laws, one file per question they answer."""

from t5x_style.accounting.laws import (
    batch_and_learning_rate,
    data_constrained,
    inference,
    kaplan,
    mixing,
    vocabulary,
)
from t5x_style.accounting.laws.chinchilla import (
    APPROACH_3,
    HOFFMANN_PRINTED,
    LAWS,
    FrontierLaw,
    Law,
    ParametricLaw,
)
from t5x_style.accounting.laws.kaplan import KAPLAN

__all__ = [
    "APPROACH_3",
    "HOFFMANN_PRINTED",
    "KAPLAN",
    "LAWS",
    "FrontierLaw",
    "Law",
    "ParametricLaw",
    "batch_and_learning_rate",
    "data_constrained",
    "inference",
    "kaplan",
    "mixing",
    "vocabulary",
]
