"""Parameters, FLOPs, chips, seconds and scaling laws: pure functions on plain numbers, no jax."""

from t5x_style.accounting import bloomberggpt
from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.auditor import Auditor, audit, laws_of_audit
from t5x_style.accounting.chips import CHIPS, Chip, chip, chip_of_device_kind
from t5x_style.accounting.flops import (
    CONVENTIONS,
    REMAT_RECOMPUTES,
    forward_flops_per_token,
    training_flops_per_token,
)
from t5x_style.accounting.laws import LAWS, FrontierLaw, Law, ParametricLaw
from t5x_style.accounting.laws.own import read_law
from t5x_style.accounting.ledger import Ledger
from t5x_style.accounting.parameter_count import (
    non_embedding_parameters,
    parameters,
    total_parameters,
)
from t5x_style.accounting.planner import (
    FREE_EPOCHS,
    Allocation,
    Budget,
    Plan,
    Sources,
    budget_of,
    make_plan,
    recommending_law,
    sources_of,
)
from t5x_style.accounting.quantities import bits_per_byte, count, duration, scientific
from t5x_style.accounting.verdicts import verdict, verdict_of_line

__all__ = [
    "CHIPS",
    "CONVENTIONS",
    "FREE_EPOCHS",
    "LAWS",
    "REMAT_RECOMPUTES",
    "Allocation",
    "Architecture",
    "Auditor",
    "Budget",
    "Chip",
    "FrontierLaw",
    "Law",
    "Ledger",
    "ParametricLaw",
    "Plan",
    "Sources",
    "audit",
    "bits_per_byte",
    "bloomberggpt",
    "budget_of",
    "chip",
    "chip_of_device_kind",
    "count",
    "duration",
    "forward_flops_per_token",
    "laws_of_audit",
    "make_plan",
    "non_embedding_parameters",
    "parameters",
    "read_law",
    "recommending_law",
    "scientific",
    "sources_of",
    "total_parameters",
    "training_flops_per_token",
    "verdict",
    "verdict_of_line",
]
