"""How many of a chip's links carry a group's collective, by the group's place on the torus."""

import itertools
from collections.abc import Sequence

# Places on the torus: (x, y, z).
Places = Sequence[Sequence[int]]


def torus_shape(places: Places) -> tuple[int, ...]:
    """Length of the torus along each axis, from the places of all its chips."""
    return tuple(max(along) + 1 for along in zip(*places, strict=True))


def closed_axes(shape: Sequence[int], interconnect: str) -> tuple[bool, ...]:
    """Which axes are rings: their last chip has a link to the first.

    All axes of a slice of a 3-D torus are rings if it consists of whole cubes of 4 x 4 x 4, which
    optical switches join. On a 2-D torus, the axes as long as the whole pod's, 16, are rings.
    (Cloud TPU's pages of v4, v5p, v5e and v6e; scaling book, 'TPU networking'.)
    """
    if interconnect == "torus_3d":
        cubes = all(length % 4 == 0 for length in shape)
        return (cubes,) * len(shape)
    return tuple(length == 16 for length in shape)


def links_of_group(group: Places, shape: Sequence[int], closed: Sequence[bool]) -> float:
    """Links of a chip that carry a group's collective, in one direction.

    Along every axis on which the group extends, a ring has two links and a line one, since the ends
    of a line have no other. Where the group takes only every s-th chip, s groups share the links in
    between. A group that is not a box of the torus counts as a line.
    """
    links, volume = 0.0, 1
    for length, round_trip, along in zip(shape, closed, zip(*group, strict=True), strict=True):
        places = sorted(set(along))
        if len(places) == 1:
            continue
        volume *= len(places)
        stride = min(after - before for before, after in itertools.pairwise(places))
        # Two chips are joined by one link, also on a ring.
        ring = round_trip and len(places) * stride == length and length > 2
        links += (2 if ring else 1) / stride
    return links if volume == len(group) else min(links, 1.0)
