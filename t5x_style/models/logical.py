"""Logical axis names, and how they become mesh axes through the rules that are in force.

A model names what an axis IS (`batch`, `heads`, `vocab`). The rules of the partitioning room map it
to mesh axes. Outside of a mesh the functions here do nothing, so a model runs in a notebook.
"""

from collections.abc import Callable

import jax
from flax.core import spmd
from jax.sharding import PartitionSpec

from t5x_style.accounting.topology import (  # noqa: F401 - the names by which models say what an axis is
    BATCH,
    EMBED,
    HEADS,
    HEADS_ROWS,
    KV_HEADS,
    LAYERS,
    MLP,
    MLP_ROWS,
    NORM,
    SEQUENCE,
    UPDATES,
    VOCAB,
    flat,
)


def mesh_axes(*names: str | None) -> PartitionSpec:
    """The partition spec of logical axes under the rules in force; None stays None.

    Raises:
      KeyError: a name has no rule.
      ValueError: two axes of one array would be on the same mesh axis.
    """
    rules = dict(spmd.get_logical_axis_rules())
    entries = [None if name is None else rules[name] for name in names]
    used: dict[str, str] = {}
    for name, entry in zip(names, entries, strict=True):
        for axis in flat(entry):
            if axis in used:
                raise ValueError(
                    f"logical axes {used[axis]!r} and {name!r} of one array both map to the mesh "
                    f"axis {axis!r}"
                )
            used[axis] = str(name)
    return PartitionSpec(*entries)


def update_axes(*names: str | None) -> PartitionSpec:
    """The partition spec of a parameter's gradient and optimizer state, given its logical axes.

    It is that of the parameter, with the rows of a matrix split over the axes of `updates` as well.
    Rows are the first axis after `layers`, so that shards stay wide where the TPU's tiles are.
    """
    spec, first = mesh_axes(*names), int(names[0] == LAYERS)
    used = {axis for entry in spec for axis in flat(entry)}
    more = tuple(axis for axis in axis_names(UPDATES) if axis not in used)
    if not more or len(names) < first + 2:
        return spec
    return PartitionSpec(*spec[:first], (*flat(spec[first]), *more), *spec[first + 1 :])


def axis_names(name: str) -> tuple[str, ...]:
    """The mesh axes that split a logical axis: () outside of a mesh or where it is whole."""
    return flat(mesh_axes(name)[0]) if in_mesh() else ()


def in_mesh() -> bool:
    """Whether a mesh is in force."""
    return not jax.sharding.get_abstract_mesh().empty


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
    """Pin an activation to the mesh by its logical axes; the same array outside of a mesh."""
    if not in_mesh():
        return x
    return jax.lax.with_sharding_constraint(x, mesh_axes(*names))


def scatter_gradient(x: jax.Array, *names: str | None) -> jax.Array:
    """The same parameter; its gradient is reduced to its own shards, then to those of `updates`.

    In one stage it would be a reduction over all chips. A TPU turns that into an all-reduce of the
    whole matrix: every chip then sends twice the bytes of the gradient, not 1 / fsdp of them.
    """
    if not in_mesh() or not axis_names(UPDATES):
        return x
    own, updated = mesh_axes(*names), update_axes(*names)

    def backward(_, gradient):
        gradient = jax.lax.with_sharding_constraint(gradient, own)
        return (jax.lax.with_sharding_constraint(gradient, updated),)

    same = jax.custom_vjp(lambda x: x)
    same.defvjp(lambda x: (x, None), backward)
    return same(x)


def per_shard(
    function: Callable, in_axes: tuple[tuple, ...], out_axes: tuple[tuple, ...] | tuple
) -> Callable:
    """`jax.shard_map` with logical axes; the function itself outside of a mesh."""
    if not in_mesh():
        return function
    return jax.shard_map(
        function,
        in_specs=tuple(mesh_axes(*axes) for axes in in_axes),
        out_specs=tuple(mesh_axes(*axes) for axes in out_axes),
        check_vma=False,
    )
