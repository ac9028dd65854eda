"""Where labels go so that none lies on another: plain geometry, in points of the page."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

# How far from its anchor a label may begin, nearest first, and in how many directions.
_RADII = (4.0, 9.0, 15.0, 22.0, 30.0, 40.0, 52.0, 66.0, 82.0, 100.0, 125.0, 155.0)
_DIRECTIONS = 16
# A label no farther than this from its anchor needs no line between them.
_LEADER_FROM = 5.0
# What a flaw costs, in points of distance that one would go to avoid it.
_LABEL_ON_LINE = 35.0
_NEARER_TO_ANOTHER = 30.0
_LEADER = 3.0
_LEADER_ON_LINE = 1.5
_LEADER_ON_MARKER = 25.0
_LEADERS_CROSS = 40.0
# How often each label may choose, and how often all start again because one found no place.
_SWEEPS, _ATTEMPTS = 4, 5


class Point(NamedTuple):
    x: float
    y: float


class Segment(NamedTuple):
    start: Point
    end: Point


class Box(NamedTuple):
    """A rectangle: left, bottom, right, top."""

    x0: float
    y0: float
    x1: float
    y1: float

    @classmethod
    def around(cls, centre: Point, width: float, height: float) -> "Box":
        return cls(
            centre.x - width / 2, centre.y - height / 2, centre.x + width / 2, centre.y + height / 2
        )

    def middle(self) -> Point:
        return Point((self.x0 + self.x1) / 2, (self.y0 + self.y1) / 2)

    def meets(self, other: "Box") -> bool:
        """Whether they share any area."""
        return (
            self.x0 < other.x1 and other.x0 < self.x1 and self.y0 < other.y1 and other.y0 < self.y1
        )

    def holds(self, other: "Box") -> bool:
        """Whether `other` lies within."""
        return (
            self.x0 <= other.x0
            and self.y0 <= other.y0
            and other.x1 <= self.x1
            and other.y1 <= self.y1
        )

    def nearest(self, point: Point) -> Point:
        """The point of the box that lies nearest to `point`."""
        return Point(
            min(max(point.x, self.x0), self.x1),
            min(max(point.y, self.y0), self.y1),
        )

    def cut_by(self, segment: Segment) -> bool:
        """Whether any part of the segment lies within (Liang and Barsky's clipping)."""
        (x, y), end = segment
        entered, left = 0.0, 1.0
        for step, to_low, to_high in (
            (end.x - x, self.x0 - x, self.x1 - x),
            (end.y - y, self.y0 - y, self.y1 - y),
        ):
            if step == 0:
                if to_low > 0 or to_high < 0:
                    return False
                continue
            first, last = sorted((to_low / step, to_high / step))
            entered, left = max(entered, first), min(left, last)
        return entered < left


class Placed(NamedTuple):
    """Where a label stands, and the line from its anchor where it stands apart from it."""

    box: Box
    leader: Segment | None


# (index, radius) -> (cost, place) of what that label may choose at that distance.
Choices = Callable[[int, float], list[tuple[float, Placed]]]


def place_labels(
    anchors: Sequence[Box],
    sizes: Sequence[tuple[float, float]],
    *,
    within: Box,
    lines: Sequence[Segment],
) -> list[Placed | None]:
    """A place for a label beside each anchor.

    Greedy: the first label goes first, then those with the most neighbours; each takes the cheapest
    of its free places, by the distance to its anchor, the lines that it would lie on and what its
    leader would cross. Then each in turn may move to a place that has become cheaper; if one found
    none, it goes early in another attempt. The same input always gives the same places.

    Args:
      anchors: the marker of each label; no label lies on any of them.
      sizes: (width, height) of each label, with the air that it needs around it.
      within: where labels may lie.
      lines: what a label should rather not lie on.

    Returns:
      A place for each label; None where all were taken.
    """
    centres = [anchor.middle() for anchor in anchors]

    def neighbours(index: int) -> int:
        return sum(math.dist(centres[index], other) < 60 for other in centres)

    # What a place costs by itself is worked out once, and only as far out as a label looks.
    @functools.cache
    def choices(index: int, radius: float) -> list[tuple[float, Placed]]:
        return _choices(index, radius, anchors, sizes[index], within, lines)

    order = sorted(range(len(anchors)), key=lambda index: (index > 0, -neighbours(index), index))
    for _ in range(_ATTEMPTS):
        found = _attempt(order, choices)
        if None not in found:
            break
        # Hemmed in by the others: next time they choose after it.
        order.sort(key=lambda index: (index > 0, found[index] is not None))
    return found


def _attempt(order: Sequence[int], choices: Choices) -> list[Placed | None]:
    found: list[Placed | None] = [None] * len(order)
    for _ in range(_SWEEPS):
        before = list(found)
        for index in order:
            others = [
                placed
                for place, placed in enumerate(found)
                if placed is not None and place != index
            ]
            found[index] = _cheapest(index, choices, others)
        if found == before:
            break
    return found


def _cheapest(index: int, choices: Choices, taken: Sequence[Placed]) -> Placed | None:
    best, best_cost = None, math.inf
    for radius in _RADII:
        # The distance is the least that a place can cost.
        if radius >= best_cost:
            break
        for cost, placed in choices(index, radius):
            if cost >= best_cost or any(_collide(placed, other) for other in taken):
                continue
            cost += _LEADERS_CROSS * sum(_leaders_cross(placed, other) for other in taken)
            if cost < best_cost:
                best, best_cost = placed, cost
    return best


def _choices(
    index: int,
    radius: float,
    anchors: Sequence[Box],
    size: tuple[float, float],
    within: Box,
    lines: Sequence[Segment],
) -> list[tuple[float, Placed]]:
    """(cost, place) for a label in all directions, where no other label stands."""
    anchor = anchors[index]
    others = [*anchors[:index], *anchors[index + 1 :]]
    (x, y), (width, height) = anchor.middle(), size
    # The nearest edge of the label, not its middle, is `radius` away from the marker.
    reach_x = radius + (anchor.x1 - anchor.x0 + width) / 2
    reach_y = radius + (anchor.y1 - anchor.y0 + height) / 2
    found = []
    for direction in range(_DIRECTIONS):
        angle = 2 * math.pi * direction / _DIRECTIONS
        centre = Point(x + math.cos(angle) * reach_x, y + math.sin(angle) * reach_y)
        box = Box.around(centre, width, height)
        if within.holds(box) and not any(box.meets(marker) for marker in anchors):
            placed = Placed(box, _leader(anchor, box))
            found.append((radius + _flaws(placed, anchor, others, lines), placed))
    return found


def _leader(anchor: Box, box: Box) -> Segment | None:
    start = anchor.middle()
    end = box.nearest(start)
    return Segment(start, end) if _gap(anchor, box) > _LEADER_FROM else None


def _gap(one: Box, other: Box) -> float:
    """Distance between two boxes; 0 where they meet."""
    return math.hypot(
        max(one.x0 - other.x1, other.x0 - one.x1, 0.0),
        max(one.y0 - other.y1, other.y0 - one.y1, 0.0),
    )


def _flaws(placed: Placed, anchor: Box, others: Sequence[Box], lines: Sequence[Segment]) -> float:
    box, leader = placed
    cost = _LABEL_ON_LINE * sum(box.cut_by(line) for line in lines)
    if leader is None:
        # Without a line between them, a label is read as that of the nearest marker.
        own = _gap(anchor, box)
        return cost + _NEARER_TO_ANOTHER * any(_gap(other, box) <= own for other in others)
    cost += _LEADER
    cost += _LEADER_ON_LINE * sum(_cross(leader, line) for line in lines)
    return cost + _LEADER_ON_MARKER * sum(other.cut_by(leader) for other in others)


def _collide(one: Placed, other: Placed) -> bool:
    """Whether either label lies on the other or on its leader."""
    return (
        one.box.meets(other.box)
        or (other.leader is not None and one.box.cut_by(other.leader))
        or (one.leader is not None and other.box.cut_by(one.leader))
    )


def _leaders_cross(one: Placed, other: Placed) -> bool:
    return one.leader is not None and other.leader is not None and _cross(one.leader, other.leader)


def _cross(one: Segment, other: Segment) -> bool:
    def side(line: Segment, point: Point) -> float:
        (x, y), end = line
        return (end.x - x) * (point.y - y) - (end.y - y) * (point.x - x)

    return (
        side(one, other.start) * side(one, other.end) < 0
        and side(other, one.start) * side(other, one.end) < 0
    )


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Places at least `gap` apart in their order, moved by the least sum of squares.

    With i gaps taken off the i-th place, that is the nearest non-decreasing sequence: neighbours
    out of order are pooled at their mean until none is.

    Args:
      places: in ascending order.
    """
    pools: list[list[float]] = []
    for index, place in enumerate(places):
        pools.append([place - index * gap])
        while len(pools) > 1 and _mean(pools[-2]) > _mean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    flat = [_mean(pool) for pool in pools for _ in pool]
    return [place + index * gap for index, place in enumerate(flat)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
