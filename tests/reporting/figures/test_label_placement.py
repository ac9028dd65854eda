"""Places of labels, held against geometry done another way."""

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from t5x_style.reporting.figures.label_placement import Box, Point, Segment, place_labels, spread

PAGE = Box(0, 0, 360, 360)
COORDINATE = st.integers(-20, 20)
POINT = st.builds(Point, COORDINATE, COORDINATE)


def anchors(seed, number):
    dice = random.Random(seed)
    return [
        Box.around(Point(dice.uniform(20, 340), dice.uniform(20, 340)), 5, 5) for _ in range(number)
    ]


def samples(segment, number=400):
    (x0, y0), (x1, y1) = segment
    for step in range(number + 1):
        share = step / number
        yield Point(x0 + share * (x1 - x0), y0 + share * (y1 - y0))


@given(POINT, POINT)
def test_a_segment_cuts_a_box_where_one_of_its_points_lies_within(start, end):
    box = Box(-5.5, -3.5, 7.5, 4.5)
    segment = Segment(start, end)
    inside = any(
        box.x0 < point.x < box.x1 and box.y0 < point.y < box.y1 for point in samples(segment)
    )
    # Samples may step over a corner, but what they find is there, and the box a little wider tells.
    if inside and start != end:
        assert box.cut_by(segment)
    wider = Box(-5.8, -3.8, 7.8, 4.8)
    if box.cut_by(segment):
        assert any(
            wider.x0 < point.x < wider.x1 and wider.y0 < point.y < wider.y1
            for point in samples(segment)
        )


@pytest.mark.parametrize("seed", range(5))
def test_no_label_lies_on_another_or_on_a_marker_or_off_the_page(seed):
    markers = anchors(seed, 30)
    lines = [Segment(Point(0, 40), Point(360, 300)), Segment(Point(180, 0), Point(180, 360))]
    places = place_labels(markers, [(55, 11)] * 30, within=PAGE, lines=lines)
    assert None not in places
    for one, other in itertools.combinations(places, 2):
        assert not one.box.meets(other.box)
    for place, marker in itertools.product(places, markers):
        assert not place.box.meets(marker)
    for place in places:
        assert PAGE.holds(place.box)
        for other in places:
            if other.leader is not None and place is not other:
                assert not place.box.cut_by(other.leader)


@pytest.mark.parametrize("angle", range(0, 360, 15))
def test_labels_of_two_close_markers_are_not_taken_for_each_others(angle):
    centres = [
        Point(180, 180),
        Point(180 + 9 * math.cos(math.radians(angle)), 180 + 9 * math.sin(math.radians(angle))),
    ]
    markers = [Box.around(centre, 5, 5) for centre in centres]
    places = place_labels(markers, [(50, 11)] * 2, within=PAGE, lines=[])
    for own, place in enumerate(places):
        if place.leader is None:
            distances = [math.dist(centre, place.box.nearest(centre)) for centre in centres]
            assert distances[own] == min(distances)


def test_a_lone_label_stands_to_the_right_of_its_marker():
    (marker,) = anchors(0, 1)
    (place,) = place_labels([marker], [(50, 11)], within=PAGE, lines=[])
    assert place.leader is None
    assert marker.x1 < place.box.x0 < marker.x1 + 6


def test_a_label_leaves_the_line_that_its_marker_is_on():
    marker = Box.around(Point(100, 100), 5, 5)
    line = Segment(Point(0, 100), Point(360, 100))
    (place,) = place_labels([marker], [(50, 11)], within=PAGE, lines=[line])
    assert not place.box.cut_by(line)


def test_no_place_is_said_and_not_made_up():
    marker = Box.around(Point(100, 100), 5, 5)
    assert place_labels([marker], [(400, 11)], within=PAGE, lines=[]) == [None]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=8).map(sorted), st.floats(0, 20))
def test_spread_is_the_isotonic_regression_of_what_is_left(places, gap):
    found = spread(places, gap)
    assert all(two - one >= gap - 1e-9 for one, two in itertools.pairwise(found))
    oracle = isotonic_regression([place - index * gap for index, place in enumerate(places)]).x
    assert found == pytest.approx([value + index * gap for index, value in enumerate(oracle)])
