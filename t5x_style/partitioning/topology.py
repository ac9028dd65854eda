"""A topology: the named mesh, the rules, and the choices that fit a chip but change no numbers."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import gin
import jax
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from t5x_style.accounting.attention_blocks import LANES
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.kernels import ATTENTION_KERNELS
from t5x_style.models import REMAT_POLICIES
from t5x_style.models.logical import LOGICAL_AXES, MEETING_AXES, UPDATES, flat

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# One table from what an axis is to where it lies. The rows of residual matrices take both axes so
# that every fsdp gather runs along the leading dimension (gathers along the minor one are copied
# again by the TPU compiler).
DEFAULT_RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "sequence": "sequence",
    "heads": "tensor",
    "kv_heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
    "embed": "fsdp",
    "heads_rows": ("tensor", "fsdp"),
    "mlp_rows": ("tensor", "fsdp"),
    "norm": None,
    "layers": None,
}


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Topology:
    """Where a run lies and how its step is laid out. None of these changes a number that is
    learnt beyond rounding.

    Attributes:
      data: size of the axis over which only the batch is split (replicas of the parameters).
      fsdp: size of the axis over which the batch AND the parameters are split (ZeRO-3).
      tensor: size of the axis over which heads, feed-forward and vocabulary are split.
      sequence: size of the axis over which a sequence's tokens are split.
      chip: name of the chip in the table of peaks, or None: no MFU is printed.
      slice: shape of the slice of that chip for which `compile` makes the step, as '8x8x8' of a
        v5p, or nodes x GPUs as '1x8'; None: the devices of this process. A run always takes the
        devices that it finds.
      slices: slices of that shape, joined by the data-centre network. The data axis is split over
        them first, so that only sums of gradients leave a slice.
      compiler_flags: options of XLA, name to value, for every program of `train` and `compile`.
      kernel: attention kernel: 'plain', 'blockwise' (memory linear in S, any device), 'flash' (the
        same by a kernel of the TPU's) or 'cudnn' (by NVIDIA's library, on its GPUs).
      attention_block: queries and keys of a tile of 'blockwise' and 'flash', at most.
      remat: one of REMAT_POLICIES (see models.decoder).
      loss_chunk_tokens: tokens per device whose logits live at once.
      loss_vocab_chunks: pieces of a device's vocabulary. Above 1, all of a device's tokens meet one
        piece of the head after the other, and never is more of it gathered, at the cost of making
        the logits twice; loss_chunk_tokens is then not read.
      shard_optimizer_over_data: whether the matrices' optimizer state and gradients are split over
        `data` too (ZeRO-1 across the replicas): 1 / data of the bytes, for an all-gather of the
        float32 parameters over `data` once a step.
      rules: entries that replace those of DEFAULT_RULES.
      unsharded_tolerance: share of the parameters' bytes that may lie unsharded on axes that
        could split them; a run fails past it.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1
    sequence: int = 1
    chip: str | None = None
    slice: str | None = None
    slices: int = 1
    compiler_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kernel: str = "plain"
    attention_block: int = 512
    remat: str = "none"
    loss_chunk_tokens: int = 4096
    loss_vocab_chunks: int = 1
    shard_optimizer_over_data: bool = False
    rules: Mapping[str, str | tuple[str, ...] | None] = dataclasses.field(default_factory=dict)
    unsharded_tolerance: float = 0.02

    def __post_init__(self):
        for axis in MESH_AXES:
            if getattr(self, axis) < 1:
                raise UsageError(f"Topology.{axis} = {getattr(self, axis)}: must be 1 or more")
        if self.loss_vocab_chunks < 1:
            raise UsageError(
                f"Topology.loss_vocab_chunks = {self.loss_vocab_chunks}: must be 1 or more"
            )
        if self.slices < 1 or self.data % self.slices:
            raise UsageError(
                f"Topology.slices = {self.slices}: the data axis (Topology.data = {self.data}) is "
                "split over the slices, so this must be 1 or a divisor of it"
            )
        if self.slice is not None and self.chip is None:
            raise UsageError(
                f"Topology.slice = {self.slice!r} says no chip: set Topology.chip, as in 'v5p'"
            )
        if self.attention_block < 1 or (self.kernel == "flash" and self.attention_block % LANES):
            raise UsageError(
                f"Topology.attention_block = {self.attention_block}: must be 1 or more, and with "
                f"kernel = 'flash' a multiple of {LANES}"
            )
        for name, value, allowed in (
            ("kernel", self.kernel, ATTENTION_KERNELS),
            ("remat", self.remat, REMAT_POLICIES),
        ):
            if value not in allowed:
                raise UsageError(
                    f"Topology.{name} = {value!r} is not one of {', '.join(allowed)}"
                    f"{did_you_mean(value, allowed)}"
                )
        for logical, entry in self.rules.items():
            if logical not in LOGICAL_AXES:
                raise UsageError(
                    f"Topology.rules names {logical!r}, which is no logical axis"
                    f"{did_you_mean(logical, LOGICAL_AXES)}"
                )
            for axis in flat(entry):
                if axis not in MESH_AXES:
                    raise UsageError(
                        f"Topology.rules[{logical!r}] names {axis!r}, which is no mesh axis"
                        f"{did_you_mean(axis, MESH_AXES)}"
                    )
        for logical_axes in MEETING_AXES:
            lies: dict[str, str] = {}
            for logical in logical_axes:
                for axis in flat(dict(self.logical_rules)[logical]):
                    if axis in lies:
                        raise UsageError(
                            f"Topology.rules puts both {lies[axis]!r} and {logical!r} on the mesh "
                            f"axis {axis!r}, and there are arrays that have both"
                        )
                    lies[axis] = logical

    @property
    def mesh_shape(self) -> dict[str, int]:
        """Axis name to size, outermost first."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def devices(self) -> int:
        """Devices that the mesh needs."""
        return math.prod(self.mesh_shape.values())

    @property
    def logical_rules(self) -> tuple[tuple[str, str | tuple[str, ...] | None], ...]:
        """The rules in force, as Flax takes them."""
        updates = {UPDATES: "data" if self.shard_optimizer_over_data else None}
        return tuple({**DEFAULT_RULES, **self.rules, **updates}.items())

    def mesh(self, devices: Sequence[jax.Device] | None = None) -> Mesh:
        """The mesh over devices, laid so that neighbours on an axis are neighbours on the torus.

        Args:
          devices: of a described slice, say; those of this process's backend if not given.

        Raises:
          UsageError: there are fewer devices than the mesh needs. More devices than the mesh needs
            are refused too unless the mesh is a single one in a single process: idle chips are
            never meant.
        """
        available = jax.devices() if devices is None else devices
        alone = self.devices == 1 and (devices is not None or jax.process_count() == 1)
        if self.devices > len(available) or (self.devices < len(available) and not alone):
            raise UsageError(
                f"Topology asks for {self.devices} devices "
                f"({' x '.join(f'{k}={v}' for k, v in self.mesh_shape.items() if v > 1)}), and "
                f"{len(available)} of kind {available[0].device_kind!r} are there: choose sizes "
                f"of data, fsdp, tensor and sequence whose product is {len(available)}"
            )
        sizes = tuple(self.mesh_shape.values())
        taken = list(available[: self.devices])
        found = len({getattr(device, "slice_index", 0) for device in taken})
        if found != self.slices:
            raise UsageError(
                f"Topology.slices = {self.slices}, and the {len(taken)} devices of kind "
                f"{taken[0].device_kind!r} are of {found}: set Topology.slices = {found}"
            )
        if self.slices == 1:
            # An axis may be one of the torus's, several of them, or a part of one.
            laid = mesh_utils.create_device_mesh(
                sizes, devices=taken, allow_split_physical_axes=True
            )
        else:
            across = (self.slices, *(1 for _ in sizes[1:]))
            within = (self.data // self.slices, *sizes[1:])
            laid = mesh_utils.create_hybrid_device_mesh(
                within, across, devices=taken, allow_split_physical_axes=True
            )
        return Mesh(laid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))

    @contextlib.contextmanager
    def in_force(self, mesh: Mesh) -> Iterator[None]:
        """The mesh and the rules, for building a model and tracing a step."""
        with jax.set_mesh(mesh), nnx.logical_axis_rules(self.logical_rules):
            yield
