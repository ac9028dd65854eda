"""Scaling laws, one file per question they answer."""

from t5x_style.accounting.laws import (
    batch_and_learning_rate,
    data_constrained,
    kaplan,
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
from t5x_style.accounting.laws.fitting import Fit, fit_parametric_law
from t5x_style.accounting.laws.kaplan import KAPLAN
from t5x_style.accounting.laws.own import check_law_name, read_law, write_law

__all__ = [
    "APPROACH_3",
    "HOFFMANN_PRINTED",
    "KAPLAN",
    "LAWS",
    "Fit",
    "FrontierLaw",
    "Law",
    "ParametricLaw",
    "batch_and_learning_rate",
    "check_law_name",
    "data_constrained",
    "fit_parametric_law",
    "kaplan",
    "read_law",
    "vocabulary",
    "write_law",
]
