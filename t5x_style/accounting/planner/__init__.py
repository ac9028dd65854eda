"""From a budget and its data to a run that a team could sign."""

from t5x_style.accounting.planner.budget import (
    FREE_EPOCHS,
    Allocation,
    allocations,
    blend,
    chip_flops,
    token_cap,
)

__all__ = ["FREE_EPOCHS", "Allocation", "allocations", "blend", "chip_flops", "token_cap"]
