"""From a budget and its data to a run that a team could sign."""

from t5x_style.accounting.planner.allocation import Allocation, optima, within_data
from t5x_style.accounting.planner.budget import Budget, budget_of, chip_flops
from t5x_style.accounting.planner.plan import Plan, make_plan, recommending_law
from t5x_style.accounting.planner.sources import FREE_EPOCHS, Sources, blend, sources_of

__all__ = [
    "FREE_EPOCHS",
    "Allocation",
    "Budget",
    "Plan",
    "Sources",
    "blend",
    "budget_of",
    "chip_flops",
    "make_plan",
    "optima",
    "recommending_law",
    "sources_of",
    "within_data",
]
