"""One self-contained HTML page about one run, or comparing several."""

import dataclasses
import html
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from t5x_style.accounting import CONVENTIONS, verdict_of_line
from t5x_style.errors import UsageError
from t5x_style.quantities import count, duration, scientific
from t5x_style.reporting.figures.charts import bars_svg, lines_svg
from t5x_style.reporting.html import captioned, html_table, page
from t5x_style.reporting.run.record import RunRecord, read_run

_FLOPS_KEYS = {
    "model_flops_6nd": "6nd",
    "model_flops_full": "full",
    "model_flops_causal": "causal",
    "hardware_flops": "hardware",
}
_UTILISATIONS = ("mfu_full", "mfu_causal", "hfu")
_SECONDS = "seconds/"


def write_report(
    model_dirs: Sequence[str | os.PathLike], output: str | os.PathLike
) -> pathlib.Path:
    """Writes the page about the runs in `model_dirs`, from the files they left.

    Every chart and table stands where its numbers are there: a run that is still going, or was
    killed, has a page too.

    Args:
      model_dirs: one run, or several to compare.
      output: path of the page.

    Returns:
      The path written.

    Raises:
      UsageError: for a directory without a run, a run without a training line, or none at all.
    """
    runs = _named([read_run(model_dir) for model_dir in model_dirs])
    if not runs:
        raise UsageError("a report needs a run directory")
    for run in runs.values():
        if not run.training:
            raise UsageError(f"{run.model_dir} has no training line yet: nothing to report")
    title = next(iter(runs)) if len(runs) == 1 else f"{len(runs)} runs"
    sections = [
        f"<h1>{html.escape(title)}</h1>",
        _summary(runs),
        _verdicts(runs),
        _charts(runs),
        _flops(runs),
        *(_details(name, run) for name, run in runs.items()),
    ]
    path = pathlib.Path(output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(title, sections), encoding="utf-8")
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
    sources = list(
        dict.fromkeys(
            source for run in runs.values() for source in _sources(run.evaluations, "bits_per_byte")
        )
    )
    headers += [f"{source}, bits per byte" for source in sources]
    headers += ["time", "state"]
    rows = []
    for name, run in runs.items():
        last = run.training[-1]
        per_param = last.get("tokens_per_param")
        seconds = sum(_seconds(run).values())
        rows.append(
            [
                name,
                f"{last['step']:,}",
                count(last["tokens"]),
                count(last["tokens"] / per_param) if per_param else None,
                _number(last.get("loss"), ".4f"),
                *(
                    _number(_latest(run.evaluations, f"eval/{source}/bits_per_byte"), ".4f")
                    for source in sources
                ),
                duration(seconds) if seconds else None,
                run.events[-1]["event"] if run.events else None,
            ]
        )
    return html_table(headers, rows)


def _verdicts(runs: Mapping[str, RunRecord]) -> str:
    parts = ["<h2>Verdict of the audit</h2>"]
    for name, run in runs.items():
        if "tokens_per_param" not in run.training[-1]:
            continue
        lines = verdict_of_line({**run.training[-1], **_prefixed(_seconds(run))}, run.own_law)
        if run.ending is not None:
            lines.insert(0, run.ending)
        if len(runs) > 1:
            parts.append(f"<h3>{html.escape(name)}</h3>")
        parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>")
    return "\n".join(parts) if len(parts) > 1 else ""


@dataclasses.dataclass(frozen=True)
class _Measure:
    """What one chart shows.

    Attributes:
      name: unique on the page.
      label_of: key of a line -> the curve it belongs to, or None.
      evaluations: read from the evaluation lines, not the training lines.
      format_y: text of a tick.
    """

    name: str
    title: str
    y_label: str
    label_of: Callable[[str], str | None]
    evaluations: bool = False
    format_y: Callable[[float], str] | None = None


_MEASURES = (
    _Measure(
        "loss",
        "Training loss",
        "nats per token",
        lambda key: "blend" if key == "loss" else _between(key, "loss/", ""),
    ),
    _Measure(
        "bits_per_byte",
        "Held-out text",
        "bits per byte",
        lambda key: _between(key, "eval/", "/bits_per_byte"),
        evaluations=True,
    ),
    _Measure(
        "share",
        "Share in the tokens so far",
        "share",
        lambda key: _between(key, "share/", ""),
        format_y="{:.2%}".format,
    ),
    _Measure(
        "learning_rate",
        "Learning rate",
        "learning rate",
        lambda key: key if key == "learning_rate" else None,
    ),
    _Measure(
        "speed",
        "Speed",
        "tokens per second",
        lambda key: key if key == "tokens_per_second" else None,
        format_y=count,
    ),
    _Measure(
        "utilisation",
        "Share of the chips' peak",
        "of dense bfloat16 peak",
        lambda key: key if key in _UTILISATIONS else None,
        format_y="{:.1%}".format,
    ),
    _Measure(
        "efficiency",
        "Compute efficiency so far",
        "C' / C",
        lambda key: _between(key, "chinchilla/", "/compute_efficiency"),
        format_y="{:.0%}".format,
    ),
)


def _charts(runs: Mapping[str, RunRecord]) -> str:
    """Of one run a chart per measure; of several one per measure and source, a colour per run."""
    figures = []
    for measure in _MEASURES:
        curves = _curves(runs, measure)
        if len(runs) == 1:
            charts = {"": {label: next(iter(of.values())) for label, of in curves.items()}}
        else:
            # Every run in every chart, with or without points, so that it keeps its colour.
            charts = {
                label if len(curves) > 1 else "": {name: of.get(name, ([], [])) for name in runs}
                for label, of in curves.items()
            }
        for index, (label, series) in enumerate(charts.items()):
            if series:
                svg = lines_svg(
                    f"{measure.name}{index}",
                    series,
                    x_label="tokens",
                    y_label=measure.y_label,
                    format_y=measure.format_y,
                    marker="o" if measure.evaluations else None,
                )
                title = f"{measure.title}: {label}" if label else measure.title
                figures.append(captioned(title, svg))
    for index, (name, run) in enumerate(runs.items()):
        seconds = {cause: value for cause, value in _seconds(run).items() if value > 0}
        if seconds:
            total = sum(seconds.values())
            labels = {
                cause: f"{duration(value)} ({value / total:.1%})"
                for cause, value in seconds.items()
            }
            svg = bars_svg(f"seconds{index}", seconds, labels)
            title = "Where the time went" + (f": {name}" if len(runs) > 1 else "")
            figures.append(captioned(title, svg))
    return '<h2>Curves</h2>\n<div class="charts">\n' + "\n".join(figures) + "\n</div>"


def _curves(
    runs: Mapping[str, RunRecord], measure: _Measure
) -> dict[str, dict[str, tuple[list[float], list[float]]]]:
    """Label -> run -> (tokens, value), where the value is there and not null."""
    found: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, run in runs.items():
        for line in run.evaluations if measure.evaluations else run.training:
            for key, value in line.items():
                label = measure.label_of(key)
                if label is None or value is None:
                    continue
                x, y = found.setdefault(label, {}).setdefault(name, ([], []))
                x.append(line["tokens"])
                y.append(value)
    return found


def _flops(runs: Mapping[str, RunRecord]) -> str:
    rows = []
    for key, convention in _FLOPS_KEYS.items():
        totals = [run.training[-1].get(key) for run in runs.values()]
        if any(total is not None for total in totals):
            cells = [None if total is None else scientific(total) for total in totals]
            rows.append([convention, *cells, CONVENTIONS[convention].meaning])
    for key in _UTILISATIONS:
        values = [_latest(run.training, key) for run in runs.values()]
        if any(value is not None for value in values):
            rows.append([key, *(_number(value, ".1%") for value in values), "latest"])
    if not rows:
        return ""
    return "<h2>FLOPs by convention</h2>\n" + html_table(["convention", *runs, ""], rows)


def _details(name: str, run: RunRecord) -> str:
    """What was derived, what happened, and the configuration, folded away."""
    parts = [f"<h2>{html.escape(name)}</h2>"]
    if run.plan.get("sources"):
        parts.append(_due_and_had(run))
    if run.events:
        rows = [
            [
                event["event"],
                f"{event['step']:,}",
                count(event["tokens"]),
                ", ".join(
                    f"{key} {value}"
                    for key, value in event.items()
                    if key not in ("event", "step", "tokens", "time", "seconds", "sources")
                ),
            ]
            for event in run.events
        ]
        parts.append(_folded("What happened", html_table(["event", "step", "tokens", ""], rows)))
    if run.plan:
        rows = [[key, str(value)] for key, value in _flattened(run.plan)]
        parts.append(_folded("What was derived before step 0", html_table(["name", "value"], rows)))
    if run.config:
        parts.append(_folded("Configuration", f"<pre>{html.escape(run.config)}</pre>"))
    return "\n".join(parts) if len(parts) > 1 else ""


def _due_and_had(run: RunRecord) -> str:
    """What the whole run is due of each source, and what it has had by its last line."""
    last = run.training[-1] if run.training else {}
    rows = []
    for name, source in run.plan["sources"].items():
        first, end = (f"{source[key]:.2%}" for key in ("first_share", "last_share"))
        rows.append(
            [
                name,
                first if first == end else f"{first} to {end}",
                _number(last.get(f"share/{name}"), ".2%"),
                f"{source['tokens']:,}",
                _number(last.get(f"tokens/{name}"), ","),
                f"{source['unique_tokens']:,}",
                f"{source['epochs']:.2f}",
                _number(last.get(f"epochs/{name}"), ".2f"),
                f"{source['effective_tokens']:,.0f}",
            ]
        )
    headers = ["source", "share asked", "share had", "tokens due", "tokens had", "of unique"]
    return html_table([*headers, "epochs due", "epochs had", "tokens due are worth fresh"], rows)


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>\n{body}\n</details>"


def _seconds(run: RunRecord) -> dict[str, float]:
    """Seconds by cause up to the end of the run, else up to its last training line."""
    if run.events and "seconds" in run.events[-1]:
        return run.events[-1]["seconds"]
    return {
        key.removeprefix(_SECONDS): value
        for key, value in run.training[-1].items()
        if key.startswith(_SECONDS) and value is not None
    }


def _prefixed(seconds: Mapping[str, float]) -> dict[str, float]:
    return {_SECONDS + cause: value for cause, value in seconds.items()}


def _sources(lines: Sequence[dict], measure: str) -> list[str]:
    """Sources whose `measure` any evaluation line has, in order of first appearance."""
    names = (_between(key, "eval/", f"/{measure}") for line in lines for key in line)
    return list(dict.fromkeys(name for name in names if name is not None))


def _between(key: str, prefix: str, suffix: str) -> str | None:
    if key.startswith(prefix) and key.endswith(suffix):
        return key[len(prefix) : len(key) - len(suffix)]
    return None


def _latest(lines: Sequence[dict], key: str) -> float | None:
    return next((line[key] for line in reversed(lines) if line.get(key) is not None), None)


def _number(value: float | None, specification: str) -> str | None:
    return None if value is None else format(value, specification)


def _flattened(values: Mapping, prefix: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flattened(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value
