"""The points that a scaling law is fitted to: N, D and final loss of runs, or of a CSV file."""

import csv
import dataclasses
import glob
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_style.errors import UsageError, did_you_mean
from t5x_style.reporting import RunRecord, read_run
from t5x_style.reporting.run.writer import METRICS_FILE

ROLES = ("params", "tokens", "flops", "loss")
# What --loss may be beside a key of a metrics line: each source's evaluation loss, by its share.
BLENDED = "blended"
SWEEP_FILE = "sweep.json"


@dataclasses.dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
      name: its directory, or FILE:LINE.
      params: N, every parameter.
      tokens: D.
      loss: nats per token at its end.
      epochs: passes over the source that it repeated most; None where that is not known.
    """

    name: str
    params: float
    tokens: float
    loss: float
    epochs: float | None = None


def points_of_csv(path: str, columns: Mapping[str, str] | None = None) -> list[Point]:
    """The points in a CSV file whose first line names its columns; further ones are passed over.

    Args:
      path: the file.
      columns: which column holds what, `params`, `loss` and `tokens` or `flops` -> its name in the
        file, where that is another. With `flops`, D = C / (6 N).

    Raises:
      UsageError: no such file, a column that is not there, or a value that is no positive number,
        with its line and column.
    """
    columns = dict(columns or {})
    for role in columns:
        if role not in ROLES:
            raise UsageError(
                f"--columns names {role!r}{did_you_mean(role, ROLES)} (there is {', '.join(ROLES)})"
            )
    if "tokens" in columns and "flops" in columns:
        raise UsageError("--columns names tokens and flops: with N, either gives the other")
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            chosen = _chosen_columns(path, list(reader.fieldnames or ()), columns)
            points = []
            for row in reader:
                where = f"{path}:{reader.line_num}"
                value = {role: _number(row[name], where, name) for role, name in chosen.items()}
                tokens = value.get("tokens") or value["flops"] / (6 * value["params"])
                points.append(Point(where, value["params"], tokens, value["loss"]))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UsageError(f"--points={path}: {reason}") from error
    return points


def points_of_runs(
    runs: Sequence[str], loss: str = BLENDED
) -> tuple[list[Point], list[dict[str, str]]]:
    """One point of each run that is at its end.

    Args:
      runs: run directories, sweep directories (each of their trials), or patterns such as 'runs/*'.
      loss: a key of a metrics line (`loss`, `eval/legal/loss`), taken at the run's end; or
        'blended', every source's evaluation loss weighted by its share.

    Returns:
      The points, and as `name` and `reason` the runs left out. Before a run's end its learning rate
      has not come down, so its loss is not that of a run planned for so few tokens. Of runs with
      the same N and D, as a sweep over learning rates has, the law is that of the best one.

    Raises:
      UsageError: nothing there, a run without that loss, or runs that cannot be compared: of
        another tokenizer or of other shares.
    """
    best: dict[tuple[float, float], Point] = {}
    left_out: list[dict[str, str]] = []
    first: RunRecord | None = None
    for directory, reason in _directories(runs):
        run = None if reason else read_run(directory)
        reason = reason or _unfinished(run)
        if reason:
            left_out.append({"name": directory, "reason": reason})
            continue
        first = first or run
        _refuse_incomparable(first, run)
        point = Point(
            directory,
            params=run.plan["parameters"]["total"],
            tokens=run.plan["horizon"]["tokens"],
            loss=_final_loss(run, loss),
            epochs=max(source["epochs"] for source in run.plan["sources"].values()),
        )
        size = point.params, point.tokens
        kept, other = sorted((best.get(size, point), point), key=lambda each: each.loss)
        best[size] = kept
        if kept is not other:
            left_out.append({"name": other.name, "reason": f"same N and D as {kept.name}, better"})
    return list(best.values()), left_out


def without_highest(points: Sequence[Point], count: int) -> list[Point]:
    """The points whose loss is below the `count`-th highest.

    Raises:
      UsageError: a negative count, or one that leaves nothing.
    """
    if not 0 <= count < max(1, len(points)):
        raise UsageError(
            f"--drop_highest={count}: must be 0 or more, and less than the {len(points)} points"
        )
    if not count:
        return list(points)
    bound = sorted((point.loss for point in points), reverse=True)[count - 1]
    return [point for point in points if point.loss < bound]


def _chosen_columns(path: str, header: Sequence[str], columns: Mapping[str, str]) -> dict[str, str]:
    """The file's columns by role: params, loss, and tokens or flops."""
    # With both in the file and neither asked for, tokens: they need no convention.
    by_flops = "flops" in columns or (
        "tokens" not in columns and "tokens" not in header and "flops" in header
    )
    roles = ("params", "flops" if by_flops else "tokens", "loss")
    chosen = {role: columns.get(role, role) for role in roles}
    for role, column in chosen.items():
        if column not in header:
            wanted = "tokens (or flops)" if role == "tokens" else role
            raise UsageError(
                f"{path} has no column {column!r} for {wanted}{did_you_mean(column, header)} (its"
                f" columns: {', '.join(header)}; say which with --columns={{'{role}': 'NAME'}})"
            )
    return chosen


def _number(text: str | None, where: str, column: str) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise UsageError(f"{where}: {column} = {text or ''!r} is not a positive number")
    return value


def _directories(runs: Sequence[str]) -> list[tuple[str, str | None]]:
    """Run directories, each once, in the order named, and why one has no run that is at its end."""
    found: dict[str, str | None] = {}
    for name in runs:
        folders = [name]
        if any(sign in name for sign in "*?["):
            # What else a pattern meets beside runs, such as their logs, is no mistake.
            folders = [
                match
                for match in sorted(glob.glob(name))
                if any((Path(match) / file).is_file() for file in (SWEEP_FILE, METRICS_FILE))
            ]
            if not folders:
                raise UsageError(f"--runs={name}: no run and no sweep there")
        for folder in folders:
            sweep = Path(folder) / SWEEP_FILE
            found |= _trials(sweep) if sweep.is_file() else {folder: None}
    return list(found.items())


def _trials(sweep: Path) -> dict[str, str | None]:
    return {
        str(sweep.parent / entry["name"]): (
            None if entry["status"] == "finished" else f"its trial is {entry['status']}"
        )
        for entry in json.loads(sweep.read_text())["trials"]
    }


def _unfinished(run: RunRecord) -> str | None:
    """How far a run is, if it has not had all of its tokens."""
    if not run.plan:
        raise UsageError(f"{run.model_dir} holds no plan.json, which says how large its model is")
    horizon = run.plan["horizon"]["tokens"]
    reached = max((line["tokens"] for line in run.training), default=0)
    return f"at {reached:,} of {horizon:,} tokens" if reached < horizon else None


def _final_loss(run: RunRecord, loss: str) -> float:
    """The loss at a run's end, nats per token."""
    if loss != BLENDED:
        return _last_value(run, loss)
    shares = {name: source["share"] for name, source in run.plan["sources"].items()}
    return sum(
        share * _last_value(run, f"eval/{name}/loss") for name, share in shares.items()
    ) / sum(shares.values())


def _last_value(run: RunRecord, key: str) -> float:
    losses = {
        name: value
        for line in (*run.training, *run.evaluations)
        if line["tokens"] >= run.plan["horizon"]["tokens"]
        for name, value in line.items()
        if "loss" in name.split("/") and value is not None
    }
    if key not in losses:
        raise UsageError(
            f"{run.model_dir} has no {key!r} at its end{did_you_mean(key, losses)}"
            f" (--loss takes one of {', '.join([BLENDED, *losses])})"
        )
    return losses[key]


def _refuse_incomparable(first: RunRecord, run: RunRecord) -> None:
    """A law holds for one corpus and one vocabulary: a loss per token means nothing across two."""
    for key in ("tokenizer", "blend"):
        one, other = (each.plan["identity"][key] for each in (first, run))
        if one != other:
            raise UsageError(
                f"{first.model_dir} and {run.model_dir} cannot be points of one law: {key} is"
                f" {one!r} in the one and {other!r} in the other"
            )
