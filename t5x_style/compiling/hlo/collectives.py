"""The collectives of a program: kind, axis, bytes, times, and whether they overlap with work.

The bytes on the wire are those that each chip sends when every group works as a ring, which is the
least possible for its kind: with o bytes of operand and g chips in a group, o (g - 1) for an
all-gather, o (g - 1) / g for a reduce-scatter or all-to-all, twice that for an all-reduce, o for a
permutation.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

from t5x_style.compiling.hlo.arrays import arrays, total_bytes
from t5x_style.compiling.hlo.costs import cycles_between
from t5x_style.compiling.hlo.groups import axes_of, device_groups
from t5x_style.compiling.hlo.kernel_calls import is_kernel
from t5x_style.compiling.hlo.loops import Schedule
from t5x_style.compiling.hlo.text import Computation, Instruction, Module

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
NETWORK = "dcn"
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
# `{1,2}x{0:3}`: the slices, and the chips of a slice.
_TARGET = re.compile(r'_xla_megascale_target="\{([\d,:]+)\}')


@dataclasses.dataclass(frozen=True)
class Collective:
    """One place in the program where chips exchange values.

    Attributes:
      kind: one of KINDS.
      axis: mesh axes that the groups run along: 'fsdp', 'data+fsdp', 'part of fsdp'; 'dcn' between
        slices, over the network of the data centre; '' where no mesh was given.
      bytes: of the whole value in one group: gathered, or before it is reduced.
      wire_bytes: sent by each chip.
      group: positions on the mesh of the devices of the first group; slices where the axis is
        'dcn'.
      count: runs in a step. Bytes are of one run.
      overlapped: whether work is scheduled between its start and its end. None where the text
        does not show it.
      cover_cycles: estimated cycles of that work, kernels not counted.
      source: see `Module.source`.
    """

    kind: str
    axis: str
    bytes: int
    wire_bytes: int
    group: tuple[int, ...]
    count: int
    overlapped: bool | None
    cover_cycles: int
    source: str

    @property
    def group_size(self) -> int:
        """Devices that exchange values with each other."""
        return len(self.group)


def collectives(
    module: Module, schedule: Schedule, mesh: Mapping[str, int], synchronous_hides: bool
) -> list[Collective]:
    """Every collective that runs, the most bytes on the wire first.

    Args:
      mesh: axis names to sizes, outermost first, over the devices in the order of the mesh. With
        several slices the outermost axis is the one that crosses them.
      synchronous_hides: whether this chip's compiler may overlap collectives that the text shows
        as synchronous (v5p). Their `overlapped` is then None.
    """
    found = []
    for name in schedule.ordered:
        computation = module.computations[name]
        for site in _sites(module, computation):
            if site.end is None:
                overlapped, cover = (None if synchronous_hides else False), 0
            else:
                cover = cycles_between(module, schedule, computation, site.start.name, site.end)
                overlapped = cover > 0 or _has_kernel_between(
                    computation, site.start.name, site.end
                )
            kind, axis, group, whole, wire = _traffic(module, site, mesh)
            found.append(
                Collective(
                    kind,
                    axis,
                    whole,
                    wire,
                    group,
                    schedule.times[name],
                    overlapped,
                    cover,
                    module.source(site.collective, site.start, *_producer(computation, site.start)),
                )
            )
    return sorted(found, key=lambda collective: -collective.wire_bytes * collective.count)


@dataclasses.dataclass(frozen=True)
class _Site:
    """A collective, and the instructions of a schedule that start and end it.

    `within` is the computation that contains it: the schedule's own, or that of a fusion.
    """

    collective: Instruction
    within: Computation
    start: Instruction
    end: str | None


def _sites(module: Module, computation: Computation) -> Iterator[_Site]:
    for instruction in computation.instructions.values():
        operation = instruction.operation
        if operation in KINDS:
            yield _Site(instruction, computation, instruction, None)
        elif operation.removesuffix("-start") in KINDS or _is_send(instruction):
            yield _Site(instruction, computation, instruction, _end_name(computation, instruction))
        elif operation.endswith("-start"):  # an asynchronous call, as to the SparseCore
            for within, called in _called_collectives(module, instruction):
                yield _Site(called, within, instruction, _end_name(computation, instruction))
        elif operation in ("fusion", "custom-call"):
            for within, called in _called_collectives(module, instruction):
                if _chain_key(called) is None:
                    yield _Site(called, within, instruction, None)
                elif _starts_chain(within, called):
                    end = _chain_end(module, computation, called)
                    yield _Site(called, within, instruction, end)


def _end_name(computation: Computation, start: Instruction) -> str:
    """Name of the instruction that ends an operation; the last, if a later iteration ends it."""
    done = start.operation.removesuffix("-start") + "-done"
    for instruction in computation.instructions.values():
        if start.name in instruction.operands and instruction.operation == done:
            return instruction.name
    return computation.root.name


def _chain_key(instruction: Instruction) -> tuple[str | None, str] | None:
    """The ids of a gather that the TPU compiler spreads over several fusions; None for others.

    The matrix products of those fusions hide it. The text repeats it in each of them, but it runs
    once, from the fusion that starts it to the last.
    """
    chain = instruction.attribute("chain_id")
    return None if chain is None else (instruction.attribute("channel_id"), chain)


def _starts_chain(within: Computation, collective: Instruction) -> bool:
    return any(
        reader.attribute("custom_call_target") == "AsyncCollectiveStart"
        for reader in within.instructions.values()
        if collective.name in reader.operands
    )


def _chain_end(module: Module, computation: Computation, collective: Instruction) -> str:
    chain = _chain_key(collective)
    links = [
        caller.name
        for caller in computation.instructions.values()
        if any(_chain_key(called) == chain for _, called in _called_collectives(module, caller))
    ]
    return links[-1]


def _called_collectives(
    module: Module, caller: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
    """(computation, collective) of all that an instruction calls, at any depth."""
    for name in caller.called:
        within = module.computations[name]
        for instruction in within.instructions.values():
            if instruction.operation in KINDS:
                yield within, instruction
            yield from _called_collectives(module, instruction)


def _has_kernel_between(computation: Computation, first: str, last: str) -> bool:
    names = list(computation.instructions)
    between = names[names.index(first) + 1 : names.index(last)]
    return any(is_kernel(computation.instructions[name]) for name in between)


def _producer(computation: Computation, instruction: Instruction) -> list[Instruction]:
    names = [name for name in instruction.operands if name in computation.instructions]
    return [computation.instructions[name] for name in names[:1]]


def _is_send(instruction: Instruction) -> bool:
    return instruction.operation == "send" and bool(_MEGASCALE.search(instruction.attributes))


def _traffic(
    module: Module, site: _Site, mesh: Mapping[str, int]
) -> tuple[str, str, tuple[int, ...], int, int]:
    """(kind, axis, a group, bytes of the whole value, bytes on the wire)."""
    if site.collective.operation == "send":
        return _slice_traffic(site.collective)
    kind = site.collective.operation.removesuffix("-start")
    if kind == "all-reduce" and site.within.name.startswith("all-reduce-scatter"):
        # Each chip keeps its own part of the sum, and the fusion sends no more than that.
        kind = "reduce-scatter"
    groups = device_groups(site.collective, module.partitions)
    operand = sum(
        total_bytes(site.within.instructions[name].shape) for name in site.collective.operands
    )
    axis = axes_of(groups, mesh) if mesh else ""
    return kind, axis, tuple(groups[0]), *_ring_bytes(kind, operand, len(groups[0]))


def _ring_bytes(kind: str, operand: int, size: int) -> tuple[int, int]:
    """(bytes of the whole value, bytes that each chip sends)."""
    whole = operand * size if kind == "all-gather" else operand
    if kind == "collective-permute":
        return whole, operand
    rounds = 2 if kind == "all-reduce" else 1
    return whole, math.ceil(rounds * whole * (size - 1) / size)


def _slice_traffic(send: Instruction) -> tuple[str, str, tuple[int, ...], int, int]:
    transfer = _MEGASCALE.search(send.attributes)
    assert transfer is not None
    kind = transfer[1].lower().replace("_", "-")
    operand = arrays(send.shape)[0].bytes
    if kind not in KINDS:  # from one chip to another
        return "collective-permute", NETWORK, (0, 1), operand, operand
    target = _TARGET.search(send.attributes)
    assert target is not None
    slices = _members(target[1])
    return kind, NETWORK, tuple(slices), *_ring_bytes(kind, operand, len(slices))


def _members(text: str) -> list[int]:
    """The members of '1,2' or '0:3', the last included."""
    members: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition(":")
        members += range(int(first), int(last or first) + 1)
    return members
