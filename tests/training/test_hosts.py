"""A run of several processes is the run of one: its numbers, its files, its ends."""

import collections
import json
import os
import pathlib
import re
import signal
import time
import types

import numpy as np
import pytest

from t5x_style.accounting import Ledger
from t5x_style.errors import EXIT_AGAIN, EXIT_PREEMPTED, StartAgain
from t5x_style.hosts import Watchdog
from t5x_style.hosts import hosts as hosts_module
from t5x_style.hosts.meeting import Place
from t5x_style.hosts.watchdog import write_event
from t5x_style.training import train
from t5x_style.training.session import Session
from tests import warm
from tests.conftest import xla_flags
from tests.hosts.test_meeting import free_port
from tests.training.runs import make_run

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
    damaged = {"damages": str(folder / "damaged/checkpoint_4")}
    two = start(
        2,
        run("damaged", steps=4, checkpoint_period=2),
        run("damaged", steps=4, checkpoint_period=2, **damaged),
        run("two", steps=5),
        run("two", steps=5),
        run("two", **slow),
    )
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
    assert len(first) == 4
    for one, other in zip(first, second, strict=True):
        del one["seconds"], other["seconds"]
        one["line"] = {key: one["line"][key] for key in ("step", "tokens", "loss")}
        other["line"] = {key: other["line"][key] for key in ("step", "tokens", "loss")}
        assert one == other
    assert [result["resumed_from"] for result in first] == [None, 2, None, 5]


def test_each_process_digests_what_it_wrote_and_verifies_its_share(ended, folder):
    for process, of_it in enumerate(ended["two"]):
        left = [line for line in of_it.errors if line.startswith("left the digests")]
        # Two saves, one again after the flip, and one of the other run.
        assert left == [f"left the digests of ocdbt.process_{process}"] * 4
        # Process 1 found the flipped bit, and both went on from the checkpoint before.
        assert [result["resumed_from"] for result in results(of_it)[:2]] == [None, 2]
    model_dir = folder / "damaged"
    files = json.loads((model_dir / "checkpoint_4/MANIFEST.json").read_text())["files"]
    assert {name.split("/")[1] for name in files if "ocdbt.process" in name} == {
        "ocdbt.process_0",
        "ocdbt.process_1",
    }
    (refused,) = (
        event for event in read(model_dir / "events.jsonl") if event["event"] == "refused"
    )
    assert refused["reason"].endswith(" has other bytes than were written")
    assert (model_dir / "damaged_checkpoint_4").is_dir()


def test_one_process_writes(ended, folder):
    steps = [line["step"] for line in read(folder / "two/metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))
    assert kinds(folder / "two") == ["started", "saved", "finished", "resumed", "lost"]
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


def test_a_process_that_is_killed_ends_the_others(ended, folder):
    survivor, killed = ended["two"]
    assert killed.status == -signal.SIGKILL
    assert survivor.status == EXIT_AGAIN
    # It saw the connection end: jax's own heartbeats would have taken 100 seconds.
    assert survivor.seconds < 60
    assert survivor.errors[-1].startswith("error: process 1 of 2 (")
    assert "was lost" in survivor.errors[-1]
    event = read(folder / "two/events.jsonl")[-1]
    assert event["event"] == "lost"
    assert survivor.errors[-1] == f"error: {event['reason']}"


def test_a_broken_collective_is_a_lost_process_while_the_log_is_open(tmp_path, monkeypatch):
    """The main thread may hear of it before the lifeline does, which then writes the event."""
    run = make_run(tmp_path / "run", steps=3, checkpoint_period=2)
    lost = StartAgain("process 1 of 2 was lost")

    class Line:
        place = Place("localhost:1", 2, 0)

        def lost_within(self, seconds: float) -> StartAgain:
            write_event("lost", str(lost))
            return lost

    def broken(reader, rows):
        monkeypatch.setattr(hosts_module, "_lifeline", Line())
        raise RuntimeError("connection reset by peer")

    monkeypatch.setattr(type(run.reader), "rows", broken)
    with Watchdog().watching(), pytest.raises(StartAgain) as error:
        train(run)
    assert error.value is lost
    assert str(error.value.__cause__) == "connection reset by peer"
    assert kinds(tmp_path / "run")[-1] == "lost"


def test_a_run_of_which_one_process_hangs_ends_and_says_who(folder):
    """The reader of process 1 never returns from batch 12; the collective of step 13 waits."""
    model_dir = folder / "hangs"
    run = {"model_dir": str(model_dir), "eval_period": 100, "steps": 100, "hangs_at": [1, 12]}
    both = end(start(2, run))
    assert [item.status for item in both] == [EXIT_AGAIN] * 2, [item.errors for item in both]
    (last,) = {item.errors[-1] for item in both}
    assert ": start all processes again" in last
    (event,) = (line for line in read(model_dir / "events.jsonl") if line["event"] == "hung")
    assert last == f"error: {event['reason']}"
    behind, ahead = event["reason"].split("; ")
    assert behind.startswith("the run hangs: process 1 of 2 (")
    assert ") in 'data' at step 11 for " in behind
    assert ahead.startswith("process 0 of 2 (")
    assert re.search(r"\) in 'step' at step 1[123] for \d+ s: start all", ahead)
    first = read(model_dir / "metrics.jsonl")[1]
    assert event["tokens"] == first["tokens"] / first["step"] * event["step"]
    stacks = ["in slowly" in "\n".join(item.errors) for item in both]
    assert stacks == [False, True], both[0].errors


def test_the_save_that_is_in_progress_when_a_run_ends_has_the_time_of_a_save():
    """It may take minutes. A main thread that waits for it does not hang."""
    phases: list[str] = []
    closes = types.SimpleNamespace(close=lambda: phases.append("closes"))
    parts = {"verification": closes, "saver": closes, "writer": closes}
    Session.close(types.SimpleNamespace(ledger=Ledger(observer=phases.append), **parts))
    assert phases == ["closes", "save", "closes", "other", "closes"]
