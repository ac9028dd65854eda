"""Shardings of parameters, optimizer state and batches, and the checks that they are real."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.topology import HEADS, KV_HEADS, Topology
from t5x_style.errors import UsageError


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over every axis that splits the batch; a row stays whole on its device.

    The sequence axis splits activations, not the few bytes of token ids.
    """
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shardings_of(tree: Any, parameters: Any, mesh: Mesh) -> Any:
    """Shardings for any state that holds parameter-shaped parts, such as an optimizer's.

    Args:
      tree: pytree of arrays or ShapeDtypeStructs.
      parameters: pytree of ShapeDtypeStructs that carry a sharding.
      mesh: for the leaves that belong to no parameter, which are replicated.

    Returns:
      A pytree like `tree`: a leaf whose path ends in a parameter's path has that parameter's
      sharding. (`jax.eval_shape` of an optimizer's init would give none.)
    """
    known = {
        leaf_name(path): leaf.sharding
        for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]
    }

    def find(path, leaf):
        names = leaf_name(path).split("/")
        for start in range(len(names)):
            if (sharding := known.get("/".join(names[start:]))) is not None and leaf.ndim:
                return sharding
        return replicated(mesh)

    return jax.tree_util.tree_map_with_path(find, tree)


def check_heads(architecture: Architecture, topology: Topology) -> None:
    """Refuse rules under which a device would hold heads of queries without their keys.

    Each device attends with its own heads, the n-th query heads with the n-th keys. A single
    unsplit head of keys and values serves queries that are split.

    Raises:
      UsageError: `heads` and `kv_heads` are on different axes, and there are several of the latter.
    """
    queries, keys = (
        tuple(axis for axis in topology.axes_of(name) if getattr(topology, axis) > 1)
        for name in (HEADS, KV_HEADS)
    )
    if queries != keys and not (architecture.kv_heads == 1 and not keys):
        raise UsageError(
            f"Topology.rules puts {HEADS!r} on {_axes_text(queries)} and "
            f"{KV_HEADS!r} on {_axes_text(keys)}, but with Architecture.kv_heads = "
            f"{architecture.kv_heads} a device would not hold the keys of its queries. Give both "
            f"the same axes, of a size that divides {architecture.kv_heads}"
        )


def _axes_text(axes: tuple[str, ...]) -> str:
    return f"the mesh's {' x '.join(axes)}" if axes else "no axis of the mesh"


def check_sharded(parameters: Any, topology: Topology) -> float:
    """The share of the parameters' bytes that is unsplit where the mesh could split it.

    A leaf split over s of the S devices of the axes that split parameters counts with
    bytes * (1 - s / S) * S / (S - 1): nothing where s = S, all of it where s = 1.

    Raises:
      UsageError: the share is above the topology's tolerance; names the three largest leaves.
    """
    possible = topology.fsdp * topology.tensor
    if possible == 1:
        return 0.0
    unsharded: dict[str, float] = {}
    total = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        shards = _shards(leaf.sharding, topology.mesh_shape)
        total += size
        unsharded[leaf_name(path)] = size * (1 - shards / possible) * possible / (possible - 1)
    share = sum(unsharded.values()) / total
    if share > topology.unsharded_tolerance:
        worst = sorted(unsharded, key=lambda name: unsharded[name], reverse=True)[:3]
        raise UsageError(
            f"{share:.1%} of the parameters' bytes are unsharded on a mesh of fsdp="
            f"{topology.fsdp}, tensor={topology.tensor} (Topology.unsharded_tolerance = "
            f"{topology.unsharded_tolerance:.1%}); the largest: {', '.join(worst)}"
        )
    return share


def _shards(sharding: NamedSharding, mesh_shape: Mapping[str, int]) -> int:
    axes: list[str] = []
    for entry in sharding.spec:
        if entry is not None:
            axes.extend((entry,) if isinstance(entry, str) else entry)
    return math.prod(mesh_shape[axis] for axis in axes)


def leaf_name(path: tuple) -> str:
    """A leaf's path in a pytree as people read it: `blocks/attention/out/weight`."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
