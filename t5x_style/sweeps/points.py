"""The points for the fit of a scaling law: N, D and final loss of runs, or of a CSV file."""

import csv
import dataclasses
import glob
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import local_path, read_text
from t5x_style.reporting import DerivedRun, RunRecord, read_run
from t5x_style.reporting.logs.log_lines import METRICS_FILE
from t5x_style.reporting.run.held_out_text import evaluation_weights, weights_text
from t5x_style.sweeps.record import SWEEP_FILE, read_sweep

ROLES = ("params", "tokens", "flops", "loss")
# A value of --loss besides the keys of a metrics line: the evaluation losses, weighted by share.
BLENDED = "blended"


@dataclasses.dataclass(frozen=True)
class Point:
    """One run.

    Attributes:
      name: its directory, or FILE:LINE.
      params: N, every parameter.
      tokens: D.
      loss: nats per token at its end.
      epochs: passes over the source that it repeated most; None if unknown.
      measured: what the loss is of, for people; None if unknown.
    """

    name: str
    params: float
    tokens: float
    loss: float
    epochs: float | None = None
    measured: str | None = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A run that is no point of the law, and the reason."""

    name: str
    reason: str


def points_of_csv(path: str, columns: Mapping[str, str] | None = None) -> list[Point]:
    """The points in a CSV file whose first line names its columns. Other columns are ignored.

    Args:
      path: of the file.
      columns: `params`, `loss`, and `tokens` or `flops` -> the name of that column, if the file has
        another name for it. With `flops`, D = C / (6 N).

    Raises:
      UsageError: no such file, a missing column, or a value that is no positive number, with its
        line and column.
    """
    file_path = local_path(path, "--points")
    columns = dict(columns or {})
    for role in columns:
        if role not in ROLES:
            raise UsageError(
                f"--columns names {role!r}{did_you_mean(role, ROLES)} (columns: {', '.join(ROLES)})"
            )
    if "tokens" in columns and "flops" in columns:
        raise UsageError("--columns names tokens and flops: with N, either gives the other")
    reader = csv.DictReader(io.StringIO(read_text(file_path, f"--points={path}")))
    points = []
    try:
        header = list(reader.fieldnames or ())
        chosen = _chosen_columns(path, header, columns)
        for row in reader:
            where = f"{path}:{reader.line_num}"
            # A comma for the decimal point makes two cells of a number, and shifts the others.
            if any(more := row.pop(None, [])):
                raise UsageError(
                    f"{where}: {len(header) + len(more)} cells, but the first line names "
                    f"{len(header)} columns"
                )
            value = {role: _number(row[name], where, name) for role, name in chosen.items()}
            tokens = value.get("tokens") or value["flops"] / (6 * value["params"])
            points.append(Point(where, value["params"], tokens, value["loss"]))
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.reader.line_num}: {error}") from error
    return points


def points_of_runs(runs: Sequence[str], loss: str = BLENDED) -> tuple[list[Point], list[LeftOut]]:
    """The points of the runs that have reached their planned tokens, one per run.

    Args:
      runs: run directories, sweep directories (all of their trials), or patterns such as 'runs/*'.
      loss: a key of a metrics line (`loss`, `eval/legal/loss`), taken at the end of the run; or
        'blended', the evaluation losses of all sources that have one, weighted by their shares.

    Returns:
      The points, and the runs left out. An unfinished run is left out: its
      learning rate has not decayed, so its loss is not that of a run planned for so few tokens.
      Among runs with the same N and planned D, as in a sweep over learning rates, the best one is
      kept. D of a point is of the tokens learnt from: less the updates that were left out.

    Raises:
      UsageError: no run found, a run without that loss, or runs that cannot be compared: they have
        other tokenizers, other shares, or other held-out text.
    """
    best: dict[tuple[float, float], Point] = {}
    left_out: list[LeftOut] = []
    first: RunRecord | None = None
    for directory, failure in _directories(runs):
        if failure:
            left_out.append(LeftOut(directory, failure))
            continue
        run = read_run(directory)
        if reason := _unfinished(run):
            left_out.append(LeftOut(directory, reason))
            continue
        derived = _derived(run)
        first = first or run
        _refuse_incomparable(first, run)
        value, measured = _final_loss(run, loss)
        point = Point(
            directory,
            params=derived.parameters["total"],
            tokens=run.learnt_tokens,
            loss=value,
            epochs=max(source.account.epochs for source in derived.sources.values()),
            measured=measured,
        )
        size = point.params, derived.horizon.tokens
        kept, other = sorted((best.get(size, point), point), key=lambda point: point.loss)
        best[size] = kept
        if kept is not other:
            left_out.append(LeftOut(other.name, f"same N and D as {kept.name}, better"))
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
    # If the file has both and --columns names neither, tokens: they need no convention.
    by_flops = "flops" in columns or (
        "tokens" not in columns and "tokens" not in header and "flops" in header
    )
    roles = ("params", "flops" if by_flops else "tokens", "loss")
    chosen = {role: columns.get(role, role) for role in roles}
    for role, column in chosen.items():
        if header.count(column) > 1:
            raise UsageError(f"{path} names the column {column!r} twice: which of them is {role}?")
        if column not in header:
            wanted = "tokens (or flops)" if role == "tokens" else role
            raise UsageError(
                f"{path} has no column {column!r} for {wanted}{did_you_mean(column, header)} (its"
                f" columns: {', '.join(header)}; name it with --columns={{'{role}': 'NAME'}})"
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
    """(run directory, None or the reason why its trial did not finish), without repetition."""
    found: dict[str, str | None] = {}
    for name in runs:
        local_path(name, "--runs")
        folders = [name]
        if any(sign in name for sign in "*?["):
            # A pattern may match other files too, such as the logs of runs.
            folders = [
                match
                for match in sorted(glob.glob(name))
                if any((Path(match) / file).is_file() for file in (SWEEP_FILE, METRICS_FILE))
            ]
            if not folders:
                raise UsageError(f"--runs={name}: no run and no sweep there")
        for folder in folders:
            if (sweep := read_sweep(Path(folder))) is None:
                found[folder] = None
                continue
            for trial in sweep.trials:
                finished = trial.status == "finished"
                found[str(Path(folder) / trial.name)] = (
                    None if finished else f"its trial is {trial.status}"
                )
    return list(found.items())


def _derived(run: RunRecord) -> DerivedRun:
    if run.derived is None:
        raise UsageError(f"{run.model_dir} has no plan.json, which has the size of its model")
    return run.derived


def _unfinished(run: RunRecord) -> str | None:
    """The tokens that a run has reached, if it has not reached its planned tokens."""
    horizon = _derived(run).horizon.tokens
    reached = max((line["tokens"] for line in run.training), default=0)
    return f"at {reached:,} of {horizon:,} tokens" if reached < horizon else None


def _final_loss(run: RunRecord, loss: str) -> tuple[float, str]:
    """The loss at a run's end, nats per token, and what it is of."""
    losses = _final_losses(run)
    if loss != BLENDED:
        return _named_loss(run, loss, losses), loss
    parts = {
        name.removeprefix("eval/").removesuffix("/loss"): value
        for name, value in losses.items()
        if name.startswith("eval/") and name.endswith("/loss")
    }
    if not parts:
        _named_loss(run, "eval/SOURCE/loss", losses)
    shares = {name: source.account.share for name, source in _derived(run).sources.items()}
    weights = evaluation_weights(shares, list(parts))
    value = sum(weight * parts[name] for name, weight in weights.items())
    return value, f"evaluation loss of {weights_text(weights)}"


def _final_losses(run: RunRecord) -> dict[str, float]:
    """All losses of the lines at a run's end, by their keys."""
    return {
        name: value
        for line in (*run.training, *run.evaluations)
        if line["tokens"] >= _derived(run).horizon.tokens
        for name, value in line.items()
        if "loss" in name.split("/") and value is not None
    }


def _named_loss(run: RunRecord, key: str, losses: Mapping[str, float]) -> float:
    if key not in losses:
        raise UsageError(
            f"{run.model_dir} has no {key!r} at its end{did_you_mean(key, losses)}"
            f" (--loss takes one of {', '.join([BLENDED, *losses])})"
        )
    return losses[key]


def _refuse_incomparable(first: RunRecord, run: RunRecord) -> None:
    """A law holds for one corpus and one vocabulary: losses per token of two do not compare."""
    for key in ("tokenizer", "blend"):
        one, other = (_derived(record).identity[key] for record in (first, run))
        if one != other:
            raise UsageError(
                f"{first.model_dir} and {run.model_dir} cannot be points of one law: {key} is"
                f" {one!r} in the one and {other!r} in the other"
            )
    texts = [_derived(record).held_out[-1].stores for record in (first, run)]
    for name in sorted(texts[0].keys() | texts[1].keys()):
        one, other = (text.get(name) for text in texts)
        if one is None or other is None:
            lacking = first if one is None else run
            raise UsageError(
                f"{first.model_dir} and {run.model_dir} cannot be points of one law: source "
                f"{name!r} is not evaluated in {lacking.model_dir}"
            )
        digests = {one.tokens_digest, other.tokens_digest} - {None}
        if len(digests) > 1:
            raise UsageError(
                f"{first.model_dir} and {run.model_dir} cannot be points of one law: the held-out "
                f"text of {name!r} is {one.store} in the one and {other.store} in the other"
            )
