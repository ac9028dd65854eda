"""Reads the .jsonl files of a run line by line, around broken ones, and moves files aside."""

import contextlib
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from t5x_style.files import sync

METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
EVALUATION_PREFIX = "eval/"
# Events about the logs themselves. They say nothing of where the run is.
LOG_EVENTS = ("logs_broken", "logs_rewritten")


class Line(NamedTuple):
    """One line of a .jsonl file.

    Attributes:
      number: from 1.
      start, end: its bytes in the file; its newline is the last of them.
      fields: None if the line is broken.
    """

    number: int
    start: int
    end: int
    fields: dict[str, Any] | None


class Log(NamedTuple):
    """The lines of a file, sorted out.

    Attributes:
      kept: in order.
      broken: those that are no lines of such a file.
      replaced: those of steps that later lines have again, as where a file was appended to itself.
      error: why the file cannot be read to its end; None if it can.
    """

    kept: list[Line]
    broken: list[Line]
    replaced: list[Line]
    error: str | None = None

    @property
    def fields(self) -> list[dict[str, Any]]:
        """The fields of the lines that are kept."""
        return [line.fields for line in self.kept if line.fields is not None]

    @property
    def faults(self) -> list[str]:
        """What is wrong with the lines, in words; empty for a whole file."""
        found = []
        if self.broken:
            found.append(f"{_numbers(self.broken)} cannot be read")
        if self.replaced:
            found.append(f"{_numbers(self.replaced)} gave way to later lines of the same steps")
        if self.error:
            found.append(f"it cannot be read after {len(self.kept):,} lines ({self.error})")
        return found


def read_log(path: pathlib.Path, only: Collection[str] | None = None) -> Log:
    """The lines of metrics.jsonl or events.jsonl; none if there is no such file.

    Args:
      only: of a training line, keep these fields alone: a long run has gigabytes of lines.
    """
    log = Log([], [], [])
    # The places in `kept` of the training lines and of the evaluation lines.
    places: dict[bool, list[int]] = {False: [], True: []}
    replaced: set[int] = set()
    try:
        for line in _lines(path):
            if line.fields is None:
                log.broken.append(line)
                continue
            if path.name == METRICS_FILE:
                evaluation = is_evaluation(line.fields)
                if only is not None and not evaluation:
                    fields = {name: line.fields[name] for name in only if name in line.fields}
                    line = line._replace(fields=fields)
                earlier = places[evaluation]
                while earlier and _replaces(line, log.kept[earlier[-1]], evaluation):
                    replaced.add(earlier.pop())
                earlier.append(len(log.kept))
            log.kept.append(line)
    except OSError as error:
        log = log._replace(error=error.strerror or str(error))
    if replaced:
        log.replaced.extend(log.kept[place] for place in sorted(replaced))
        log.kept[:] = [line for place, line in enumerate(log.kept) if place not in replaced]
    return log


def _replaces(line: Line, earlier: Line, evaluation: bool) -> bool:
    """Whether a line of metrics.jsonl is about a step that an earlier line is about or is after."""
    assert line.fields is not None
    assert earlier.fields is not None
    if line.fields["step"] != earlier.fields["step"]:
        return line.fields["step"] < earlier.fields["step"]
    return not evaluation or line.fields.keys() == earlier.fields.keys()


def _lines(path: pathlib.Path) -> Iterator[Line]:
    """Every line of a file.

    A line is broken if it is no JSON object, or lacks a number `step`, `tokens` or `time`, or the
    name `event` in events.jsonl. A last line that a kill cut short is left out.
    """
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as file:
        for number, text in enumerate(file, start=1):
            start, end = end, end + len(text)
            fields = _fields(text, with_event=path.name == EVENTS_FILE)
            if fields is not None or text.endswith(b"\n"):
                yield Line(number, start, end, fields)


def _fields(text: bytes, *, with_event: bool) -> dict[str, Any] | None:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or (with_event and not isinstance(fields.get("event"), str)):
        return None
    step, tokens, time = (fields.get(name) for name in ("step", "tokens", "time"))
    numbers = type(step) is int and type(tokens) in (int, float) and type(time) in (int, float)
    return fields if numbers else None


def is_evaluation(fields: Mapping[str, object]) -> bool:
    """Whether a line of metrics.jsonl is an evaluation line and not a training line."""
    return any(key.startswith(EVALUATION_PREFIX) for key in fields)


def not_in(log: Log, texts: Sequence[str]) -> list[str]:
    """Those of some lines, as JSON, that a log does not have. No two lines have one time."""
    there = {(fields["step"], fields["time"]) for fields in log.fields}
    lines = [(json.loads(text), text) for text in texts]
    return [text for line, text in lines if (line["step"], line["time"]) not in there]


def missing_lines(training: Sequence[Mapping[str, Any]], last_step: int | None) -> list[str]:
    """What is missing in the training lines up to a step, in words."""
    missing, before = [], 0
    for line in training:
        # An older version did not write how many steps a line is about.
        steps = line.get("loss_steps")
        first = line["step"] - steps if type(steps) is int else before
        if first > before:
            missing.append((before + 1, first))
        before = line["step"]
    if last_step is not None and last_step > before:
        missing.append((before + 1, last_step))
    if not missing:
        return []
    stretches = ", ".join(f"{first:,} to {last:,}" for first, last in missing[:5])
    others = f" and of {len(missing) - 5:,} other stretches" if len(missing) > 5 else ""
    return [f"the lines about steps {stretches}{others} are missing"]


def mend(path: pathlib.Path, log: Log, last_step: float) -> list[str]:
    """Take out of a file what `log` does not keep, and the lines after a step.

    Lines that are broken or replaced go to a file `<name>.broken` under a free name.

    Returns:
      What was wrong, in words; empty for a whole file. `log.kept` loses the cut lines.
    """
    if not path.exists():
        return []
    log.kept[:] = [line for line in log.kept if line.fields and line.fields["step"] <= last_step]
    wrong = sorted([*log.broken, *log.replaced])
    faults = log.faults
    if log.error:
        aside = move_aside(path, "broken")
        _copy_lines(aside, log.kept, path)
        return [f"{path.name}: {fault}; moved to {aside.name}" for fault in faults]
    if wrong:
        aside = free_name(path, "broken")
        _copy_lines(path, wrong, aside)
        faults = [f"{path.name}: {fault}; moved to {aside.name}" for fault in faults]
    whole = sum(line.end - line.start for line in log.kept)
    if log.kept and whole != log.kept[-1].end:
        partial = free_name(path, "partial")
        _copy_lines(path, log.kept, partial)
        os.replace(partial, path)
    with open(path, "r+b") as file:
        file.truncate(whole)
        file.seek(max(0, whole - 1))
        # An editor may have taken the last newline away.
        if file.read() not in (b"\n", b""):
            file.write(b"\n")
        os.fsync(file.fileno())
    sync(path.parent)
    return faults


def _copy_lines(path: pathlib.Path, lines: Sequence[Line], target: pathlib.Path) -> None:
    with contextlib.ExitStack() as opened:
        copy = opened.enter_context(open(target, "xb"))
        # What cannot be opened, such as a folder of that name, has no lines.
        file = opened.enter_context(open(path, "rb")) if lines else None
        for line in lines:
            assert file is not None
            file.seek(line.start)
            copy.write(file.read(line.end - line.start))
        copy.flush()
        os.fsync(copy.fileno())


def move_aside(path: pathlib.Path, ending: str) -> pathlib.Path:
    """Give a file another name, `<name>.<ending>` or `<name>.<ending>.2` and so on.

    Returns:
      The new path. No file is replaced.
    """
    aside = free_name(path, ending)
    os.rename(path, aside)
    sync(path.parent)
    return aside


def free_name(path: pathlib.Path, ending: str) -> pathlib.Path:
    """The first of `<name>.<ending>`, `<name>.<ending>.2` and so on that is no file yet."""
    aside, number = path.with_name(f"{path.name}.{ending}"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{path.name}.{ending}.{number}")
    return aside


def move_logs_aside(folder: pathlib.Path, ending: str) -> list[pathlib.Path]:
    """Move metrics.jsonl and events.jsonl aside, so that a run can begin with empty ones.

    Returns:
      The new paths; see `move_aside`.
    """
    files = [folder / name for name in (METRICS_FILE, EVENTS_FILE)]
    return [move_aside(file, ending) for file in files if file.exists()]


def _numbers(lines: Sequence[Line]) -> str:
    """`line 3`, or `lines 3, 4, 5 and 17 more`."""
    first = ", ".join(f"{line.number:,}" for line in lines[:3])
    others = f" and {len(lines) - 3:,} more" if len(lines) > 3 else ""
    return f"line{'s' if len(lines) > 1 else ''} {first}{others}"
