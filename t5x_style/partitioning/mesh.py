"""A topology's mesh over real or described devices, and the rules in force while tracing."""

import contextlib
from collections.abc import Iterator, Sequence

import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from t5x_style.accounting.topology import MESH_AXES, Topology
from t5x_style.errors import UsageError


def make_mesh(topology: Topology, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over devices, so that neighbours on an axis are neighbours on the torus.

    Args:
      devices: of a described slice, for instance; None: those of this process's backend.

    Raises:
      UsageError: there are fewer devices than the mesh needs. More devices than the mesh needs
        are refused too unless the mesh is a single one in a single process: idle chips are
        never meant.
    """
    available = jax.devices() if devices is None else devices
    alone = topology.devices == 1 and (devices is not None or jax.process_count() == 1)
    if topology.devices > len(available) or (topology.devices < len(available) and not alone):
        raise UsageError(
            f"Topology needs {topology.devices} devices ({topology.mesh_text}), but there are "
            f"{len(available)} of kind {available[0].device_kind!r}: choose sizes of data, fsdp, "
            f"tensor and sequence whose product is {len(available)}"
        )
    sizes = tuple(topology.mesh_shape.values())
    taken = list(available[: topology.devices])
    found = len({getattr(device, "slice_index", 0) for device in taken})
    if found != topology.slices:
        raise UsageError(
            f"Topology.slices = {topology.slices}, but the {len(taken)} devices of kind "
            f"{taken[0].device_kind!r} belong to {found}: set Topology.slices = {found}"
        )
    if topology.slices == 1:
        # An axis may be one of the torus's, several of them, or a part of one.
        device_grid = mesh_utils.create_device_mesh(
            sizes, devices=taken, allow_split_physical_axes=True
        )
    else:
        across = (topology.slices, *(1 for _ in sizes[1:]))
        within = (topology.data // topology.slices, *sizes[1:])
        device_grid = mesh_utils.create_hybrid_device_mesh(
            within, across, devices=taken, allow_split_physical_axes=True
        )
    return Mesh(device_grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


@contextlib.contextmanager
def in_force(topology: Topology, mesh: Mesh) -> Iterator[None]:
    """The mesh and the rules, for building a model and tracing a step."""
    with jax.set_mesh(mesh), nnx.logical_axis_rules(tuple(topology.rules_in_force.items())):
        yield
