"""The figure of a plan: where it stands among scaling laws and the models that others trained.

Two graphs as in figure 1 of Wu et al. 2023 (BloombergGPT, arXiv 2303.17564): parameters against
FLOPs, and tokens against FLOPs, on log axes.
"""

import html
import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from t5x_style.accounting.laws.chinchilla import APPROACH_3, LAWS, Law
from t5x_style.accounting.laws.kaplan import KAPLAN
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.quantities import count, scientific
from t5x_style.reporting.figures.charts import COLOURS, embedded_svg
from t5x_style.reporting.figures.known_models import KnownModel, known_models
from t5x_style.reporting.figures.label_placement import Box, Point, Segment, place_labels, spread
from t5x_style.reporting.html import captioned, html_table, page

SUFFIXES = (".svg", ".png", ".html")


class _Line(NamedTuple):
    """A law on the graphs. In grey, its dash and the name at its end tell it from the others."""

    name: str
    law: Law
    colour: str
    dash: str


_CHINCHILLA = (
    _Line("Chinchilla-1", LAWS["approach_1"], COLOURS[0], "-"),
    _Line("Chinchilla-2", LAWS["approach_2"], COLOURS[2], "--"),
    _Line("Chinchilla-3", APPROACH_3, COLOURS[3], "-."),
)
_LINES = (_Line("Kaplan", KAPLAN, COLOURS[6], ":"), *_CHINCHILLA)
_QUANTITIES = ("parameters", "tokens")
_INK, _PALE_INK = "#303030", "#808080"
_NOTE = (
    "Shaded: between the three Chinchilla laws. Points: models as published, each at C = 6 N D. "
    "Star: the plan."
)

# Budgets to either side of the plan's: about the width of the paper's figure, 1e22 to 3.2e24.
_DECADES_BELOW, _DECADES_ABOVE = 1.7, 1.3

# Inches. Fixed margins and no layout engine, since labels are placed before anything is drawn.
_PANEL_WIDTH, _PANEL_HEIGHT = 5.0, 5.0
_LEFT, _RIGHT, _BOTTOM, _TOP = 0.75, 1.0, 0.75, 0.35
_POINTS = 72.0
_PNG_DOTS = 160.0

# Points.
_LABEL_SIZE, _NAME_SIZE, _PLAN_SIZE = 7.0, 8.0, 8.5
_MARKER, _STAR = 5.0, 15.0
_AIR = 1.5
_LONGEST_NAME = 32


def scaling_figure(
    output: str | os.PathLike,
    *,
    flops: float,
    plan_params: float,
    plan_tokens: float,
    plan_name: str = "this plan",
) -> pathlib.Path:
    """Draws a plan between the lines of Kaplan and Chinchilla-1, -2 and -3, and known models.

    The axes follow the budget, and known models outside them are left out. Every point stands at
    C = 6 N D. A known model of the plan's own name is drawn once, as the plan. A name for which the
    crowd leaves no place is left out; the point and the page's table have it all the same.

    Args:
      output: path of the figure. Its suffix says what is written: .svg, .png, or .html, a page that
        stands alone, with both graphs and a table of their numbers and sources.
      flops: the budget C, model FLOPs by 6 N D.
      plan_params: N.
      plan_tokens: D. 6 N D may be less than the budget, where the data ran out.
      plan_name: what the star is called, at most 32 characters.

    Returns:
      The path written.

    Raises:
      UsageError: for another suffix, a number that is not above 0 and finite, or a
        name that is empty or too long to stand on a graph.
    """
    path = pathlib.Path(output)
    check_suffix(path)
    for name, value in (
        ("flops", flops),
        ("plan_params", plan_params),
        ("plan_tokens", plan_tokens),
    ):
        if not 0 < value < math.inf:
            raise UsageError(f"{name} = {value!r}: must be a finite number above 0")
    if not 0 < len(plan_name.strip()) <= _LONGEST_NAME:
        raise UsageError(
            f"plan_name = {plan_name!r}: must have 1 to {_LONGEST_NAME} characters, to stand on a "
            "graph"
        )
    plan = _Plan(plan_name, float(plan_params), float(plan_tokens))
    low, high = _flops_range(flops, plan)
    models = [
        model for model in known_models() if low < model.flops < high and model.name != plan_name
    ]
    content = _Content(float(flops), plan, models)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".html":
        path.write_text(_page(content), encoding="utf-8")
    else:
        _save(_drawn(_QUANTITIES, content), path)
    return path


def _save(figure, path: pathlib.Path) -> None:
    from matplotlib import rc_context

    # Neither the date nor the version of the program: the same plan is the same file.
    left_out = ("Date", "Creator", "Format", "Type") if path.suffix == ".svg" else ("Software",)
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "scaling"}):
        figure.savefig(path, dpi=_PNG_DOTS, metadata=dict.fromkeys(left_out), facecolor="white")


def check_suffix(output: str | os.PathLike) -> None:
    """Refuses a path that no figure can be written to, before any work.

    Raises:
      UsageError: for a suffix that is none of SUFFIXES.
    """
    suffix = pathlib.Path(output).suffix
    if suffix not in SUFFIXES:
        raise UsageError(
            f"a figure at {os.fspath(output)!r}: must end in {', '.join(SUFFIXES)}"
            f"{did_you_mean(suffix, SUFFIXES)}"
        )


class _Plan(NamedTuple):
    """What the star stands for."""

    name: str
    params: float
    tokens: float

    @property
    def flops(self) -> float:
        return 6 * self.params * self.tokens


class _Content(NamedTuple):
    """What both graphs show; `flops` is the budget."""

    flops: float
    plan: _Plan
    models: Sequence[KnownModel]

    def ends(self) -> tuple[float, float]:
        """Least and greatest C of the axes."""
        return _flops_range(self.flops, self.plan)


def _flops_range(flops: float, plan: _Plan) -> tuple[float, float]:
    return (
        min(flops, plan.flops) / 10**_DECADES_BELOW,
        max(flops, plan.flops) * 10**_DECADES_ABOVE,
    )


def _optimum(law: Law, flops: float, quantity: str) -> float:
    return law.optimal(flops)[_QUANTITIES.index(quantity)]


def _value(model: KnownModel | _Plan, quantity: str) -> float:
    return (model.params, model.tokens)[_QUANTITIES.index(quantity)]


def _drawn(quantities: Sequence[str], content: _Content):
    """A matplotlib Figure with a graph per quantity, side by side."""
    # Half a second of import, for a figure and never for a plan.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    panel = _LEFT + _PANEL_WIDTH + _RIGHT
    width, height = panel * len(quantities), _BOTTOM + _PANEL_HEIGHT + _TOP
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        # At this resolution matplotlib's dots are the points in which labels are placed.
        figure = Figure(figsize=(width, height), dpi=_POINTS)
        for index, quantity in enumerate(quantities):
            left = (panel * index + _LEFT) / width
            axes = figure.add_axes(
                (left, _BOTTOM / height, _PANEL_WIDTH / width, _PANEL_HEIGHT / height)
            )
            _set_axes(axes, quantity, content)
            _draw_laws(axes, quantity, content)
            _draw_points(axes, quantity, content)
        figure.text(
            _LEFT / width, 0.08 / height, _NOTE, fontsize=_LABEL_SIZE, color=_PALE_INK, va="bottom"
        )
    return figure


def _set_axes(axes, quantity: str, content: _Content) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    ends = content.ends()
    values = [_optimum(line.law, flops, quantity) for line in _LINES for flops in ends]
    values += [_value(content.plan, quantity)]
    values += [_value(model, quantity) for model in content.models]
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(*ends)
    # Room above and below for the labels of the outermost points.
    axes.set_ylim(min(values) / 1.6, max(values) * 1.6)
    axes.set_xlabel("model FLOPs (6 N D)")
    axes.set_ylabel(quantity)
    axes.xaxis.set_major_formatter(lambda value, position: f"1e{round(math.log10(value))}")
    axes.yaxis.set_major_formatter(lambda value, position: _power_of_ten(value))
    for axis in (axes.xaxis, axes.yaxis):
        # At 2 and 5: all eight take a third of the time of drawing.
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)


def _power_of_ten(value: float) -> str:
    """A tick: 1K, 10B, 100T; beyond that 1e16."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if size <= value * 1.001 < size * 1000:
            return f"{value / size:.0f}{suffix}"
    return f"{value:.0f}" if value < 1e3 else f"1e{round(math.log10(value))}"


def _draw_laws(axes, quantity: str, content: _Content) -> None:
    low, high = content.ends()
    # Two points make a power law, but the band has a corner wherever two laws cross.
    budgets = [low * (high / low) ** (step / 60) for step in range(61)]
    curves = {line: [_optimum(line.law, flops, quantity) for flops in budgets] for line in _LINES}
    chinchilla = list(zip(*(curves[line] for line in _CHINCHILLA), strict=True))
    axes.fill_between(
        budgets,
        list(map(min, chinchilla)),
        list(map(max, chinchilla)),
        color="#ececec",
        linewidth=0,
    )
    for line, values in curves.items():
        axes.plot(
            budgets,
            values,
            label=line.name,
            color=line.colour,
            linestyle=line.dash,
            linewidth=1.4,
        )
    axes.axvline(content.flops, color=_INK, linewidth=1.0)
    axes.text(
        content.flops,
        1.012,
        f"budget: {scientific(content.flops)} FLOPs",
        transform=axes.get_xaxis_transform(),
        ha="center",
        va="bottom",
        fontsize=_NAME_SIZE,
        color=_INK,
    )
    # Each name beside the end of its line, outside the axes; -1 and -2 end too near to each other.
    ends = sorted(
        ((_place(axes, high, values[-1]).y, line) for line, values in curves.items()),
        key=lambda end: end[0],
    )
    right = axes.bbox.x1
    heights = spread([end for end, _ in ends], 1.35 * _NAME_SIZE)
    for (end, line), height in zip(ends, heights, strict=True):
        _leader(axes, Segment(Point(right, end), Point(right + 9, height)), line.colour)
        _text(axes, line.name, Point(right + 11, height), _NAME_SIZE, ha="left")


def _draw_points(axes, quantity: str, content: _Content) -> None:
    plan, models = content.plan, content.models
    axes.plot(
        [model.flops for model in models],
        [_value(model, quantity) for model in models],
        linestyle="",
        marker="o",
        markersize=_MARKER,
        markerfacecolor=_INK,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=4,
    )
    axes.plot(
        [plan.flops],
        [_value(plan, quantity)],
        linestyle="",
        marker="*",
        markersize=_STAR,
        markerfacecolor=COLOURS[1],
        markeredgecolor="black",
        markeredgewidth=0.8,
        zorder=5,
    )
    labels = [(f"{plan.name}: {count(_value(plan, quantity))}", _PLAN_SIZE, "bold")]
    labels += [(model.name, _LABEL_SIZE, "normal") for model in models]
    spots = [_place(axes, plan.flops, _value(plan, quantity))]
    spots += [_place(axes, model.flops, _value(model, quantity)) for model in models]
    markers = [Box.around(spot, _MARKER, _MARKER) for spot in spots]
    markers[0] = Box.around(spots[0], _STAR, _STAR)
    frame = axes.bbox
    lines = _segments(axes, quantity, content)
    places = place_labels(
        markers,
        [_text_size(*label) for label in labels],
        within=Box(frame.x0 + 2, frame.y0 + 2, frame.x1 - 2, frame.y1 - 2),
        lines=lines,
    )
    for (text, size, weight), placed in zip(labels, places, strict=True):
        if placed is None:
            continue
        if placed.leader is not None:
            _leader(axes, placed.leader, _PALE_INK)
        on_line = any(placed.box.cut_by(line) for line in lines)
        _text(axes, text, placed.box.middle(), size, weight=weight, halo=on_line)


def _segments(axes, quantity: str, content: _Content) -> list[Segment]:
    """The laws, straight on these axes since they are power laws, and the budget."""
    low, high = content.ends()
    bottom, top = axes.get_ylim()
    return [
        Segment(
            _place(axes, low, _optimum(line.law, low, quantity)),
            _place(axes, high, _optimum(line.law, high, quantity)),
        )
        for line in _LINES
    ] + [Segment(_place(axes, content.flops, bottom), _place(axes, content.flops, top))]


def _place(axes, flops: float, value: float) -> Point:
    """Where on the page, in points."""
    x, y = axes.transData.transform((flops, value))
    return Point(float(x), float(y))


def _leader(axes, segment: Segment, colour: str) -> None:
    (x0, y0), (x1, y1) = segment
    axes.plot(
        (x0 / _POINTS, x1 / _POINTS),
        (y0 / _POINTS, y1 / _POINTS),
        transform=axes.figure.dpi_scale_trans,
        color=colour,
        linewidth=0.6,
        clip_on=False,
        zorder=3,
    )


def _text(
    axes, text: str, at: Point, size: float, *, weight="normal", ha="center", halo=False
) -> None:
    from matplotlib.patheffects import withStroke

    axes.text(
        at.x / _POINTS,
        at.y / _POINTS,
        text,
        transform=axes.figure.dpi_scale_trans,
        ha=ha,
        va="center",
        fontsize=size,
        fontweight=weight,
        color=_INK,
        # A dollar in a name is no formula.
        parse_math=False,
        # For legibility on a line. Not everywhere: it takes every letter's outline twice.
        path_effects=[withStroke(linewidth=1.6, foreground="white")] if halo else [],
        zorder=6,
    )


def _text_size(text: str, size: float, weight: str) -> tuple[float, float]:
    """Width and height of a line of text in points, with the air around it."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(size=size, weight=weight)
    width, height, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return width + 2 * _AIR, height + 2 * _AIR


def _page(content: _Content) -> str:
    flops, plan = content.flops, content.plan
    title = f"{plan.name}: {count(plan.params)} parameters, {count(plan.tokens)} tokens"
    graphs = [
        captioned(
            f"{quantity.capitalize()} against FLOPs",
            embedded_svg(_drawn((quantity,), content), f"scaling-{quantity}"),
        )
        for quantity in _QUANTITIES
    ]
    headers = ["", "parameters", "tokens", "tokens per parameter", "FLOPs (6 N D)"]
    plan_row = [plan.name, *_numbers(plan.params, plan.tokens), "the star"]
    law_rows = [
        [line.name, *_numbers(*line.law.optimal(flops)), line.law.source] for line in _LINES
    ]
    model_rows = [
        [model.name, *_numbers(model.params, model.tokens), f"{model.year}", model.source]
        for model in content.models
    ]
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">Budget: {scientific(flops)} model FLOPs (6 N D).</p>',
        # One below the other: side by side their labels would be too small to read.
        '<div style="max-width: 820px">\n' + "\n".join(graphs) + "\n</div>",
        "<h2>The plan, and what each law makes of the budget</h2>",
        html_table([*headers, "source"], [plan_row, *law_rows]),
    ]
    if model_rows:
        sections += ["<h2>Models drawn</h2>", html_table([*headers, "year", "source"], model_rows)]
    return page(title, sections)


def _numbers(params: float, tokens: float) -> list[str]:
    ratio = tokens / params
    return [
        count(params),
        count(tokens),
        f"{ratio:.1f}" if ratio < 99.95 else f"{ratio:,.0f}",
        scientific(6 * params * tokens),
    ]
