"""Mesh, rules and shardings: where the arrays of a run are placed."""

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
    "Topology",
    "batch_sharding",
    "check_divisible",
    "check_sharded",
    "shardings_of",
]
