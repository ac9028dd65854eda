"""A run of several processes is the run of one: its numbers, its files, its ends."""

import collections
import json
import os
import pathlib
import signal
import time

import numpy as np
import pytest

from t5x_style.errors import EXIT_FAULT, EXIT_PREEMPTED
from tests import warm
from tests.conftest import xla_flags
from tests.hosts.test_lifeline import free_port

DEVICES = 4
STEPS = 8


def start(processes: int, *runs: dict) -> list[warm.Child]:
    """Processes that make the same runs together, on four devices in all."""
    hosts = {"processes": processes}
    if processes > 1:
        hosts["coordinator"] = f"localhost:{free_port()}"
    flags = xla_flags(DEVICES // processes)
    own = [{"index": index} if processes > 1 else {} for index in range(processes)]
    return [
        warm.start(
            ["-m", "tests.training.one_of_several", json.dumps(hosts | of_one), json.dumps(runs)],
            env={**os.environ, "XLA_FLAGS": flags},
        )
        for of_one in own
    ]


def read(path: pathlib.Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def losses(model_dir: pathlib.Path) -> list[float]:
    return [line["loss"] for line in read(model_dir / "metrics.jsonl") if "loss" in line]


def evaluations(model_dir: pathlib.Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key != "time"}
        for line in read(model_dir / "metrics.jsonl")
        if "eval/domain/loss" in line
    ]


def kinds(model_dir: pathlib.Path) -> list[str]:
    return [event["event"] for event in read(model_dir / "events.jsonl")]


def wait_for(condition, processes: list[warm.Child]) -> None:
    deadline = time.monotonic() + 1200
    while not condition():
        going_on = time.monotonic() < deadline and all(item.poll() is None for item in processes)
        if not going_on:
            for item in processes:
                item.kill()
        assert going_on, [item.communicate() for item in processes]
        time.sleep(0.02)


Ended = collections.namedtuple("Ended", "status seconds output errors")


def end(processes: list[warm.Child]) -> list[Ended]:
    """How each ended, and how long after this call."""
    called = time.monotonic()
    ended = []
    for process in processes:
        output, errors = process.communicate(timeout=1200)
        seconds = time.monotonic() - called
        ended.append(Ended(process.returncode, seconds, output, errors.splitlines()))
    return ended


def results(ended: Ended) -> list[dict]:
    return [json.loads(line) for line in ended.errors if line.startswith('{"line"')]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def ended(folder) -> dict[str, list[Ended]]:
    """Runs of one, two and four processes, and how each process ended."""

    def run(name: str, **options) -> dict:
        return {"model_dir": str(folder / name), "eval_period": 4, **options}

    # Long, and slow enough that a test can interfere.
    slow = {"steps": 200, "seconds_per_batch": 0.3, "checkpoint_period": 1000}
    # Four, of which one gets SIGTERM.
    four = start(4, run("four", **slow))
    wait_for(lambda: losses(folder / "four"), four)
    four[2].send_signal(signal.SIGTERM)
    found = {"four": end(four)}

    # One alone, that also goes on where the four left; and meanwhile
    stopped = read(folder / "four/events.jsonl")[-1]["step"]
    one = start(1, run("one", steps=STEPS), run("four", steps=stopped + 1))
    # two, that come to an end, find it reached, and go on from it until one of them is killed.
    two = start(2, run("two", steps=5), run("two", steps=5), run("two", **slow))
    wait_for(lambda: len(evaluations(folder / "two")) == 4, two)
    two[1].kill()
    return found | {"two": end(two), "one": end(one)}


def test_processes_learn_what_one_process_learns(ended, folder):
    assert ended["one"][0].status == 0, ended["one"][0].errors
    one, two = losses(folder / "one"), losses(folder / "two")[:STEPS]
    assert len(one) == STEPS
    assert one[-1] < one[0] - 0.1
    np.testing.assert_allclose(two, one, rtol=1e-5)
    four = losses(folder / "four")[:STEPS]
    np.testing.assert_allclose(four, one[: len(four)], rtol=1e-5)
    assert two[0] == one[0]


def test_evaluations_are_those_of_one_process(ended, folder):
    one, two = evaluations(folder / "one"), evaluations(folder / "two")
    assert [line["step"] for line in one] == [0, 4, 8]
    assert [line["step"] for line in two] == [0, 4, 5, 8]
    for expected, line in zip(one, [two[0], two[1], two[3]], strict=True):
        assert line == pytest.approx(expected, rel=1e-5)


def test_every_process_returns_the_same(ended):
    first, second = (results(item) for item in ended["two"])
    assert len(first) == 2
    for one, other in zip(first, second, strict=True):
        del one["seconds"], other["seconds"]
        one["line"] = {key: one["line"][key] for key in ("step", "tokens", "loss")}
        other["line"] = {key: other["line"][key] for key in ("step", "tokens", "loss")}
        assert one == other
    assert [result["resumed_from"] for result in first] == [None, 5]


def test_one_process_writes(ended, folder):
    steps = [line["step"] for line in read(folder / "two/metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert kinds(folder / "two") == ["started", "saved", "finished", "resumed"]
    assert len(list((folder / "two/train").iterdir())) == 2  # one for each life
    for processes in (ended["two"], ended["four"]):
        assert "step 1 |" in processes[0].output
        assert not [item.output for item in processes[1:] if "step" in item.output]


def test_sigterm_to_one_ends_all_at_the_same_step(ended, folder):
    assert [item.status for item in ended["four"]] == [EXIT_PREEMPTED] * 4
    (last,) = {item.errors[-1] for item in ended["four"]}
    assert last.startswith("preempted: signal SIGTERM at step ")
    assert kinds(folder / "four")[:3] == ["started", "saved", "preempted"]


def test_one_process_goes_on_where_four_left(ended, folder):
    stopped = read(folder / "four/events.jsonl")[2]["step"]
    assert kinds(folder / "four")[3:] == ["resumed", "saved", "finished"]
    assert len(losses(folder / "four")) == stopped + 1
    assert results(ended["one"][0])[-1]["resumed_from"] == stopped


def test_a_process_that_is_killed_ends_the_others(ended):
    survivor, killed = ended["two"]
    assert killed.status == -signal.SIGKILL
    assert survivor.status == EXIT_FAULT
    # It saw the connection end: jax's own heartbeats would have taken 100 seconds.
    assert survivor.seconds < 60
    assert survivor.errors[-1].startswith("error: process 1 of 2 (")
    assert "was lost" in survivor.errors[-1]
