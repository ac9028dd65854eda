"""From a budget and its data to a run that a team could sign."""

from t5x_style.accounting.planner.allocation import Allocation
from t5x_style.accounting.planner.budget import Budget, budget_of
from t5x_style.accounting.planner.plan import Plan, make_plan, recommending_law
from t5x_style.accounting.planner.sources import FREE_EPOCHS, SourceLimits, sources_of

__all__ = [
    "FREE_EPOCHS",
    "Allocation",
    "Budget",
    "Plan",
    "SourceLimits",
    "budget_of",
    "make_plan",
    "recommending_law",
    "sources_of",
]
