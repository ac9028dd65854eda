"""WHERE a step runs, as plain numbers: what may change and never changes what is learnt.

The other value, WHAT a step computes, is `StepShape` for the accounts and `step.StepSpec` for a
program. Memory, roofline, FLOPs, planner, compiler report and training take these two.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping

import gin

from t5x_style.accounting.attention_blocks import LANES
from t5x_style.accounting.recompute import KERNEL_RECOMPUTES, REMAT_RECOMPUTES
from t5x_style.errors import UsageError, did_you_mean, one_of
from t5x_style.ranges import PositiveInt, Share, check_ranges

# Names of the axes of arrays. The rules place them on a mesh.
# Axes of activations.
BATCH = "batch"
SEQUENCE = "sequence"
# Axes of activations and of the columns of matrices.
HEADS = "heads"
KV_HEADS = "kv_heads"
MLP = "mlp"
VOCAB = "vocab"
# Axes of parameters alone. The rows of the two matrices that write to the residual stream carry
# the sharded feature axis AND the fsdp axis, so that an fsdp gather always runs along rows.
EMBED = "embed"
HEADS_ROWS = "heads_rows"
MLP_ROWS = "mlp_rows"
NORM = "norm"
LAYERS = "layers"

# Not an axis of an array: the mesh axes over which matrices are whole, but their gradients and
# optimizer state are split.
UPDATES = "updates"

LOGICAL_AXES = (
    BATCH, SEQUENCE, HEADS, KV_HEADS, MLP, VOCAB, EMBED, HEADS_ROWS, MLP_ROWS, NORM, LAYERS,
)  # fmt: skip

# Axes that meet in one activation (the logits among them) or one matrix: no two of them may be on
# the same mesh axis.
MEETING_AXES = tuple(
    (*others, wide)
    for wide in (HEADS, KV_HEADS, MLP, VOCAB)
    for others in ((BATCH, SEQUENCE), (EMBED,))
)

# The mesh axes of one logical axis: none, one or several, outermost first.
Rule = str | tuple[str, ...] | None

MESH_AXES = ("data", "fsdp", "tensor", "sequence")

# One table from logical axes to mesh axes. The rows of residual matrices take both
# axes, so that every fsdp gather runs along the leading dimension. (The TPU compiler copies the
# result of a gather along the minor one again.)
DEFAULT_RULES: Mapping[str, Rule] = {
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


def flat(entry: Rule) -> tuple[str, ...]:
    """The mesh axes of one entry of the rules: none, one or several, outermost first."""
    if entry is None:
        return ()
    return (entry,) if isinstance(entry, str) else tuple(entry)


def mesh_text(sizes: Mapping[str, int]) -> str:
    """A mesh for people: `data=8 x fsdp=64`; 'one device' for a mesh of one."""
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Topology:
    """The mesh of a run and the layout of its step. No field changes what is learnt, but rounding.

    Attributes:
      data: size of the axis over which only the batch is split (replicas of the parameters).
      fsdp: size of the axis over which the batch AND the parameters are split (ZeRO-3).
      tensor: size of the axis over which heads, feed-forward and vocabulary are split.
      sequence: size of the axis over which a sequence's tokens are split.
      chip: name of a chip (see `chips.chip`), or the dotted path of your own, 'my_team.MY_CHIP';
        None: no MFU is printed.
      slice: shape of the slice of that chip for which `compile` makes the step, as '8x8x8' of a
        v5p, or nodes x GPUs as '1x8'; None: the devices of this process. A run always uses the
        devices of its processes.
      slices: slices of that shape, joined by the data-centre network. The data axis is split over
        them first, so that only sums of gradients leave a slice.
      microbatches: parts of a batch. Each has sequences / microbatches rows, and their gradients
        are added in float32.
      compiler_flags: options of XLA, name to value, for every program of `train` and `compile`.
      kernel: attention kernel: 'plain', 'blockwise' (memory linear in S, any device), 'flash' (the
        same by a kernel of the TPU's) or 'cudnn' (by NVIDIA's library, on its GPUs).
      attention_block: queries and keys of a tile of 'blockwise' and 'flash', at most. None: 512;
        for 'flash' on a known chip the tile for which its compiler schedules the fewest cycles.
      remat: one of recompute.REMAT_RECOMPUTES.
      loss_chunk_tokens: tokens per device whose logits live at once.
      loss_vocab_chunks: pieces of a device's vocabulary. Above 1, all of a device's tokens are
        multiplied with one piece of the head after the other, and only that piece is gathered. The
        logits are then computed twice, and loss_chunk_tokens is not read.
      shard_optimizer_over_data: whether the matrices' optimizer state and gradients are split over
        `data` too (ZeRO-1 across the replicas): 1 / data of the bytes, for an all-gather of the
        float32 parameters over `data` once a step.
      rules: entries that replace those of DEFAULT_RULES.
      unsharded_tolerance: share of the parameters' bytes that may be unsharded on axes that
        could split them; a run fails above it.
    """

    data: PositiveInt = 1
    fsdp: PositiveInt = 1
    tensor: PositiveInt = 1
    sequence: PositiveInt = 1
    chip: str | None = None
    slice: str | None = None
    slices: PositiveInt = 1
    microbatches: PositiveInt = 1
    compiler_flags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    kernel: str = "plain"
    attention_block: PositiveInt | None = None
    remat: str = "none"
    loss_chunk_tokens: PositiveInt = 4096
    loss_vocab_chunks: PositiveInt = 1
    shard_optimizer_over_data: bool = False
    rules: Mapping[str, Rule] = dataclasses.field(default_factory=dict)
    unsharded_tolerance: Share = 0.02

    def __post_init__(self):
        check_ranges(self)
        if self.data % self.slices:
            raise UsageError(
                f"Topology.slices = {self.slices}: the data axis (Topology.data = {self.data}) is "
                "split over the slices, so this must be 1 or a divisor of it"
            )
        if self.slice is not None and self.chip is None:
            raise UsageError(
                f"Topology.slice = {self.slice!r} needs a chip: set Topology.chip, as in 'v5p'"
            )
        if self.kernel == "flash" and (self.attention_block or 0) % LANES:
            raise UsageError(
                f"Topology.attention_block = {self.attention_block}: must be a multiple of {LANES} "
                f"with kernel = 'flash'"
            )
        one_of("Topology.kernel", self.kernel, KERNEL_RECOMPUTES)
        one_of("Topology.remat", self.remat, REMAT_RECOMPUTES)
        if self.rules:
            self._check_rules()

    @property
    def mesh_shape(self) -> dict[str, int]:
        """Axis name to size, outermost first."""
        return {axis: getattr(self, axis) for axis in MESH_AXES}

    @property
    def devices(self) -> int:
        """JAX devices that the mesh needs."""
        return self.data * self.fsdp * self.tensor * self.sequence

    @property
    def mesh_text(self) -> str:
        """The mesh for people."""
        return mesh_text(self.mesh_shape)

    @functools.cached_property
    def rules_in_force(self) -> dict[str, Rule]:
        """The default rules, with those of this topology in their place."""
        updates = {UPDATES: "data" if self.shard_optimizer_over_data else None}
        return {**DEFAULT_RULES, **self.rules, **updates}

    def axes_of(self, logical_axis: str) -> tuple[str, ...]:
        """The mesh axes that split a logical axis under the rules in force, outermost first."""
        return flat(self.rules_in_force[logical_axis])

    def pieces(self, axes: Iterable[str]) -> int:
        """Devices over which these mesh axes split an array."""
        return math.prod(getattr(self, axis) for axis in axes)

    def _check_rules(self) -> None:
        for logical, entry in self.rules.items():
            if logical not in LOGICAL_AXES:
                raise UsageError(
                    f"Topology.rules: {logical!r} is not a logical axis"
                    f"{did_you_mean(logical, LOGICAL_AXES)}"
                )
            for axis in flat(entry):
                if axis not in MESH_AXES:
                    raise UsageError(
                        f"Topology.rules[{logical!r}]: {axis!r} is not a mesh axis"
                        f"{did_you_mean(axis, MESH_AXES)}"
                    )
        for logical_axes in MEETING_AXES:
            taken: dict[str, str] = {}
            for logical in logical_axes:
                for axis in self.axes_of(logical):
                    if axis in taken:
                        raise UsageError(
                            f"Topology.rules puts both {taken[axis]!r} and {logical!r} on the mesh "
                            f"axis {axis!r}, but some arrays have both"
                        )
                    taken[axis] = logical


# No mesh, nothing computed twice: the default of the accounts.
ONE_DEVICE = Topology()
