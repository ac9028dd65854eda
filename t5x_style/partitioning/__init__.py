"""Mesh, rules and shardings: where the arrays of a run are placed."""

from t5x_style.partitioning.mesh import in_force, make_mesh
from t5x_style.partitioning.sharding import batch_sharding, check_sharded, shardings_of

__all__ = ["batch_sharding", "check_sharded", "in_force", "make_mesh", "shardings_of"]
