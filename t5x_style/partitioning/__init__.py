"""Mesh, rules and shardings: where the arrays of a run lie."""

from t5x_style.partitioning.described import USABLE_BYTES, described_devices
from t5x_style.partitioning.hosts import Hosts, from_writer, is_writer, told_to_leave
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
    "Hosts",
    "Topology",
    "batch_sharding",
    "check_divisible",
    "check_sharded",
    "described_devices",
    "from_writer",
    "is_writer",
    "shardings_of",
    "told_to_leave",
]
