"""The assumptions of an estimate about a chip that are not in the compiled program."""

import dataclasses
import math
from collections.abc import Callable, Sequence

from t5x_style.accounting.attention_blocks import (
    FLASH_PASSES,
    KERNEL_CYCLES,
    cycles_of_pass,
)
from t5x_style.accounting.chips import LINK_EFFICIENCY, Chip
from t5x_style.compiling.estimates.torus import Places, closed_axes, links_of_group, torus_shape
from t5x_style.compiling.hlo.kernel_calls import (
    PASSES,
    AttentionWork,
    KernelCall,
    KernelGrid,
    calls_by_pass,
    pass_name,
)

KERNEL_EFFICIENCY = 0.40


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """A set of assumptions, by name in ASSUMPTIONS.

    Attributes:
      meaning: the set in words, printed next to the figures.
      kernel_seconds: (chip, calls, work of a call) -> seconds of all calls.
      bandwidth: (chip, places of a group's chips, places of all chips) -> bytes/s that a chip of
        the group sends over its links.
    """

    meaning: str
    kernel_seconds: Callable[[Chip, Sequence[KernelCall], AttentionWork], float]
    bandwidth: Callable[[Chip, Places, Places], float]


def _flat_kernel_seconds(chip: Chip, calls: Sequence[KernelCall], work: AttentionWork) -> float:
    # The backward pass is five products of the size of the forward pass's two.
    counts = calls_by_pass(calls)
    products = 2 * counts["fwd"] + 2 * counts["dq"] + 3 * counts["dkv"]
    flops = products * 2 * work.rows * work.keys_seen * work.head_dim
    return flops / (KERNEL_EFFICIENCY * _device_peak(chip))


def _scheduled_kernel_seconds(
    chip: Chip, calls: Sequence[KernelCall], work: AttentionWork
) -> float:
    return sum(call.count * _scheduled_call_seconds(chip, call, work) for call in calls)


def _scheduled_call_seconds(chip: Chip, call: KernelCall, work: AttentionWork) -> float:
    name, grid = pass_name(call), call.grid
    key = (chip.name, work.head_dim, work.features, work.block, "_segmented_" in call.name)
    if grid is None or not work.causal or key not in KERNEL_CYCLES:
        executed = 2 * work.rows * work.keys_touched * sum(getattr(work, w) for w in PASSES[name])
        return executed / (KERNEL_EFFICIENCY * _device_peak(chip))
    taken = cycles_of_pass(
        KERNEL_CYCLES[key][FLASH_PASSES.index(name)],
        touched=work.rows * work.keys_touched / work.block**2,
        steps=grid.heads * grid.rows * grid.columns,
        rows=grid.kv_heads * grid.columns if name == "dkv" else grid.heads * grid.rows,
    )
    # Every chip of that table has a clock.
    assert chip.clock is not None
    return taken / chip.clock / cores_of_pass(chip, name, grid)


def cores_of_pass(chip: Chip, name: str, grid: KernelGrid) -> float:
    """Cores that run a pass of the splash kernel, on average.

    The compiler splits the axes over which a kernel is mapped, and in the forward pass the heads.
    Where it has no even number of parts for two cores, one of them has a part more.
    """
    parts = grid.heads if name == "fwd" else grid.mapped
    return parts / math.ceil(parts / chip.cores)


def _bandwidth_by_size(chip: Chip, group: Places, _: Places) -> float:
    axes = 1 if len(group) <= 16 else 2 if len(group) <= 256 else 3
    return 2 * chip.link_bandwidth * LINK_EFFICIENCY * min(axes, chip.links // 2)


def _bandwidth_by_place(chip: Chip, group: Places, everywhere: Places) -> float:
    shape = torus_shape(everywhere)
    links = links_of_group(group, shape, closed_axes(shape, chip.interconnect))
    return links * chip.link_bandwidth * LINK_EFFICIENCY


def _device_peak(chip: Chip) -> float:
    return chip.peak_bf16_flops / chip.devices_per_chip


ASSUMPTIONS = {
    "flat": Assumptions(
        "kernels multiply what the mask admits, two products forwards and five back, at 40 % of "
        "the peak (too kind to a v6e, whose compiler schedules about half of that); a torus "
        "axis carries 90 GB/s (v5e) or 180 GB/s (v5p, v6e), and a group uses "
        "one up to 16 chips, two up to 256, three above",
        _flat_kernel_seconds,
        _bandwidth_by_size,
    ),
    "own": Assumptions(
        "kernels take the cycles that the compiler schedules for them, where they were read out, "
        "else 40 % of the peak on all that they execute; a pass has the cores that the program "
        "gives it; a collective uses the links that its "
        "group has on the torus, at 90 % of their printed rate",
        _scheduled_kernel_seconds,
        _bandwidth_by_place,
    ),
}
