"""How many of a chip's links work for a group of chips, by where the group lies on the torus."""

import itertools
from collections.abc import Sequence

# Each is a place on the torus: (x, y, z).
Places = Sequence[Sequence[int]]


def torus_shape(places: Places) -> tuple[int, ...]:
    """Length of the torus along each axis, from the places of all its chips."""
    return tuple(max(along) + 1 for along in zip(*places, strict=True))


def closed_axes(shape: Sequence[int], interconnect: str) -> tuple[bool, ...]:
    """Which axes come round: where the last chip has a link to the first.

    A slice of a 3-D torus is closed where it is made of whole cubes of 4 x 4 x 4, which are joined
    by optical switches; one of a 2-D torus on the axes that are as long as the whole pod's, 16.
    (Cloud TPU's pages of v4, v5p, v5e and v6e; scaling book, 'TPU networking'.)
    """
    if interconnect == "torus_3d":
        cubes = all(length % 4 == 0 for length in shape)
        return (cubes,) * len(shape)
    return tuple(length == 16 for length in shape)


def links_of_group(group: Places, shape: Sequence[int], closed: Sequence[bool]) -> float:
    """Links of each chip that carry a group's collective, each in one direction.

    Along every axis on which the group extends, a closed ring has two and a line one: its ends
    have no other. Where the group takes each s-th chip alone, s groups share the links between.
    A group that is no box of the torus counts as a line.
    """
    links, volume = 0.0, 1
    for length, round_trip, along in zip(shape, closed, zip(*group, strict=True), strict=True):
        places = sorted(set(along))
        if len(places) == 1:
            continue
        volume *= len(places)
        stride = min(after - before for before, after in itertools.pairwise(places))
        # Two chips are joined by one link, round or not.
        ring = round_trip and len(places) * stride == length and length > 2
        links += (2 if ring else 1) / stride
    return links if volume == len(group) else min(links, 1.0)
