"""The meshes that a decoder and a batch divide and that a chip's memory holds, fastest first."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.chips import Chip
from t5x_style.accounting.flops import REMAT_RECOMPUTES
from t5x_style.accounting.layouts.memory import Memory, Mesh, step_memory
from t5x_style.accounting.layouts.roofline import Roofline, roofline
from t5x_style.accounting.parameter_count import attention_widths, total_parameters
from t5x_style.errors import UsageError

# Share of a chip's memory that a plan may fill: the rest is for the runtime's own buffers, for
# fragments, and for what the estimate misses (the tests find it within 20 % of compiled steps).
MEMORY_SHARE = 0.85
# Sequences from this length on may be split over the sequence axis; below, rows are plenty.
LONG_SEQUENCE = 16_384
# Steps that differ by less are the same to a model of costs.
_INDISTINCT = 0.02
# Past this many passes a step is mostly gathers.
_MOST_MICROBATCHES = 64


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to lay a step out.

    Attributes:
      mesh: sizes of the axes; their product is the JAX devices.
      remat: policy.
      microbatches: the fewest passes per step that fit.
      memory: bytes on one device.
      roofline: expected seconds.
      devices_per_chip: of the chip.
    """

    mesh: Mesh
    remat: str
    microbatches: int
    memory: Memory
    roofline: Roofline
    devices_per_chip: int

    @property
    def bytes_per_chip(self) -> dict[str, int]:
        """Each part of `Memory` and its total (of the fullest moment), on all devices of a chip."""
        parts = {**dataclasses.asdict(self.memory), "total": self.memory.total}
        return {name: size * self.devices_per_chip for name, size in parts.items()}

    @property
    def step_seconds(self) -> float:
        """The expected step."""
        return self.roofline.seconds


def divides(arch: Architecture, mesh: Mesh, batch_sequences: int, sequence_length: int) -> bool:
    """Whether a mesh divides what it splits under the default rules.

    `partitioning.check_divisible` refuses a run that fails here; a test holds the two together.
    """
    columns, _ = attention_widths(arch)
    both = mesh.tensor * mesh.fsdp
    return not (
        batch_sequences % (mesh.data * mesh.fsdp)
        or sequence_length % (2 * mesh.sequence if mesh.sequence > 1 else 1)
        or arch.heads % mesh.tensor
        or arch.kv_heads % mesh.tensor
        or arch.d_ff % both
        or arch.vocab_size % mesh.tensor
        or arch.d_model % mesh.fsdp
        or columns % both
    )


def fitting_meshes(
    arch: Architecture,
    chip: Chip,
    chips: int,
    batch_sequences: int,
    sequence_length: int,
    *,
    kernel: str = "blockwise",
    attention_block: int = 512,
    loss_chunk_tokens: int = 4096,
    loss_vocab_chunks: int = 1,
    shard_optimizer_over_data: bool = False,
    compute_dtype: str = "bfloat16",
) -> list[Candidate]:
    """Every mesh under every remat policy that fits MEMORY_SHARE of the chip, fastest first.

    Args:
      chips: whole chips; a chip may be several JAX devices.
      batch_sequences: rows of the global batch.
      sequence_length: S, tokens of a row.
      kernel, attention_block, loss_chunk_tokens, loss_vocab_chunks, shard_optimizer_over_data: as
        in `partitioning.Topology`.
      compute_dtype: 'bfloat16' or 'float32'.

    Raises:
      UsageError: no mesh divides the decoder and the batch, or none fits: says what would.
    """
    for name, value in (
        ("chips", chips),
        ("batch_sequences", batch_sequences),
        ("sequence_length", sequence_length),
    ):
        if value < 1:
            raise UsageError(f"{name} = {value!r}: must be 1 or more")
    devices = chips * chip.devices_per_chip
    room = MEMORY_SHARE * chip.hbm_bytes / chip.devices_per_chip
    meshes = [
        mesh
        for mesh in _meshes(devices, sequence_length)
        if divides(arch, mesh, batch_sequences, sequence_length)
    ]
    if not meshes:
        raise UsageError(
            f"no mesh of {devices} devices divides batch_sequences = {batch_sequences} and this "
            f"model: batch_sequences = {-(-batch_sequences // devices) * devices} would do"
        )
    found = []
    least: tuple[int, Mesh] | None = None
    for mesh in meshes:
        # What the way to the host costs is not in the account.
        for remat in (policy for policy in REMAT_RECOMPUTES if policy != "offload"):
            for microbatches in _microbatches(mesh, batch_sequences):
                memory = step_memory(
                    arch,
                    mesh,
                    batch_sequences=batch_sequences,
                    sequence_length=sequence_length,
                    remat=remat,
                    kernel=kernel,
                    attention_block=attention_block,
                    microbatches=microbatches,
                    loss_chunk_tokens=loss_chunk_tokens,
                    loss_vocab_chunks=loss_vocab_chunks,
                    shard_optimizer_over_data=shard_optimizer_over_data,
                    compute_dtype=compute_dtype,
                )
                if least is None or memory.total < least[0]:
                    least = memory.total, mesh
                if memory.total > room:
                    continue
                expected = roofline(
                    arch,
                    chip,
                    mesh,
                    batch_sequences=batch_sequences,
                    sequence_length=sequence_length,
                    remat=remat,
                    kernel=kernel,
                    attention_block=attention_block,
                    microbatches=microbatches,
                )
                found.append(
                    Candidate(mesh, remat, microbatches, memory, expected, chip.devices_per_chip)
                )
                # More passes would only gather more often.
                break
    if not found:
        assert least is not None
        size, mesh = least
        raise UsageError(
            f"{total_parameters(arch):,} parameters do not fit on {chips} x {chip.name}: the "
            f"leanest mesh ({_name(mesh)}) takes {size * chip.devices_per_chip / 1e9:.1f} GB of a "
            f"chip, and {MEMORY_SHARE:.0%} of it is {MEMORY_SHARE * chip.hbm_bytes / 1e9:.1f} GB; "
            f"take more chips{_rounder(chips)}, chips with more memory, a smaller model or a "
            "shorter sequence"
        )
    return sorted(found, key=_rank)


def _rounder(chips: int) -> str:
    """The next power of two: a width has few other factors."""
    power = 2 ** math.ceil(math.log2(chips))
    return "" if power == chips else f" ({power}, say: a mesh of {chips} divides few widths)"


def _rank(candidate: Candidate) -> tuple:
    """Fastest first; where the estimate cannot tell two apart, the plainer layout."""
    mesh = candidate.mesh
    bucket = round(math.log(candidate.step_seconds) / math.log(1 + _INDISTINCT))
    return bucket, mesh.tensor * mesh.sequence, candidate.microbatches, candidate.step_seconds


def _meshes(devices: int, sequence_length: int) -> Iterator[Mesh]:
    """Every way to write the devices as data x fsdp x tensor, and x sequence for a long one."""
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    sequences = divisors if sequence_length >= LONG_SEQUENCE else [1]
    for sequence, tensor, fsdp in itertools.product(sequences, divisors, divisors):
        if devices % (sequence * tensor * fsdp) == 0:
            yield Mesh(devices // (sequence * tensor * fsdp), fsdp, tensor, sequence)


def _microbatches(mesh: Mesh, batch_sequences: int) -> Iterator[int]:
    """Passes that leave every device whole rows, fewest first."""
    rows = batch_sequences // (mesh.data * mesh.fsdp)
    yield from (passes for passes in range(1, _MOST_MICROBATCHES + 1) if rows % passes == 0)


def _name(mesh: Mesh) -> str:
    sizes = dataclasses.asdict(mesh)
    return " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size > 1) or "one device"
