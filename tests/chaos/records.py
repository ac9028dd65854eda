"""The files that a run leaves, read independently of the code that wrote them."""

import contextlib
import hashlib
import json
import pathlib
import re
from typing import Any


class Broken(Exception):
    """A promise is not kept."""


def check(holds: object, words: str) -> None:
    """Raises Broken with `words` unless it holds."""
    if not holds:
        raise Broken(words)


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of JSON of a file; others are left out."""
    found = []
    for text in path.read_bytes().split(b"\n") if path.exists() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict):
                found.append(line)
    return found


def curve(model_dir: pathlib.Path) -> tuple[dict[int, float], dict[int, dict[str, float]]]:
    """{step: loss} of the training lines, and {step: figures} of the evaluation lines.

    Raises:
      Broken: a step has two lines.
    """
    losses: dict[int, float] = {}
    evaluations: dict[int, dict[str, float]] = {}
    for line in read_lines(model_dir / "metrics.jsonl"):
        found = {name: value for name, value in line.items() if name.startswith("eval/")}
        into: dict[int, Any] = evaluations if found else losses
        if "step" not in line:
            continue
        check(line["step"] not in into, f"two lines of step {line['step']} in metrics.jsonl")
        into[line["step"]] = found or line["loss"]
    return losses, evaluations


def events(model_dir: pathlib.Path, *kinds: str) -> list[dict[str, Any]]:
    """The events of some kinds, or all."""
    found = [line for line in read_lines(model_dir / "events.jsonl") if "event" in line]
    return [event for event in found if not kinds or event["event"] in kinds]


def checkpoints(model_dir: pathlib.Path) -> dict[int, pathlib.Path]:
    """The whole checkpoints by step: all items, and every file as the manifest says."""
    found = {}
    for path in model_dir.glob("checkpoint_*") if model_dir.exists() else ():
        match = re.fullmatch(r"checkpoint_(\d+)", path.name)
        items = ("_CHECKPOINT_METADATA", "run/metadata", "state/_METADATA", "state/manifest.ocdbt")
        if match and all((path / item).is_file() for item in items) and _as_promised(path):
            found[int(match[1])] = path
    return found


def _as_promised(checkpoint: pathlib.Path) -> bool:
    manifest = checkpoint / "MANIFEST.json"
    files = json.loads(manifest.read_bytes())["files"] if manifest.exists() else {}
    return all(
        (checkpoint / name).is_file()
        and hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() == entry["sha256"]
        for name, entry in files.items()
    )


def difference(
    model_dir: pathlib.Path, base: pathlib.Path, steps: int, apart: float = 0.0
) -> str | None:
    """The first difference of two curves up to a step; None if there is none.

    Args:
      apart: how far losses and figures may be apart, relatively.
    """
    for name, own, theirs in zip(
        ("training", "evaluation"), curve(model_dir), curve(base), strict=True
    ):
        wanted = {step: value for step, value in theirs.items() if step <= steps}
        own = {step: value for step, value in own.items() if step <= steps}
        if own.keys() != wanted.keys():
            some = sorted(own.keys() ^ wanted.keys())[:6]
            return f"{name} lines of steps {some} are in one of two runs alone"
        for step, value in wanted.items():
            pairs = [(own[step], value)]
            if isinstance(value, dict):
                check(own[step].keys() == value.keys(), f"other figures at step {step}")
                # A perplexity is as often as far apart as its loss is large.
                exact = [key for key in value if not (apart and key.endswith("/perplexity"))]
                pairs = [(own[step][key], value[key]) for key in exact]
            for mine, other in pairs:
                if not (mine == other or abs(mine - other) <= apart * abs(other)):
                    return f"{name} line of step {step}: {mine!r}, undisturbed {other!r}"
    return None
