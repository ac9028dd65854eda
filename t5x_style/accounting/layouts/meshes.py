"""The meshes that a decoder and a batch divide and that a chip's memory holds, fastest first."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

from t5x_style.accounting.chips import Chip
from t5x_style.accounting.layouts.divisibility import indivisible
from t5x_style.accounting.layouts.memory import Memory, step_memory
from t5x_style.accounting.layouts.roofline import Roofline, roofline
from t5x_style.accounting.parameter_count import total_parameters
from t5x_style.accounting.recompute import REMAT_RECOMPUTES
from t5x_style.accounting.step_shape import StepShape
from t5x_style.accounting.topology import Topology
from t5x_style.errors import UsageError, at_least

# Share of a chip's memory that a plan may fill: the rest is for the runtime's own buffers, for
# fragments, and for the error of the estimate (in the tests, within 20 % of compiled steps).
MEMORY_SHARE = 0.85
# Sequences from this length on may be split over the sequence axis; below, rows are plenty.
LONG_SEQUENCE = 16_384
# A model of costs does not distinguish steps that differ by less than this share.
_INDISTINCT = 0.02
# With more microbatches than this, a step is mostly gathers.
_MOST_MICROBATCHES = 64


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to lay a step out.

    Attributes:
      topology: with the fewest microbatches that fit.
      memory: bytes on one device.
      roofline: expected seconds.
      devices_per_chip: of the chip.
    """

    topology: Topology
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


def fitting_meshes(shape: StepShape, topology: Topology, chip: Chip, chips: int) -> list[Candidate]:
    """Every mesh under every remat policy that fits MEMORY_SHARE of the chip, fastest first.

    Args:
      topology: its mesh, remat policy and microbatches are chosen; the other fields are kept.
      chips: whole chips; a chip may be several JAX devices.

    Raises:
      UsageError: no mesh divides the decoder and the batch, or none fits. The message has advice.
    """
    at_least("chips", chips, 1)
    at_least("batch_sequences", shape.sequences, 1)
    at_least("sequence_length", shape.sequence_length, 1)
    devices = chips * chip.devices_per_chip
    room = MEMORY_SHARE * chip.hbm_bytes / chip.devices_per_chip
    # One slice here. The caller checks that `Topology.slices` divides the data axis.
    plain = dataclasses.replace(topology, slices=1, microbatches=1)
    meshes = [
        mesh
        for sizes in _mesh_sizes(devices, shape.sequence_length)
        if indivisible(shape, mesh := dataclasses.replace(plain, **sizes)) is None
    ]
    if not meshes:
        raise UsageError(
            f"no mesh of {devices} devices divides batch_sequences = {shape.sequences} and this "
            f"model: batch_sequences = {-(-shape.sequences // devices) * devices} would do"
        )
    found = []
    least: tuple[int, Topology] | None = None
    for mesh in meshes:
        # 'offload' is left out: the roofline has no seconds for the way to the host.
        for remat in (policy for policy in REMAT_RECOMPUTES if policy != "offload"):
            for microbatches in _microbatches(mesh, shape.sequences):
                layout = dataclasses.replace(mesh, remat=remat, microbatches=microbatches)
                memory = step_memory(shape, layout)
                if least is None or memory.total < least[0]:
                    least = memory.total, layout
                if memory.total > room:
                    continue
                expected = roofline(shape, layout, chip)
                found.append(Candidate(layout, memory, expected, chip.devices_per_chip))
                # More microbatches would only gather more often.
                break
    if not found:
        assert least is not None
        size, leanest = least
        raise UsageError(
            f"{total_parameters(shape.architecture):,} parameters do not fit on {chips} x "
            f"{chip.name}: the leanest mesh ({leanest.mesh_text}) takes "
            f"{size * chip.devices_per_chip / 1e9:.1f} GB of a "
            f"chip, and {MEMORY_SHARE:.0%} of it is {MEMORY_SHARE * chip.hbm_bytes / 1e9:.1f} GB; "
            f"take more chips{_power_of_two_hint(chips)}, chips with more memory, a smaller model "
            "or a shorter sequence"
        )
    return sorted(found, key=_rank)


def _power_of_two_hint(chips: int) -> str:
    """The next power of two: a width has few other factors."""
    power = 2 ** math.ceil(math.log2(chips))
    return "" if power == chips else f" ({power}, say: a mesh of {chips} divides few widths)"


def _rank(candidate: Candidate) -> tuple[int, int, int, float]:
    """Fastest first; between steps of equal estimates, the plainer layout."""
    mesh = candidate.topology
    bucket = round(math.log(candidate.step_seconds) / math.log(1 + _INDISTINCT))
    return bucket, mesh.tensor * mesh.sequence, mesh.microbatches, candidate.step_seconds


def _mesh_sizes(devices: int, sequence_length: int) -> Iterator[dict[str, Any]]:
    """Every way to write the devices as data x fsdp x tensor, and x sequence for a long one."""
    divisors = [size for size in range(1, devices + 1) if devices % size == 0]
    sequences = divisors if sequence_length >= LONG_SEQUENCE else [1]
    for sequence, tensor, fsdp in itertools.product(sequences, divisors, divisors):
        if devices % (sequence * tensor * fsdp) == 0:
            data = devices // (sequence * tensor * fsdp)
            yield {"data": data, "fsdp": fsdp, "tensor": tensor, "sequence": sequence}


def _microbatches(mesh: Topology, sequences: int) -> Iterator[int]:
    """Numbers of microbatches that leave every device whole rows, fewest first."""
    rows = sequences // (mesh.data * mesh.fsdp)
    yield from (number for number in range(1, _MOST_MICROBATCHES + 1) if rows % number == 0)
