"""Charts: no label may overlap another one or the axes, or leave the page."""

import itertools
from xml.etree import ElementTree

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
