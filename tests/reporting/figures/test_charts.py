"""Charts: no label may overlap another one or the axes, or leave the page."""

import itertools
import math
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from t5x_style.reporting.figures import charts
from t5x_style.reporting.figures.charts import MOST_POINTS, bars_svg, lines_svg


@pytest.fixture
def drawn(monkeypatch):
    """The figures saved as SVG, in order."""
    figures = []
    save = Figure.savefig

    def remember(figure, *arguments, **options):
        figures.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def boxes(figure):
    """Window boxes of every text on a drawn figure (ticks beyond the axes are not drawn)."""
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    texts = [axes.xaxis.label, axes.yaxis.label, *axes.texts]
    for axis in (axes.xaxis, axes.yaxis):
        low, high = axis.get_view_interval()
        ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
        texts += [label for place, label in ticks if low <= place <= high and axis.get_visible()]
    if axes.get_legend() is not None:
        texts += axes.get_legend().get_texts()
    return [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]


def assert_nothing_collides(figure):
    found = boxes(figure)
    assert len(found) > 3
    for (first, a), (second, b) in itertools.combinations(found, 2):
        if (first, a.bounds) != (second, b.bounds):
            overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(overlap) < 1, f"{first!r} overlaps {second!r}"
    for text, box in found:
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text


@pytest.mark.parametrize(
    "labels",
    [
        ["tokens_per_second"],
        ["legal", "general"],
        [f"a_run_with_a_long_name_learning_rate_{index}" for index in range(9)],
        [f"r{index}" for index in range(12)],
    ],
    ids=["one", "two", "long", "many"],
)
@pytest.mark.parametrize("last", [900, 1.31e12])
def test_labels_do_not_collide(drawn, labels, last):
    x = [last * index / 50 for index in range(51)]
    series = {
        label: (x, [place + value / last for value in x]) for place, label in enumerate(labels)
    }
    lines_svg("chart", series, x_label="tokens", y_label="nats per token")
    assert_nothing_collides(drawn[0])


def test_bar_labels_do_not_collide(drawn):
    seconds = {"step": 1e6, "compile": 20.0, "evaluate": 0.001, "save": 300.0}
    bars_svg("bars", seconds, dict.fromkeys(seconds, "11 h 46 min (99.9%)"))
    assert_nothing_collides(drawn[0])


def test_a_series_without_points_keeps_its_colour(drawn):
    series = {"first": ([], []), "second": ([1, 2], [3, 4]), "third": ([1, 2], [4, 5])}
    lines_svg("with", series, x_label="tokens", y_label="loss")
    series["first"] = ([1, 2], [2, 3])
    lines_svg("without", series, x_label="tokens", y_label="loss")

    def colours(figure):
        return {line.get_label(): line.get_color() for line in figure.axes[0].lines}

    assert colours(drawn[0]) == {
        label: colour for label, colour in colours(drawn[1]).items() if label != "first"
    }


def test_long_curves_are_thinned_and_keep_their_end(drawn):
    x = list(range(100_001))
    lines_svg("long", {"loss": (x, x)}, x_label="tokens", y_label="loss")
    (line,) = drawn[0].axes[0].lines
    assert MOST_POINTS / 2 < len(line.get_xdata()) <= MOST_POINTS
    assert line.get_xdata()[-1] == 100_000


def test_two_charts_on_a_page_share_no_id():
    def ids(svg):
        return {element.get("id") for element in ElementTree.fromstring(svg).iter()} - {None}

    series = {"loss": ([1, 2, 3], [3, 2, 1])}
    one, two = (lines_svg(name, series, x_label="tokens", y_label="y") for name in ("a", "b"))
    assert ids(one)
    assert not ids(one) & ids(two)
    # The same chart is the same text: a page can be compared with another.
    assert one == lines_svg("a", series, x_label="tokens", y_label="y")


def test_more_curves_than_colours_change_their_dash(drawn):
    series = {f"r{index:02}": ([1, 2], [index, 1]) for index in range(15)}
    lines_svg("many", series, x_label="tokens", y_label="loss")
    styles = [(line.get_color(), line.get_linestyle()) for line in drawn[0].axes[0].lines]
    assert len(set(styles)) == 15
    assert [dash for _, dash in styles] == ["-"] * 7 + ["--"] * 7 + [":"]
    assert styles[0][0] == styles[7][0] == styles[14][0] == "#0072B2"
    (legend,) = [axes.get_legend() for axes in drawn[0].axes]
    # 64 characters in a row: 9 for each, so 7 columns and three rows, which make the figure higher.
    assert legend._ncols == 7
    assert drawn[0].get_size_inches().tolist() == pytest.approx([6.2, 3.3 + 2 * 0.19])


def test_one_curve_has_no_legend_and_a_single_point_is_seen(drawn):
    for x, marker in (([1], None), ([1, 2], None), ([1, 2], "s")):
        lines_svg(
            "c", {"a": (x, x)}, x_label="x", y_label="y", marker=marker, format_y="{:.1%}".format
        )
    markers = [figure.axes[0].lines[0].get_marker() for figure in drawn]
    assert markers == ["o", "None", "s"]
    axes = drawn[0].axes[0]
    assert axes.get_legend() is None
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")
    assert axes.yaxis.get_major_formatter()(0.5, 0) == "50.0%"
    assert axes.xaxis.get_major_formatter()(1_500, 0) == "1.50K"
    assert drawn[0].get_size_inches().tolist() == pytest.approx([6.2, 3.3])
    assert not axes.spines["top"].get_visible()
    assert not axes.spines["right"].get_visible()
    assert len(axes.get_xticks()) <= 8
    assert axes.get_axisbelow() is True


def test_the_largest_bar_is_on_top_and_has_room_for_its_label(drawn):
    bars_svg("bars", {"b": 2.0, "c": 8.0, "a": 4.0}, {"a": "A", "b": "B", "c": "C"})
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["b", "a", "c"]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 4.0, 8.0]
    assert [text.get_text() for text in axes.texts] == ["B", "A", "C"]
    assert axes.get_xlim() == pytest.approx((0, 10.4))
    assert not axes.xaxis.get_visible()
    assert drawn[0].get_size_inches().tolist() == pytest.approx([6.2, 0.6 + 3 * 0.32])


@pytest.mark.parametrize(
    ("length", "kept"), [(1_500, 1_500), (1_501, 751), (3_000, 1_500), (3_001, 1_001)]
)
def test_a_curve_has_at_most_1500_points_and_its_last(length, kept):
    thin = charts._thinned(range(length))
    assert len(thin) == kept
    assert thin[-1] == length - 1
    assert len({b - a for a, b in itertools.pairwise(thin)}) == 1


def test_no_curve_crosses_a_break(drawn):
    lines_svg("x", {"a": ([1, 2, 3, 4], [4, 3, 2, 1])}, x_label="x", y_label="y", breaks=[2])
    curve, mark = drawn[0].axes[0].get_lines()
    assert list(mark.get_xdata()) == [2, 2]
    x, y = curve.get_data()
    assert list(x) == [1, 2, 2, 3, 4]
    assert math.isnan(y[2])
    assert [value for value in y if not math.isnan(value)] == [4, 3, 2, 1]
