"""One self-contained HTML page about a run, or about several to compare."""

import dataclasses
import html
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from t5x_style.accounting import CONVENTIONS, verdict_of_line
from t5x_style.errors import UsageError
from t5x_style.files import local_path, write_whole
from t5x_style.quantities import count, duration, mean_of_steps, scientific
from t5x_style.reporting.figures.charts import bars_svg, lines_svg
from t5x_style.reporting.html import captioned, html_table, page
from t5x_style.reporting.run.derived_run import DerivedRun
from t5x_style.reporting.run.record import Points, RunRecord, read_run

_FLOPS_KEYS = {
    "model_flops_6nd": "6nd",
    "model_flops_full": "full",
    "model_flops_causal": "causal",
    "hardware_flops": "hardware",
}
_AVERAGED = "A point of a training loss is the mean over the tokens since the point before it."
_UTILISATIONS = ("mfu_full", "mfu_causal", "hfu")


def write_report(
    model_dirs: Sequence[str | os.PathLike], output: str | os.PathLike
) -> pathlib.Path:
    """Writes the page about the runs in `model_dirs`, from their files.

    A chart or table without numbers is left out: a run that is still going, or was killed, has a
    page too.

    Args:
      model_dirs: one run, or several to compare.
      output: path of the page.

    Returns:
      The path written.

    Raises:
      UsageError: for a directory without a run, a run without a training line, no directory at
        all, or a path with a scheme.
    """
    path = local_path(output, "output")
    runs = _named([read_run(model_dir) for model_dir in model_dirs])
    if not runs:
        raise UsageError("a report needs a run directory")
    for run in runs.values():
        if not run.training:
            raise UsageError(f"{run.model_dir} has no training line yet: nothing to report")
    title = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        *(
            f"<p>{html.escape(str(run.model_dir))}: {html.escape(fault)}</p>"
            for run in runs.values()
            for fault in run.faults
        ),
        _summary(runs),
        _verdicts(runs),
        _charts(runs),
        _flops(runs),
        *(_details(name, run) for name, run in runs.items()),
    ]
    write_whole(path, page(title, sections))
    return path


def _named(records: Iterable[RunRecord]) -> dict[str, RunRecord]:
    """Each run under its directory's name; under the whole path where two share a name."""
    records = list(records)
    names = [record.model_dir.resolve().name for record in records]
    return {
        (name if names.count(name) == 1 else str(record.model_dir)): record
        for name, record in zip(names, records, strict=True)
    }


def _summary(runs: Mapping[str, RunRecord]) -> str:
    headers = ["run", "steps", "tokens", "parameters", "training loss"]
    held_out = {name: run.evaluation_curves("bits_per_byte") for name, run in runs.items()}
    sources = list(dict.fromkeys(source for curves in held_out.values() for source in curves))
    headers += [f"{source}, bits per byte" for source in sources]
    headers += ["time", "state"]
    rows = []
    for name, run in runs.items():
        last = run.training[-1]
        loss = _number(last.get("loss"), ".4f")
        if which := mean_of_steps(last["step"], last.get("loss_steps")):
            loss = f"{loss} ({which})"
        seconds = sum(run.seconds.values())
        rows.append(
            [
                name,
                f"{last['step']:,}",
                count(last["tokens"]),
                None if run.parameters is None else count(run.parameters),
                loss,
                *(_number(_last(held_out[name].get(source)), ".4f") for source in sources),
                duration(seconds) if seconds else None,
                run.state,
            ]
        )
    return html_table(headers, rows)


def _verdicts(runs: Mapping[str, RunRecord]) -> str:
    parts = ["<h2>Verdict of the audit</h2>"]
    for name, run in runs.items():
        if "tokens_per_param" not in run.training[-1]:
            continue
        seconds = {f"seconds/{cause}": value for cause, value in run.seconds.items()}
        lines = verdict_of_line(run.training[-1] | seconds, run.own_law)
        if run.ending is not None:
            lines.insert(0, run.ending)
        lines += map(str, run.replacements)
        if (noise := run.gradient_noise_scale) is not None:
            last = run.derived and run.derived.horizon.phases[-1]
            batch = f"; a batch has {count(last.sequences * last.sequence_length)}" if last else ""
            lines.append(f"Gradient noise scale: {count(noise)} tokens{batch}")
        if len(runs) > 1:
            parts.append(f"<h3>{html.escape(name)}</h3>")
        parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")
    parts += [f"<p>{html.escape(line)}</p>" for line in _different_texts(runs)]
    return "\n".join(parts) if len(parts) > 1 else ""


def _different_texts(runs: Mapping[str, RunRecord]) -> list[str]:
    """Notices about sources whose held-out text is not the same in all runs."""
    texts: dict[str, dict[str, list[str]]] = {}
    for name, run in runs.items():
        newest = run.derived.held_out[-1].stores if run.derived is not None else {}
        for source, store in newest.items():
            if store.tokens_digest is not None:
                texts.setdefault(source, {}).setdefault(store.tokens_digest, []).append(name)
    return [
        f"The held-out text of {source!r} is not the same in "
        + " and in ".join(", ".join(names) for names in by_text.values())
        + ": their figures for it cannot be compared."
        for source, by_text in texts.items()
        if len(by_text) > 1
    ]


@dataclasses.dataclass(frozen=True)
class _Measure:
    """The contents of one chart.

    Attributes:
      name: unique on the page.
      curves: label -> curve, of one run.
      marker: drawn at every point.
      format_y: text of a tick.
      held_out: the curves are of held-out text, and are cut where that was replaced.
      apart: a chart for each curve, as their scales differ.
    """

    name: str
    title: str
    y_label: str
    curves: Callable[[RunRecord], dict[str, Points]]
    marker: str | None = None
    format_y: Callable[[float], str] | None = None
    held_out: bool = False
    apart: bool = False


_MEASURES = (
    _Measure(
        "loss",
        "Training loss",
        "nats per token",
        lambda run: {"blend": run.curve("loss"), **run.curves_by_source("loss")},
    ),
    _Measure(
        "bits_per_byte",
        "Held-out text",
        "bits per byte",
        lambda run: run.evaluation_curves("bits_per_byte"),
        marker="o",
        held_out=True,
    ),
    _Measure(
        "share",
        "Share in the tokens so far",
        "share",
        lambda run: run.curves_by_source("share"),
        format_y="{:.2%}".format,
    ),
    _Measure(
        "learning_rate",
        "Learning rate",
        "learning rate",
        lambda run: {"learning_rate": run.curve("learning_rate")},
    ),
    _Measure(
        "monitors",
        "Signs of a slow divergence",
        "size",
        lambda run: run.curves_by_source("monitor"),
        apart=True,
    ),
    _Measure(
        "speed",
        "Speed",
        "tokens per second",
        lambda run: {"tokens_per_second": run.curve("tokens_per_second")},
        format_y=count,
    ),
    _Measure(
        "utilisation",
        "Utilisation of the chips",
        "share of the dense bfloat16 peak",
        lambda run: {key: run.curve(key) for key in _UTILISATIONS},
        format_y="{:.1%}".format,
    ),
    _Measure(
        "efficiency",
        "Compute efficiency so far",
        "C' / C",
        lambda run: run.curves_by_law("compute_efficiency"),
        format_y="{:.0%}".format,
    ),
)


def _own_metric(index: int, name: str) -> _Measure:
    """The chart of a user's own evaluation metric."""
    return _Measure(
        f"metric{index}_",
        f"Held-out text, {name}",
        name,
        lambda run: run.evaluation_curves(name),
        marker="o",
        held_out=True,
    )


def _charts(runs: Mapping[str, RunRecord]) -> str:
    """For one run a chart per measure; else one per measure and curve, with a colour per run."""
    figures = []
    own_metrics = dict.fromkeys(name for run in runs.values() for name in run.own_metrics)
    for measure in (*_MEASURES, *map(_own_metric, itertools.count(), own_metrics)):
        curves = _curves(runs, measure)
        replaced = {change.tokens for run in runs.values() for change in run.replacements}
        if len(runs) == 1 and not measure.apart:
            charts = {"": {label: next(iter(by_run.values())) for label, by_run in curves.items()}}
        else:
            # Every run in every chart, with or without points, so that it keeps its colour.
            charts = {
                label if len(curves) > 1 else "": {
                    name: by_run.get(name, ([], [])) for name in runs
                }
                for label, by_run in curves.items()
            }
        for index, (label, series) in enumerate(charts.items()):
            if series:
                svg = lines_svg(
                    f"{measure.name}{index}",
                    series,
                    x_label="tokens",
                    y_label=measure.y_label,
                    format_y=measure.format_y,
                    marker=measure.marker,
                    breaks=sorted(replaced) if measure.held_out else (),
                )
                title = f"{measure.title}: {label}" if label else measure.title
                figures.append(captioned(title, svg))
    for index, (name, run) in enumerate(runs.items()):
        seconds = {cause: value for cause, value in run.seconds.items() if value > 0}
        if seconds:
            total = sum(seconds.values())
            labels = {
                cause: f"{duration(value)} ({value / total:.1%})"
                for cause, value in seconds.items()
            }
            svg = bars_svg(f"seconds{index}", seconds, labels)
            title = "Where the time went" + (f": {name}" if len(runs) > 1 else "")
            figures.append(captioned(title, svg))
    lines = [line for run in runs.values() for line in run.training]
    note = f'<p class="note">{_AVERAGED}</p>\n' if all("loss_steps" in x for x in lines) else ""
    return f'<h2>Curves</h2>\n{note}<div class="charts">\n' + "\n".join(figures) + "\n</div>"


def _curves(runs: Mapping[str, RunRecord], measure: _Measure) -> dict[str, dict[str, Points]]:
    """Label -> run -> curve; curves without points are left out."""
    found: dict[str, dict[str, Points]] = {}
    for name, run in runs.items():
        for label, curve in measure.curves(run).items():
            if curve[0]:
                found.setdefault(label, {})[name] = curve
    return found


def _flops(runs: Mapping[str, RunRecord]) -> str:
    rows = []
    for key, convention in _FLOPS_KEYS.items():
        totals = [run.training[-1].get(key) for run in runs.values()]
        if any(total is not None for total in totals):
            cells = [None if total is None else scientific(total) for total in totals]
            rows.append([convention, *cells, CONVENTIONS[convention].meaning])
    for key in _UTILISATIONS:
        values = [_last(run.curve(key)) for run in runs.values()]
        if any(value is not None for value in values):
            rows.append([key, *(_number(value, ".1%") for value in values), "latest"])
    if not rows:
        return ""
    return "<h2>FLOPs by convention</h2>\n" + html_table(["convention", *runs, ""], rows)


def _details(name: str, run: RunRecord) -> str:
    """The events, the derived values and the configuration, folded away."""
    parts = [f"<h2>{html.escape(name)}</h2>"]
    if run.derived is not None:
        parts.append(_source_table(run, run.derived))
    if run.events:
        rows = [
            [
                event.kind,
                f"{event.step:,}",
                count(event.tokens),
                ", ".join(
                    f"{key} {value}"
                    for key, value in event.details.items()
                    if key not in ("seconds", "sources", "began", "pause_seconds")
                ),
            ]
            for event in run.events
        ]
        parts.append(_folded("Events", html_table(["event", "step", "tokens", ""], rows)))
    if run.derived is not None:
        rows = [[key, str(value)] for key, value in _flattened(run.derived.to_json())]
        parts.append(_folded("Values derived before step 0", html_table(["name", "value"], rows)))
    if run.config:
        parts.append(_folded("Configuration", f"<pre>{html.escape(run.config)}</pre>"))
    return "\n".join(parts) if len(parts) > 1 else ""


def _source_table(run: RunRecord, derived: DerivedRun) -> str:
    """The plan of the whole run for each source, and the source's tokens by the last line."""
    seen = {measure: run.curves_by_source(measure) for measure in ("share", "tokens", "epochs")}
    rows = []
    for name, source in derived.sources.items():
        account = source.account
        first, end = f"{source.first_share:.2%}", f"{source.last_share:.2%}"
        rows.append(
            [
                name,
                first if first == end else f"{first} to {end}",
                _number(_last(seen["share"].get(name)), ".2%"),
                f"{account.tokens:,}",
                _number(_last(seen["tokens"].get(name)), ","),
                f"{account.unique_tokens:,}",
                f"{account.epochs:.2f}",
                _number(_last(seen["epochs"].get(name)), ".2f"),
                f"{account.effective_tokens:,.0f}",
            ]
        )
    headers = ["source", "share planned", "share so far", "tokens planned", "tokens so far"]
    headers += ["unique tokens", "epochs planned", "epochs so far", "effective tokens planned"]
    return html_table(headers, rows)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n{body}\n</details>"


def _last(curve: Points | None) -> float | None:
    """The last value of a curve; None if there is no point."""
    return curve[1][-1] if curve is not None and curve[1] else None


def _number(value: float | None, specification: str) -> str | None:
    return None if value is None else format(value, specification)


def _flattened(values: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
