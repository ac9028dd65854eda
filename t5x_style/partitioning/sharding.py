"""Shardings of parameters, optimizer state and batches, and the checks that they are real."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from t5x_style.accounting.architecture import Architecture
from t5x_style.errors import UsageError
from t5x_style.models import logical
from t5x_style.partitioning.topology import Topology


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


def check_divisible(
    architecture: Architecture, topology: Topology, batch_size: int, sequence_length: int
) -> None:
    """Refuse a mesh that does not divide what it splits, and chunks that do not.

    Raises:
      UsageError: naming the size, the axes and the next size that would do.
    """
    a = architecture
    rules = dict(topology.logical_rules)
    rows = (logical.VOCAB, logical.EMBED, logical.MLP_ROWS, logical.HEADS_ROWS)
    for what, size, axis in (
        ("the batch", batch_size, logical.BATCH),
        ("the sequence length", sequence_length, logical.SEQUENCE),
        ("Architecture.heads", a.heads, logical.HEADS),
        ("Architecture.kv_heads", a.kv_heads, logical.KV_HEADS),
        ("Architecture.d_ff", a.d_ff, logical.MLP),
        ("Architecture.d_ff", a.d_ff, logical.MLP_ROWS),
        ("Architecture.vocab_size", a.vocab_size, logical.VOCAB),
        ("Architecture.d_model", a.d_model, logical.EMBED),
        ("heads x head_dim", a.heads * a.head_dim, logical.HEADS_ROWS),
    ):
        axes = logical.flat(rules[axis])
        if axis in rows:
            axes += tuple(each for each in logical.flat(rules[logical.UPDATES]) if each not in axes)
        by = math.prod(topology.mesh_shape[name] for name in axes)
        named = f"the mesh's {' x '.join(axes)}"
        if axis == logical.SEQUENCE and by > 1:
            # The devices trade halves of what they have (see `models.attention`).
            by, named = 2 * by, f"twice {named}"
        if size % by:
            raise UsageError(
                f"{what} = {size} is not a multiple of {named} = {by}: the "
                f"next that is: {-(-size // by) * by}"
            )
    replicas = math.prod(topology.mesh_shape[name] for name in logical.flat(rules[logical.UPDATES]))
    if a.positions == "learned" and a.max_length % replicas:
        raise UsageError(
            f"Architecture.max_length = {a.max_length} is not a multiple of the mesh's data = "
            f"{replicas}, over which Topology.shard_optimizer_over_data splits the positions' "
            f"state: the next that is: {-(-a.max_length // replicas) * replicas}"
        )
    own_words = a.vocab_size // math.prod(
        topology.mesh_shape[name] for name in logical.flat(rules[logical.VOCAB])
    )
    if own_words % topology.loss_vocab_chunks:
        divisors = [n for n in range(1, own_words + 1) if own_words % n == 0]
        nearest = min(divisors, key=lambda n: abs(n - topology.loss_vocab_chunks))
        raise UsageError(
            f"Topology.loss_vocab_chunks = {topology.loss_vocab_chunks} does not divide the "
            f"{own_words} words that a device holds of the vocabulary: the nearest that does: "
            f"{nearest}"
        )


def check_heads(architecture: Architecture, topology: Topology) -> None:
    """Refuse rules under which a device would hold heads of queries without their keys.

    Each device attends with the heads that lie there, its n-th query heads with its n-th keys. A
    single head of keys and values that lies whole serves queries that are split.

    Raises:
      UsageError: `heads` and `kv_heads` lie on different axes, and there are several of the latter.
    """
    rules, sizes = dict(topology.logical_rules), topology.mesh_shape
    queries, keys = (
        tuple(axis for axis in logical.flat(rules[name]) if sizes[axis] > 1)
        for name in (logical.HEADS, logical.KV_HEADS)
    )
    if queries != keys and not (architecture.kv_heads == 1 and not keys):
        raise UsageError(
            f"Topology.rules puts {logical.HEADS!r} on {_listed(queries)} and "
            f"{logical.KV_HEADS!r} on {_listed(keys)}: with Architecture.kv_heads = "
            f"{architecture.kv_heads} a device would not hold the keys of its queries. Give both "
            f"the same axes, of a size that divides {architecture.kv_heads}"
        )


def _listed(axes: tuple[str, ...]) -> str:
    return f"the mesh's {' x '.join(axes)}" if axes else "no axis of the mesh"


def check_sharded(parameters: Any, topology: Topology) -> float:
    """The share of the parameters' bytes that lies whole where the mesh could split it.

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
            f"{share:.1%} of the parameters' bytes lie unsharded on a mesh of fsdp="
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
