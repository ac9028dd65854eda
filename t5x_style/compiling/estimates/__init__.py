"""The seconds of a compiled step under named assumptions."""

from t5x_style.compiling.estimates.assumptions import ASSUMPTIONS
from t5x_style.compiling.estimates.estimate import StepEstimate, estimate

__all__ = ["ASSUMPTIONS", "StepEstimate", "estimate"]
