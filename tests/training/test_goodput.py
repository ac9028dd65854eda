"""Every second between the first start of a run and its end is booked on a cause."""

import json
import os
import pathlib
import signal
import time

from tests import warm

PAUSE = 1.5


def events(folder: pathlib.Path) -> list[dict]:
    path = folder / "events.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def start(folder: pathlib.Path, seconds_per_batch: float) -> warm.Child:
    arguments = ["-m", "tests.training.killable", folder, 30, seconds_per_batch]
    return warm.start(arguments, env=dict(os.environ))


def leave(process: warm.Child, folder: pathlib.Path, step: int, number: int) -> None:
    """Send a signal once the run has a line of a step."""
    deadline = time.monotonic() + 300
    path = folder / "metrics.jsonl"
    while not path.exists() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=300)
    # No process has the run meanwhile.
    time.sleep(PAUSE)


def test_the_causes_of_a_killed_a_preempted_and_an_ended_process_add_up_to_the_wall(tmp_path):
    # Lines are on disk within a second, and seven steps are lost at least.
    leave(start(tmp_path, 0.3), tmp_path, 7, signal.SIGKILL)
    leave(start(tmp_path, 0.1), tmp_path, 12, signal.SIGTERM)
    last = start(tmp_path, 0.0)
    written = last.communicate(timeout=300)
    assert last.returncode == 0, written

    found = events(tmp_path)
    begun = [event for event in found if event["event"] in ("started", "resumed")]
    assert [event["event"] for event in begun] == ["started", "resumed", "resumed"]
    assert [event["event"] for event in found if event["event"] == "preempted"]
    end = found[-1]
    assert end["event"] == "finished"
    seconds, wall = end["seconds"], end["time"] - begun[0]["began"]
    assert 0.99 < sum(seconds.values()) / wall < 1.01, (seconds, wall)
    assert seconds["idle"] > 2 * PAUSE
    assert 0 < seconds["lost"] < wall - 2 * PAUSE
    assert all(seconds[cause] > 0 for cause in ("start", "restore", "compile", "step", "save"))
    # What is in no block is little, so no cause hides there.
    assert seconds["other"] < 0.1 * wall
