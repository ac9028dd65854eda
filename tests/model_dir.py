"""The folder of a run, as tests read it, and as they remove it."""

import json
import pathlib
import shutil


def json_lines(path: pathlib.Path) -> list[dict]:
    """The lines of a .jsonl file; a broken one fails the test."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def lines(model_dir: pathlib.Path) -> list[dict]:
    """The training lines and the evaluation lines."""
    return json_lines(model_dir / "metrics.jsonl")


def events(model_dir: pathlib.Path, *kinds: str) -> list[dict]:
    """The events of some kinds, or all."""
    found = json_lines(model_dir / "events.jsonl")
    return [event for event in found if not kinds or event["event"] in kinds]


def remove(folder: pathlib.Path) -> None:
    """Remove a folder at once: a run would make files again while it is emptied."""
    away = folder.with_name("away")
    folder.rename(away)
    shutil.rmtree(away)
