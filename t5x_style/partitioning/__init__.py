"""Mesh, rules and shardings: where the arrays of a run lie."""

from t5x_style.partitioning.described import USABLE_BYTES, described_devices
from t5x_style.partitioning.sharding import (
    batch_sharding,
    check_divisible,
    check_sharded,
    shardings_of,
)
from t5x_style.partitioning.topology import DEFAULT_RULES, MESH_AXES, Topology

__all__ = [
    "DEFAULT_RULES",
    "MESH_AXES",
    "USABLE_BYTES",
    "Topology",
    "batch_sharding",
    "check_divisible",
    "check_sharded",
    "described_devices",
    "shardings_of",
]
