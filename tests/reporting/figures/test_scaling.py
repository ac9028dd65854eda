"""The figure of a plan: the boxes of its texts, its curves and points, and the file."""

import itertools
import math
import os
import re
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from t5x_style.accounting.laws import LAWS
from t5x_style.errors import UsageError
from t5x_style.reporting import known_models, scaling_figure
from t5x_style.reporting.figures import scaling
from tests.disk import Disk

BUDGETS = (1e13, 1e20, 3e22, 3.51e23, 3e25, 1e26)
BLOOMBERGGPT = {"flops": 3.51e23, "plan_params": 50_558_868_480, "plan_tokens": 568_747_622_400}

# C -> (N, D) in billions of Chinchilla-1, -2 and -3: regressions of Hoffmann et al. 2022, tables 3
# and A3, as figure 1 of Wu et al. 2023 draws them.
LINES = {
    1e22: ((9.01, 186.3), (8.70, 191.5), (6.58, 251.4)),
    1e23: ((28.35, 591.7), (26.89, 619.7), (18.93, 873.8)),
    3.51e23: ((52.99, 1111.1), (49.75, 1175.8), (33.67, 1723.5)),
    5.76e23: ((67.82, 1424.7), (63.42, 1513.7), (42.26, 2253.1)),
    1e24: ((89.27, 1879.1), (83.10, 2005.5), (54.43, 3036.5)),
    3.2e24: ((159.3, 3368.7), (146.9, 3629.6), (92.79, 5697.1)),
}
CHINCHILLA = ("Chinchilla-1", "Chinchilla-2", "Chinchilla-3")


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, in order."""
    figures = []
    save = Figure.savefig

    def remember(figure, *arguments, **options):
        figures.append(figure)
        return save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", remember)
    return figures


def plan_of(flops, share=1.0):
    """The optimum of a law, or with that share of its tokens."""
    params, tokens = LAWS["besiroglu"].optimal(flops)
    return {"flops": flops, "plan_params": params, "plan_tokens": tokens * share}


def line_named(axes, name):
    (line,) = (line for line in axes.lines if line.get_label() == name)
    return line


def markers_of(axes, marker):
    (line,) = (line for line in axes.lines if line.get_marker() == marker)
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True))


def labels_of(axes):
    """Every label at a point: the numbers of the models and the name of the plan."""
    return [text for text in axes.texts if text.get_text()]


def names_listed(figure):
    """Number -> model, from the list below the graphs."""
    texts = [
        text.get_text().strip("\u2007").split("  ", 1) for text in figure.legends[1].get_texts()
    ]
    return {int(number): name for number, name in texts}


def texts_of(figure):
    """Every text that is drawn, ticks beyond the axes left out."""
    texts = [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [axes.xaxis.label, axes.yaxis.label, *labels_of(axes)]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)
            texts += [label for place, label in ticks if low <= place <= high]
    return [text for text in texts if text.get_text()]


def letters_of(text):
    """The box of a text's letters, without the room for descenders above and below."""
    return text.get_window_extent().expanded(1, 0.75)


@pytest.mark.parametrize(
    ("flops", "share"),
    [
        *((flops, 1.0) for flops in BUDGETS),
        # Short of tokens the plan stays below its budget: wide axes, and most of the models.
        (6.31e22, 0.15),
        (3.51e23, 0.01),
    ],
)
def test_labels_are_complete_and_overlap_nothing(drawn, tmp_path, flops, share):
    scaling_figure(tmp_path / "plan.png", **plan_of(flops, share))
    (figure,) = drawn
    # The resolution of the file, which is not the one in which the labels were placed.
    figure.set_dpi(160)
    FigureCanvasAgg(figure).draw()
    assert_no_text_overlaps(figure)
    assert_numbers_name_their_models(figure)


def assert_no_text_overlaps(figure):
    boxes = [(text.get_text(), letters_of(text)) for text in texts_of(figure)]
    for (first, a), (second, b) in itertools.combinations(boxes, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) < 1, f"{first!r} overlaps {second!r}"
    for text, box in boxes:
        assert box.x0 >= 0, text
        assert box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1, text
        assert box.y1 <= figure.bbox.y1, text
    for axes in figure.axes:
        points = [(point, 2.5) for point in markers_of(axes, "o")]
        points += [(point, 7.5) for point in markers_of(axes, "*")]
        for (point, radius), (text, box) in itertools.product(points, boxes):
            x, y = axes.transData.transform(point)
            reach = radius * 160 / 72
            clear = (
                box.x0 >= x + reach - 1
                or box.x1 <= x - reach + 1
                or box.y0 >= y + reach - 1
                or box.y1 <= y - reach + 1
            )
            assert clear, f"{text!r} overlaps a marker"


def assert_numbers_name_their_models(figure):
    listed = names_listed(figure)
    low, high = figure.axes[0].get_xlim()
    models = {model.name: model for model in known_models() if low < model.flops < high}
    assert sorted(listed.values()) == sorted(models)
    for place, axes in enumerate(figure.axes):
        plan, *numbers = labels_of(axes)
        assert plan.get_text().startswith("this plan: ")
        assert [int(text.get_text()) for text in numbers] == list(listed)
        for text in numbers:
            model = models[listed[int(text.get_text())]]
            point = (model.flops, (model.params, model.tokens)[place])
            assert text.xy == pytest.approx(point)
            x, y = axes.transData.transform(point)
            box = text.get_window_extent()
            # Within a quarter of an inch of its point.
            assert math.dist((x, y), ((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2)) < 40
    named = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"Kaplan", "Chinchilla-1", "Chinchilla-2", "Chinchilla-3"} <= named
    assert any(text.startswith("budget: ") for text in named)


def test_curves_pass_through_the_published_table(drawn, tmp_path):
    scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT)
    for place, axes in enumerate(drawn[0].axes):
        for law, name in enumerate(CHINCHILLA):
            line = line_named(axes, name)
            for flops, table in LINES.items():
                # A power law is straight between two of its points on log axes.
                at = 10 ** np.interp(
                    math.log10(flops), np.log10(line.get_xdata()), np.log10(line.get_ydata())
                )
                assert at == pytest.approx(table[law][place] * 1e9, rel=1e-3)
        kaplan = line_named(axes, "Kaplan")
        slope = np.diff(np.log(kaplan.get_ydata())) / np.diff(np.log(kaplan.get_xdata()))
        # Kaplan et al. 2020: N goes as C^0.73 and D as the rest.
        assert slope == pytest.approx((0.73, 0.27)[place])


def test_places_of_band_budget_star_and_points(drawn, tmp_path):
    scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT, plan_name="ours")
    spent = 6.0 * 50_558_868_480 * 568_747_622_400
    for place, axes in enumerate(drawn[0].axes):
        value = (BLOOMBERGGPT["plan_params"], BLOOMBERGGPT["plan_tokens"])[place]
        assert markers_of(axes, "*") == [(spent, value)]
        assert any(list(line.get_xdata()) == [3.51e23, 3.51e23] for line in axes.lines)
        points = markers_of(axes, "o")
        chinchilla = (6 * 70e9 * 1.4e12, (70e9, 1.4e12)[place])
        assert any(point == pytest.approx(chinchilla) for point in points)
        # The well-known models of the paper's own figure, and nothing beyond the axes.
        assert len(points) > 15
        low, high = axes.get_xlim()
        assert all(low < flops < high for flops, _ in points)
        (band,) = axes.collections
        corners = band.get_paths()[0].vertices
        at_low = [y for x, y in corners if x == pytest.approx(low)]
        starts = [line_named(axes, name).get_ydata()[0] for name in CHINCHILLA]
        assert min(at_low) == pytest.approx(min(starts))
        assert max(at_low) == pytest.approx(max(starts))


def test_lines_differ_without_colour(drawn, tmp_path):
    scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT)
    for axes in drawn[0].axes:
        laws = [line_named(axes, name) for name in ("Kaplan", *CHINCHILLA)]
        assert len({line.get_linestyle() for line in laws}) == 4


def test_a_known_model_is_not_drawn_under_its_own_plan(drawn, tmp_path):
    scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT, plan_name="BloombergGPT")
    for axes in drawn[0].axes:
        labels = [text.get_text() for text in axes.texts if "BloombergGPT" in text.get_text()]
        assert len(labels) == 1
    assert "BloombergGPT" not in names_listed(drawn[0]).values()


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_the_same_plan_is_the_same_file(tmp_path, suffix):
    one = scaling_figure(tmp_path / f"one.{suffix}", **BLOOMBERGGPT)
    other = scaling_figure(tmp_path / f"other.{suffix}", **BLOOMBERGGPT)
    assert one.read_bytes() == other.read_bytes()


def test_the_same_plan_is_the_same_file_in_another_process(tmp_path):
    here = scaling_figure(tmp_path / "here.html", **BLOOMBERGGPT)
    there = tmp_path / "there.html"
    code = (
        "from t5x_style.reporting import scaling_figure; "
        f"scaling_figure({str(there)!r}, **{BLOOMBERGGPT!r})"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert here.read_bytes() == there.read_bytes()


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_a_file_needs_no_other_file(tmp_path, suffix):
    text = scaling_figure(tmp_path / f"plan.{suffix}", **BLOOMBERGGPT).read_text()
    assert not re.search(r"<script|<link|<image|<img|@import|\bsrc=", text)
    assert all(target.startswith("#") for target in re.findall(r'href="([^"]*)"', text))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    # The remaining addresses are names of XML vocabularies, which nothing fetches.
    for address in re.findall(r'"(https?:[^"]*)"', text):
        assert address.startswith("http://www.w3.org/"), address


def test_the_svg_is_well_formed(tmp_path):
    path = scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT)
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_the_page_has_both_graphs_and_the_numbers(tmp_path):
    page = scaling_figure(
        tmp_path / "new" / "plan.html", **BLOOMBERGGPT, plan_name="law & <order>"
    ).read_text()
    # One drawing, with both graphs in it.
    assert page.count("<svg") == 1
    assert {'id="scaling-axes_1"', 'id="scaling-axes_2"'} <= set(re.findall(r'id="[^"]*"', page))
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert "law &amp; &lt;order&gt;" in page
    assert "<order>" not in page
    # The laws at the budget (Wu et al. 2023, section 3.2), a model with its source.
    for number in ("53.0B", "1.11T", "49.8B", "1.18T", "3.51e23"):
        assert number in page
    assert re.search(r'<td class="number">19</td><td>Gopher 280B</td>', page)
    assert "arXiv 2203.15556" in page


def test_a_budget_beyond_all_models_has_a_page_without_them(tmp_path):
    page = scaling_figure(tmp_path / "plan.html", **plan_of(1e13)).read_text()
    assert "Models drawn" not in page


def test_a_dollar_in_a_name_is_no_formula(drawn, tmp_path):
    scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT, plan_name=r"$\frac$ 5M run")
    assert drawn[0].axes[0].texts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops": 0}, "flops = 0: must be a finite number above 0"),
        ({"flops": math.inf}, "flops = inf"),
        ({"plan_params": -1}, "plan_params = -1"),
        ({"plan_tokens": math.nan}, "plan_tokens = nan"),
        ({"plan_name": " "}, "plan_name = ' ': must have 1 to 32 characters"),
        ({"plan_name": "x" * 33}, "must have 1 to 32 characters"),
    ],
)
def test_wrong_values_are_refused(tmp_path, change, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        scaling_figure(tmp_path / "plan.svg", **(BLOOMBERGGPT | change))
    assert not list(tmp_path.iterdir())


def test_a_path_with_a_scheme_is_refused():
    with pytest.raises(UsageError, match=r"figure = 'gs://bucket/plan\.svg': gs:// is not"):
        scaling_figure("gs://bucket/plan.svg", **BLOOMBERGGPT)


@pytest.mark.parametrize(
    ("name", "hint"), [("plan.pdf", ""), ("plan", ""), ("plan.htm", "; did you mean '.html'?")]
)
def test_another_suffix_is_refused(tmp_path, name, hint):
    with pytest.raises(UsageError, match=re.escape(f"must end in .svg, .png, .html{hint}")):
        scaling_figure(tmp_path / name, **BLOOMBERGGPT)


def touches(line, box):
    return line.get_path().transformed(line.get_transform()).intersects_bbox(box, filled=False)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_a_label_is_on_a_line_only_where_no_free_spot_is_next_to_its_point(drawn, tmp_path, share):
    """And then, alone, it has an outline to be legible."""
    scaling_figure(tmp_path / "plan.png", **plan_of(3.51e23, share))
    # At the resolution at which the labels were placed, which is not that of the file.
    FigureCanvasAgg(drawn[0]).draw()
    on_lines = 0
    for axes in drawn[0].axes:
        curves = [line for line in axes.lines if line.get_linestyle() != "None"]
        points = [(point, 5.0) for point in markers_of(axes, "o")]
        points += [(point, 15.0) for point in markers_of(axes, "*")]
        sizes = {tuple(point): size * axes.figure.dpi / 72 for point, size in points}
        markers = {
            point: Bbox.from_extents(x - size / 2, y - size / 2, x + size / 2, y + size / 2)
            for point, size in sizes.items()
            for x, y in [axes.transData.transform(point)]
        }
        boxes = {text: letters_of(text) for text in labels_of(axes)}
        for text, box in boxes.items():
            crossed = sum(touches(curve, box) for curve in curves)
            assert bool(text.get_path_effects()) == bool(crossed)
            if not crossed:
                continue
            on_lines += 1
            taken = [*markers.values(), *(other for name, other in boxes.items() if name != text)]
            x, y = axes.transData.transform(text.xy)
            marker = sizes[tuple(text.xy)]
            reach = (marker + box.width) / 2 + 1, (marker + box.height) / 2 + 1
            centre = (box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2
            for right, up in itertools.product((-1, 0, 1), repeat=2):
                spot = box.translated(
                    x + right * reach[0] - centre[0], y + up * reach[1] - centre[1]
                )
                busy = spot.count_overlaps(taken) + sum(touches(curve, spot) for curve in curves)
                inside = axes.bbox.contains(*spot.min) and axes.bbox.contains(*spot.max)
                assert (right, up) == (0, 0) or busy or not inside, text.get_text()
    assert on_lines > 0


@pytest.mark.parametrize(
    ("value", "tick"),
    [
        (10, "10"), (999, "999"), (1e3, "1K"), (1e5, "100K"), (1e6, "1M"), (1e8, "100M"),
        (1e9, "1B"), (1e11, "100B"), (1e12, "1T"), (1e14, "100T"), (1e15, "1e15"), (1e16, "1e16"),
        (0.9995e9, "1B"),
    ],
)  # fmt: skip
def test_a_tick_is_a_power_of_ten_in_words(value, tick):
    assert scaling._power_of_ten(value) == tick


def test_the_axes_follow_the_budget_and_the_plan(drawn, tmp_path):
    """1.7 decades below and 1.3 above the budget, as wide as the paper's figure."""
    scaling_figure(tmp_path / "a.png", flops=1e22, plan_params=1e9, plan_tokens=1e21 / 6e9)
    low, high = 1e21 / 50.119, 1e22 * 19.953
    for axes, quantity in zip(drawn[0].axes, ("parameters", "tokens"), strict=True):
        assert axes.get_xlim() == pytest.approx((low, high), rel=1e-4)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("model FLOPs (6 N D)", quantity)
        values = [y for line in axes.lines for y in line.get_ydata() if y > 1]
        assert axes.get_ylim() == pytest.approx((min(values) / 1.6, max(values) * 1.6))
        assert axes.xaxis.get_major_formatter()(1e22, 0) == "1e22"
    # Five names in a row.
    rows = math.ceil(len(names_listed(drawn[0])) / 5)
    assert drawn[0].get_size_inches().tolist() == pytest.approx([9.0, 4.8 + 0.17 * rows])
    content = (tmp_path / "a.png").read_bytes()
    # The header of a PNG: 160 dots an inch.
    assert int.from_bytes(content[16:20]) == 1_440


@pytest.mark.parametrize(
    ("tokens", "ratio"), [(20e9, "20.0"), (99.94e9, "99.9"), (99.95e9, "100"), (2e12, "2,000")]
)
def test_the_numbers_of_a_row(tokens, ratio):
    assert scaling._numbers(1e9, tokens)[2] == ratio
    assert scaling._numbers(1e9, 20e9) == ["1.00B", "20.0B", "20.0", "1.20e20"]


def test_a_figure_is_on_the_disk_when_its_path_is_returned(tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "_image", lambda content, suffix: b"drawn")
    disk = Disk(monkeypatch)
    assert disk.has_name(scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT))
    # Names of up to 32 characters fit.
    assert scaling_figure(tmp_path / "plan.svg", **BLOOMBERGGPT, plan_name="x" * 32)
