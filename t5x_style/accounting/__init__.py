"""Parameters, FLOPs, chips, seconds and scaling laws: pure functions on plain numbers, no jax."""

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.audit import bloomberggpt
from t5x_style.accounting.audit.audit_record import Audit, LawAudit
from t5x_style.accounting.audit.auditor import Auditor, audit, laws_of_audit
from t5x_style.accounting.audit.ledger import Ledger
from t5x_style.accounting.audit.source_account import SourceAccount
from t5x_style.accounting.audit.verdicts import verdict, verdict_of_line
from t5x_style.accounting.chips import CHIPS, Chip, chip, chip_of_device_kind
from t5x_style.accounting.feed_forward import FeedForwardKind
from t5x_style.accounting.flops import (
    CONVENTIONS,
    forward_flops_per_token,
    training_flops_per_token,
)
from t5x_style.accounting.laws import LAWS, FrontierLaw, Law, ParametricLaw
from t5x_style.accounting.laws.own import read_law
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
    SourceLimits,
    budget_of,
    make_plan,
    recommending_law,
    sources_of,
)
from t5x_style.accounting.step_shape import StepShape
from t5x_style.accounting.topology import MESH_AXES, ONE_DEVICE, Topology, mesh_text

__all__ = [
    "CHIPS",
    "CONVENTIONS",
    "FREE_EPOCHS",
    "LAWS",
    "MESH_AXES",
    "ONE_DEVICE",
    "Allocation",
    "Architecture",
    "Audit",
    "Auditor",
    "Budget",
    "Chip",
    "FeedForwardKind",
    "FrontierLaw",
    "Law",
    "LawAudit",
    "Ledger",
    "ParametricLaw",
    "Plan",
    "SourceAccount",
    "SourceLimits",
    "StepShape",
    "Topology",
    "audit",
    "bloomberggpt",
    "budget_of",
    "chip",
    "chip_of_device_kind",
    "forward_flops_per_token",
    "laws_of_audit",
    "make_plan",
    "mesh_text",
    "non_embedding_parameters",
    "parameters",
    "read_law",
    "recommending_law",
    "sources_of",
    "total_parameters",
    "training_flops_per_token",
    "verdict",
    "verdict_of_line",
]
