"""Which devices take part in a collective, and which axes of the mesh those groups run along."""

import math
import re
from collections.abc import Mapping

from t5x_style.compiling.hlo.text import Instruction

_NAMED = re.compile(
    r"replica_groups=mesh\[(?P<sizes>[^\]]*)\](?:, device_ids=\((?P<ids>[^)]*\)?)\))? "
    r"\{(?P<axes>[^}]*)\}"
)
_IOTA = re.compile(
    r"replica_groups=\[(?P<shape>[\d,]+)\]<=\[(?P<reshape>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?"
)
_GROUP_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}")


def device_groups(instruction: Instruction, partitions: int) -> list[list[int]]:
    """The groups of a collective, as positions on the mesh; all devices where it names none.

    HLO has three spellings: lists, a rearranged range (`[4,2]<=[2,4]T(1,0)`), and named axes of a
    mesh that the compiler made. The pairs of a permutation are groups of two; a device that sends
    to itself is left out.
    """
    attributes = instruction.attributes
    if match := _PAIRS.search(attributes):
        pairs = _number_lists(match[1])
        return [pair for pair in pairs if pair[0] != pair[1]] or pairs
    if match := _NAMED.search(attributes):
        return _groups_along_axes(match)
    if match := _IOTA.search(attributes):
        shape, reshape = _numbers(match["shape"]), _numbers(match["reshape"])
        ids = _transposed_range(reshape, _numbers(match["order"] or ""))
        size = shape[-1]
        return [ids[start : start + size] for start in range(0, len(ids), size)]
    if (match := _GROUP_LISTS.search(attributes)) and match[1]:
        return _number_lists(match[1])
    return [list(range(partitions))]


def axes_of(groups: list[list[int]], mesh: Mapping[str, int]) -> str:
    """The mesh axes along which the groups run, 'fsdp' or 'data+fsdp'.

    'part of fsdp' where a group does not span the whole axis, as in a collective that the compiler
    split or in a permutation between neighbours of a longer ring.

    Args:
      groups: positions on the mesh, its last axis the fastest.
      mesh: axis names to sizes, outermost first.
    """
    sizes = list(mesh.values())
    varying: set[str] = set()
    for group in groups:
        coordinates = [_coordinates(position, sizes) for position in group]
        for axis, places in zip(mesh, zip(*coordinates, strict=True), strict=True):
            if len(set(places)) > 1:
                varying.add(axis)
    names = [axis for axis in mesh if axis in varying]
    whole = math.prod(mesh[axis] for axis in names) == len(groups[0])
    return ("" if whole else "part of ") + "+".join(names)


def _coordinates(position: int, sizes: list[int]) -> tuple[int, ...]:
    found = []
    for size in reversed(sizes):
        position, place = divmod(position, size)
        found.append(place)
    return tuple(reversed(found))


def _groups_along_axes(match: re.Match[str]) -> list[list[int]]:
    """The groups of `mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}`."""
    named = dict(re.findall(r"'([^']+)'=(\d+)", match["sizes"]))
    sizes = [int(size) for size in named.values()]
    chosen = re.findall(r"'([^']+)'", match["axes"])
    ids = list(range(math.prod(sizes)))
    if match["ids"]:
        shape, order = re.findall(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", match["ids"])[0]
        ids = _transposed_range(_numbers(shape), _numbers(order))
    groups: dict[tuple[int, ...], list[int]] = {}
    for place, device in enumerate(ids):
        coordinates = zip(named, _coordinates(place, sizes), strict=True)
        key = tuple(coordinate for axis, coordinate in coordinates if axis not in chosen)
        groups.setdefault(key, []).append(device)
    return list(groups.values())


def _transposed_range(shape: list[int], order: list[int]) -> list[int]:
    """0, 1, 2, ... as an array of that shape, transposed and flattened."""
    order = order or list(range(len(shape)))
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    ids = [0]
    for axis in order:
        ids = [start + step * strides[axis] for start in ids for step in range(shape[axis])]
    return ids


def _number_lists(text: str) -> list[list[int]]:
    return [_numbers(group) for group in re.findall(r"\{([\d,]*)\}", text)]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
