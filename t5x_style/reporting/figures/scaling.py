"""The figure of a plan between scaling laws and the models that others trained.

Two graphs as in figure 1 of Wu et al. 2023 (BloombergGPT, arXiv 2303.17564): parameters against
FLOPs, and tokens against FLOPs, on log axes. Published models are numbered points; their names are
listed below the graphs.
"""

import html
import io
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from t5x_style.accounting.laws.chinchilla import APPROACH_3, LAWS, Law
from t5x_style.accounting.laws.kaplan import KAPLAN
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import MARK, local_path, write_whole
from t5x_style.quantities import count, scientific
from t5x_style.reporting.figures.charts import COLOURS, embedded_svg
from t5x_style.reporting.figures.known_models import KnownModel, known_models
from t5x_style.reporting.html import captioned, html_table, page

SUFFIXES = (".svg", ".png", ".html")


class _Line(NamedTuple):
    """A law on the graphs. Printed in grey, the lines still differ by their dashes."""

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
_INK, _BAND, _GRID = "#303030", "#ececec", "#e4e4e4"

# Budgets to either side of the plan's: about the width of the paper's figure, 1e22 to 3.2e24.
_DECADES_BELOW, _DECADES_ABOVE = 1.7, 1.3

# Inches. The list of names adds its rows to the height of the graphs.
_WIDTH, _GRAPHS_HEIGHT, _NAME_HEIGHT, _NAME_COLUMNS = 9.0, 4.8, 0.17, 5
_PNG_DOTS = 160.0

# Points.
_SMALL, _LARGE = 8.0, 9.5
_MARKER, _STAR = 5.0, 15.0
_LONGEST_NAME = 32

# Where a label may be: (x, y) in half-sizes of the label and its marker, and the cost of the spot.
# The first is preferred. A spot farther out costs more than crossing lines, less than an overlap.
_SPOTS = tuple(
    (distance * x, distance * y, cost)
    for distance, cost in ((1.0, 0), (1.7, 5))
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, -1), (-1, 1), (1, -1))
)


def scaling_figure(
    output: str | os.PathLike,
    *,
    flops: float,
    plan_params: float,
    plan_tokens: float,
    plan_name: str = "this plan",
) -> pathlib.Path:
    """Draws a plan with the lines of Kaplan and of Chinchilla-1, -2 and -3, and published models.

    The axes follow the budget; models outside them are left out. Every point is drawn at
    C = 6 N D. A model with the plan's own name is drawn once, as the plan.

    Args:
      output: path of the figure. The suffix chooses the format: .svg, .png, or .html, a page with
        the graphs and a table of their numbers and sources, which needs no other file.
      flops: the budget C, model FLOPs by 6 N D.
      plan_params: N.
      plan_tokens: D. 6 N D may be less than the budget, where the data ran out.
      plan_name: the label of the star, at most 32 characters.

    Returns:
      The path written.

    Raises:
      UsageError: as `check_suffix`; for a number that is not above 0 and finite, or a name that
        is empty or too long for a label.
    """
    check_suffix(output)
    path = pathlib.Path(output)
    for name, value in (
        ("flops", flops),
        ("plan_params", plan_params),
        ("plan_tokens", plan_tokens),
    ):
        if not 0 < value < math.inf:
            raise UsageError(f"{name} = {value!r}: must be a finite number above 0")
    if not 0 < len(plan_name.strip()) <= _LONGEST_NAME:
        raise UsageError(f"plan_name = {plan_name!r}: must have 1 to {_LONGEST_NAME} characters")
    plan = _Plan(plan_name, float(plan_params), float(plan_tokens))
    low, high = _flops_range(flops, plan)
    models = [
        model for model in known_models() if low < model.flops < high and model.name != plan_name
    ]
    content = _Content(float(flops), plan, models)
    write_whole(path, _page(content) if path.suffix == ".html" else _image(content, path.suffix))
    return path


def check_suffix(output: str | os.PathLike) -> None:
    """Refuses a path that no figure can be written to, before any work.

    Raises:
      UsageError: for a suffix that is none of SUFFIXES, or a path with a scheme.
    """
    suffix = local_path(output, "figure").suffix
    if suffix not in SUFFIXES:
        raise UsageError(
            f"a figure at {os.fspath(output)!r}: must end in {', '.join(SUFFIXES)}"
            f"{did_you_mean(suffix, SUFFIXES)}"
        )


class _Plan(NamedTuple):
    """The plan that the star marks."""

    name: str
    params: float
    tokens: float

    @property
    def flops(self) -> float:
        return 6 * self.params * self.tokens


class _Content(NamedTuple):
    """The values that both graphs show; `flops` is the budget. Models are numbered from 1."""

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


def _image(content: _Content, suffix: str) -> bytes:
    """The figure as a file of SVG or PNG."""
    from matplotlib import rc_context

    buffer = io.BytesIO()
    # Neither the date nor the version of the program: the same plan is the same file.
    is_svg = suffix == ".svg"
    left_out = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": "scaling"}):
        _draw(content).savefig(
            buffer,
            format=suffix[1:],
            dpi=_PNG_DOTS,
            metadata=left_out if is_svg else {"Software": MARK},
            facecolor="white",
        )
    image = buffer.getvalue()
    return image.replace(b"<svg", f"<!-- {MARK} -->\n<svg".encode(), 1) if is_svg else image


def _draw(content: _Content):
    """A matplotlib Figure: a graph per quantity, a legend above them, the names below them."""
    # Half a second of import, for a figure and never for a plan.
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = -(-len(content.models) // _NAME_COLUMNS)
    size = (_WIDTH, _GRAPHS_HEIGHT + _NAME_HEIGHT * rows)
    with rc_context({"font.size": _LARGE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        graphs = dict(zip(_QUANTITIES, figure.subplots(1, len(_QUANTITIES)), strict=True))
        for quantity, axes in graphs.items():
            _set_axes(axes, quantity, content)
            _draw_laws(axes, quantity, content)
            _draw_points(axes, quantity, content)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(
            handles, names, loc="outside upper center", ncols=4, frameon=False, handlelength=2.6
        )
        _list_names(figure, content.models)
        # Labels need the final places of the axes, and must not move them.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        for quantity, axes in graphs.items():
            _draw_labels(axes, quantity, content)
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
    axes.grid(True, color=_GRID, linewidth=0.6)
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
    for line, values in curves.items():
        axes.plot(
            budgets,
            values,
            label=line.name,
            color=line.colour,
            linestyle=line.dash,
            linewidth=1.4,
        )
    chinchilla = list(zip(*(curves[line] for line in _CHINCHILLA), strict=True))
    axes.fill_between(
        budgets,
        list(map(min, chinchilla)),
        list(map(max, chinchilla)),
        label="between the Chinchilla laws",
        color=_BAND,
        linewidth=0,
    )
    axes.axvline(
        content.flops,
        label=f"budget: {scientific(content.flops)} FLOPs",
        color=_INK,
        linewidth=1.0,
    )


def _draw_points(axes, quantity: str, content: _Content) -> None:
    axes.plot(
        [model.flops for model in content.models],
        [_value(model, quantity) for model in content.models],
        label="published model, numbered",
        linestyle="",
        marker="o",
        markersize=_MARKER,
        markerfacecolor=_INK,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=4,
    )
    axes.plot(
        [content.plan.flops],
        [_value(content.plan, quantity)],
        label="the plan",
        linestyle="",
        marker="*",
        markersize=_STAR,
        markerfacecolor=COLOURS[1],
        markeredgecolor="black",
        markeredgewidth=0.8,
        zorder=5,
    )


def _list_names(figure, models: Sequence[KnownModel]) -> None:
    """The numbered names, below the graphs, in columns."""
    from matplotlib.lines import Line2D

    figure_space = "\u2007"  # as wide as a digit
    figure.legend(
        [Line2D([], [], linestyle="") for _ in models],
        [
            f"{str(number).rjust(2, figure_space)}  {model.name}"
            for number, model in enumerate(models, 1)
        ],
        loc="outside lower center",
        ncols=_NAME_COLUMNS,
        fontsize=_SMALL,
        frameon=False,
        handlelength=0,
        handletextpad=0,
        labelspacing=0.3,
    )


def _draw_labels(axes, quantity: str, content: _Content) -> None:
    """The name of the plan at its star, and the number of each model at its point.

    Every label takes the nearest spot that meets no other label or point, and few lines.
    """
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    name = f"{content.plan.name}: {count(_value(content.plan, quantity))}"
    labels: list[tuple[KnownModel | _Plan, float, dict[str, Any]]] = [
        (content.plan, _STAR, {"text": name, "fontsize": _LARGE, "fontweight": "bold"})
    ]
    labels += [
        (model, _MARKER, {"text": str(number), "fontsize": _SMALL})
        for number, model in enumerate(content.models, 1)
    ]
    dots_per_point = axes.figure.dpi / 72
    markers = []
    for model, size, _ in labels:
        x, y = axes.transData.transform((model.flops, _value(model, quantity)))
        half = size * dots_per_point / 2
        markers.append(Bbox([[x - half, y - half], [x + half, y + half]]))
    taken = list(markers)
    lines = [
        line.get_path().transformed(line.get_transform())
        for line in axes.lines
        if line.get_linestyle() != "None"
    ]

    def cost(box: Bbox) -> int:
        crossed = sum(line.intersects_bbox(box, filled=False) for line in lines)
        outside = not (axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max))
        return 100 * outside + 10 * box.count_overlaps(taken) + crossed

    for marker, (model, _, style) in zip(markers, labels, strict=True):
        label = axes.annotate(
            xy=(model.flops, _value(model, quantity)),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            color=_INK,
            # A dollar in a name is no formula.
            parse_math=False,
            zorder=6,
            **style,
        )
        # A line of text is taller than its letters.
        box = label.get_window_extent().expanded(1, 0.75)
        reach = (marker.width + box.width) / 2 + 1, (marker.height + box.height) / 2 + 1
        spots = [(x * reach[0], y * reach[1], far) for x, y, far in _SPOTS]
        x, y, _ = min(spots, key=lambda spot: cost(box.translated(*spot[:2])) + spot[2])
        placed = box.translated(x, y)
        label.set_position((x / dots_per_point, y / dots_per_point))
        if cost(placed):
            # Legible on a line. Not everywhere: the outline of every letter is written twice.
            label.set_path_effects([withStroke(linewidth=1.6, foreground="white")])
        taken.append(placed)


def _page(content: _Content) -> str:
    flops, plan = content.flops, content.plan
    title = f"{plan.name}: {count(plan.params)} parameters, {count(plan.tokens)} tokens"
    headers = ["parameters", "tokens", "tokens per parameter", "FLOPs (6 N D)"]
    plan_row = [plan.name, *_numbers(plan.params, plan.tokens), "the star"]
    law_rows = [
        [line.name, *_numbers(*line.law.optimal(flops)), line.law.source] for line in _LINES
    ]
    model_rows = [
        [
            f"{number}",
            model.name,
            *_numbers(model.params, model.tokens),
            f"{model.year}",
            model.source,
        ]
        for number, model in enumerate(content.models, 1)
    ]
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="note">Budget: {scientific(flops)} model FLOPs (6 N D).</p>',
        captioned("Parameters and tokens against FLOPs", embedded_svg(_draw(content), "scaling")),
        "<h2>The plan, and the optimum of each law for the budget</h2>",
        html_table(["", *headers, "source"], [plan_row, *law_rows]),
    ]
    if model_rows:
        model_headers = ["number", "model", *headers, "year", "source"]
        sections += ["<h2>Models drawn</h2>", html_table(model_headers, model_rows)]
    return page(title, sections)


def _numbers(params: float, tokens: float) -> list[str]:
    ratio = tokens / params
    return [
        count(params),
        count(tokens),
        f"{ratio:.1f}" if ratio < 99.95 else f"{ratio:,.0f}",
        scientific(6 * params * tokens),
    ]
