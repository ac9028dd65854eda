"""The assumptions of an estimate about a chip that are not in the compiled program."""

import dataclasses
from collections.abc import Callable, Mapping

from t5x_style.accounting.chips import LINK_EFFICIENCY, Chip
from t5x_style.compiling.estimates.torus import Places, closed_axes, links_of_group, torus_shape
from t5x_style.compiling.hlo.kernel_calls import PASSES, AttentionWork

KERNEL_EFFICIENCY = 0.40
# Cycles of a core that the compiler schedules for one pass of the splash kernel: (for a block of
# queries and keys, and extra for a row of blocks), by chip, head size, features and block. The
# schedule of a TPU is static, a bundle of instructions a cycle, so its length is the kernel's time
# as far as memory keeps up: a block of 512 keys and values of a head of 128 is 256 KiB in 1,400
# cycles, 280 GB/s of a v5e's 819. `tools/kernel_cycles` reads them out of the compiler's dump.
# They were read with a head's features along the lanes. With its tokens along the lanes, as now,
# the compiler schedules 2 to 4 % more for a v5p.
KERNEL_CYCLES: dict[tuple[str, int, int, int], dict[str, tuple[int, int]]] = {
    ("v5e", 64, 64, 512): {"fwd": (1454, 707), "dq": (1861, 206), "dkv": (2404, 398)},
    ("v5e", 192, 198, 512): {"fwd": (2556, 851), "dq": (3389, 334), "dkv": (4452, 654)},
    ("v5p", 128, 128, 1024): {"fwd": (6081, 1381), "dq": (6838, 334), "dkv": (9067, 654)},
    ("v5p", 192, 198, 512): {"fwd": (3075, 854), "dq": (3546, 334), "dkv": (4799, 654)},
    ("v6e", 192, 198, 512): {"fwd": (1284, 427), "dq": (1363, 174), "dkv": (1740, 335)},
}


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """A set of assumptions, by name in ASSUMPTIONS.

    Attributes:
      meaning: the set in words, printed next to the figures.
      kernel_seconds: (chip, calls by pass, work of a call) -> seconds of all calls.
      bandwidth: (chip, places of a group's chips, places of all chips) -> bytes/s that a chip of
        the group sends over its links.
    """

    meaning: str
    kernel_seconds: Callable[[Chip, Mapping[str, int], AttentionWork], float]
    bandwidth: Callable[[Chip, Places, Places], float]


def _flat_kernel_seconds(chip: Chip, calls: Mapping[str, int], work: AttentionWork) -> float:
    # The backward pass is five products of the size of the forward pass's two.
    products = 2 * calls["fwd"] + 2 * calls["dq"] + 3 * calls["dkv"]
    flops = products * 2 * work.rows * work.keys_seen * work.head_dim
    return flops / (KERNEL_EFFICIENCY * _device_peak(chip))


def _scheduled_kernel_seconds(chip: Chip, calls: Mapping[str, int], work: AttentionWork) -> float:
    cycles = KERNEL_CYCLES.get((chip.name, work.head_dim, work.features, work.block))
    if cycles is None:
        flops = {
            name: 2 * work.rows * work.keys_touched * sum(getattr(work, width) for width in widths)
            for name, widths in PASSES.items()
        }
        executed = sum(count * flops[name] for name, count in calls.items())
        return executed / (KERNEL_EFFICIENCY * _device_peak(chip))
    rows = work.rows / work.block
    blocks = rows * work.keys_touched / work.block
    taken = sum(
        count * (blocks * cycles[name][0] + rows * cycles[name][1]) for name, count in calls.items()
    )
    # Every chip of the table above has a clock.
    assert chip.clock is not None
    return taken / (chip.clock * chip.cores)


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
        "the peak; a torus axis carries 90 GB/s (v5e) or 180 GB/s (v5p, v6e), and a group uses "
        "one up to 16 chips, two up to 256, three above",
        _flat_kernel_seconds,
        _bandwidth_by_size,
    ),
    "own": Assumptions(
        "kernels take the cycles that the compiler schedules for them, where they were read out, "
        "else 40 % of the peak on all that they execute; a collective uses the links that its "
        "group has on the torus, at 90 % of their printed rate",
        _scheduled_kernel_seconds,
        _bandwidth_by_place,
    ),
}
