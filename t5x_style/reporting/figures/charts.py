"""Line and bar charts as SVG text, for a page without other files."""

import bisect
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence

from t5x_style.quantities import count

# Okabe and Ito's colours, which the colour-blind can tell apart; yellow is left out (on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", ":", "-.")
WIDTH_INCHES = 6.2
HEIGHT_INCHES = 3.3
LEGEND_ROW_INCHES = 0.19
MOST_POINTS = 1500

Points = tuple[Sequence[float], Sequence[float]]


def lines_svg(
    name: str,
    series: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    format_y: Callable[[float], str] | None = None,
    marker: str | None = None,
    breaks: Sequence[float] = (),
) -> str:
    """One chart of several curves, with a legend above the axes.

    A series without points is not drawn, but its colour stays reserved.

    Args:
      name: unique on the page; prefixes the ids within the SVG.
      series: label -> (x, y). Up to 7 colours, then the dash changes.
      format_y: text of a tick; matplotlib's own if None.
      marker: drawn at every point.
      breaks: x of dotted vertical lines, across which points are not compared: no curve crosses
        one.
    """
    columns = max(1, min(len(series), 64 // (max(map(len, series)) + 6)))
    legend_rows = -(-len(series) // columns)
    figure, axes = _figure(HEIGHT_INCHES + LEGEND_ROW_INCHES * (legend_rows - 1))
    for index, (label, (x, y)) in enumerate(series.items()):
        if not x:
            continue
        x, y = _broken(_thinned(x), _thinned(y), breaks)
        axes.plot(
            x,
            y,
            label=label,
            color=COLOURS[index % len(COLOURS)],
            linestyle=STYLES[index // len(COLOURS) % len(STYLES)],
            linewidth=1.3,
            # A single point makes no line.
            marker=marker if marker or len(x) > 1 else "o",
            markersize=4,
        )
    for place in breaks:
        axes.axvline(place, color="#666666", linestyle=":", linewidth=1.0)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.xaxis.set_major_formatter(lambda value, position: count(value))
    if format_y is not None:
        axes.yaxis.set_major_formatter(lambda value, position: format_y(value))
    # Few ticks: their labels are several characters wide.
    axes.locator_params(axis="x", nbins=6)
    if len(series) > 1:
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1.01),
            ncols=columns,
            frameon=False,
            borderaxespad=0,
        )
    return embedded_svg(figure, name)


def bars_svg(name: str, values: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """Horizontal bars, the largest on top, with their labels at the right ends."""
    ordered = sorted(values.items(), key=lambda item: item[1])
    figure, axes = _figure(0.6 + 0.32 * len(ordered))
    bars = axes.barh([key for key, _ in ordered], [value for _, value in ordered], color=COLOURS[0])
    axes.bar_label(bars, labels=[labels[key] for key, _ in ordered], padding=4)
    # Room for the label of the longest bar.
    axes.set_xlim(0, max(values.values()) * 1.3)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.grid(False)
    return embedded_svg(figure, name)


def _figure(height: float):
    # Half a second of import: only for a page.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        axes = figure.subplots()
    axes.grid(True, color="#e4e4e4", linewidth=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def embedded_svg(figure, name: str) -> str:
    """A matplotlib figure as an SVG element. Its ids begin with `name`, unique on the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    # Letters as outlines: the page looks the same where the font is not installed.
    with rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing, transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # On a page with several charts, matplotlib's ids and style sheet would affect the others.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    return re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{name}-", text)


def _thinned(values: Sequence[float]) -> Sequence[float]:
    """At most MOST_POINTS evenly spaced values, the last one included."""
    step = -(-len(values) // MOST_POINTS)
    return values if step <= 1 else values[(len(values) - 1) % step :: step]


def _broken(x: Sequence[float], y: Sequence[float], breaks: Sequence[float]) -> Points:
    """The points, with one without a value at each break, where the curve is cut."""
    xs, ys = list(x), list(y)
    for place in breaks:
        # A point at the break is of what was before.
        position = bisect.bisect_right(xs, place)
        xs.insert(position, place)
        ys.insert(position, math.nan)
    return xs, ys
