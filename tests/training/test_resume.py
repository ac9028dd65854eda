"""A run that is killed, at any moment and more than once, is the run that was never killed."""

import os
import pathlib
import random
import re
import shutil
import signal
import threading
import time

import jax
import numpy as np
import pytest

from t5x_style.accounting import Architecture, Topology
from t5x_style.data import BatchPlan, BatchReader
from t5x_style.errors import Fault, Preempted, UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.training import train
from tests import warm
from tests.conftest import WITHOUT_PROGRAM_CACHE
from tests.model_dir import events, lines
from tests.training.runs import ARCHITECTURE, make_run

STEPS = 60
CONSTANT = AdamW(Schedule(peak_learning_rate=1e-2, warmup_tokens=256, shape="constant"))


def learnt(model_dir: pathlib.Path) -> list[tuple]:
    """All of the lines but what a clock says."""
    clock = re.compile(r"time|seconds/.*|.*_seconds|tokens_per_second|goodput")
    return [
        tuple((key, value) for key, value in line.items() if not clock.fullmatch(key))
        for line in lines(model_dir)
    ]


def start(model_dir: pathlib.Path, seconds_per_batch: float = 0.0) -> warm.Child:
    return warm.start(
        ["-m", "tests.training.killable", model_dir, STEPS, seconds_per_batch],
        env={**os.environ, **WITHOUT_PROGRAM_CACHE},
    )


def finish(process: warm.Child) -> None:
    written = process.communicate(timeout=1200)
    assert process.returncode == 0, written


def wait_for(condition, process: warm.Child, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill(process: warm.Child) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture
def no_program_cache():
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> pathlib.Path:
    model_dir = tmp_path_factory.mktemp("uninterrupted")
    finish(start(model_dir))
    return model_dir


def test_killed_twice_gives_the_same_lines_bit_for_bit(uninterrupted, tmp_path):
    """Once while a checkpoint is being written, once between two."""
    writing = tmp_path.glob
    first = start(tmp_path, 0.02)
    wait_for(lambda: any(writing("checkpoint_15.orbax-checkpoint-tmp*")), first)
    kill(first)
    second = start(tmp_path, 0.02)
    wait_for(lambda: (tmp_path / "checkpoint_35").exists(), second)
    time.sleep(random.Random(0).uniform(0.0, 0.1))
    kill(second)
    finish(start(tmp_path))

    assert learnt(tmp_path) == learnt(uninterrupted)
    assert len([line for line in lines(tmp_path) if "loss" in line]) == STEPS
    kinds = [event["event"] for event in events(tmp_path)]
    assert kinds.count("started") == 1
    assert kinds.count("resumed") == 2
    assert kinds[-1] == "finished"
    # What the kills threw away is booked.
    assert events(tmp_path)[-1]["seconds"]["lost"] > 0


def test_killed_before_the_first_checkpoint_starts_anew(uninterrupted, tmp_path):
    process = start(tmp_path, 0.2)
    wait_for(lambda: (tmp_path / "events.jsonl").exists(), process)
    kill(process)
    finish(start(tmp_path))
    assert learnt(tmp_path) == learnt(uninterrupted)


@pytest.fixture(scope="module")
def on_one_device(tmp_path_factory) -> pathlib.Path:
    """Runs of 16 steps, whole and half."""
    folder = tmp_path_factory.mktemp("on_one_device")
    for name, steps in (("whole", 16), ("half", 8)):
        train(make_run(folder / name, steps=steps, optimizer=CONSTANT, eval_period=100))
    return folder


@pytest.mark.parametrize(
    "mesh",
    [
        {"fsdp": 8},
        {"data": 2, "fsdp": 2, "tensor": 2},
        {"data": 4, "fsdp": 2, "shard_optimizer_over_data": True},
    ],
)
def test_resumed_on_another_mesh(on_one_device, tmp_path, mesh):
    shutil.copytree(on_one_device / "half", tmp_path, dirs_exist_ok=True)
    topology = Topology(loss_chunk_tokens=64, **mesh)
    options = {"optimizer": CONSTANT, "eval_period": 100}
    train(make_run(tmp_path, steps=16, topology=topology, **options))
    whole, resumed = (
        [line["loss"] for line in lines(folder) if "loss" in line]
        for folder in (on_one_device / "whole", tmp_path)
    )
    assert len(whole) == 16
    np.testing.assert_allclose(resumed, whole, rtol=1e-5)


def test_batch_size_phases_go_on_where_they_were(tmp_path, no_program_cache):
    def phases(steps: int) -> BatchPlan:
        return BatchPlan.from_settings([(4, 256), (8, None)], 16, train_steps=steps)

    options = {"optimizer": CONSTANT, "eval_period": 100}
    train(make_run(tmp_path / "whole", plan=phases(12), **options))
    for steps in (5, 7, 12):
        train(make_run(tmp_path / "parts", plan=phases(steps), **options))
    whole, parts = (
        [(line["tokens"], line["loss"]) for line in lines(tmp_path / name) if "loss" in line]
        for name in ("whole", "parts")
    )
    assert parts == whole
    assert [tokens for tokens, _ in whole] == [64, 128, 192, 256, *range(384, 1281, 128)]


def test_preempted_saves_and_goes_on(tmp_path, monkeypatch, no_program_cache):
    run = make_run(tmp_path / "stopped", steps=40, checkpoint_period=1000)
    whole = make_run(tmp_path / "whole", steps=40, checkpoint_period=1000)
    train(whole)
    read = BatchReader.rows
    with monkeypatch.context() as patch:
        patch.setattr(BatchReader, "rows", lambda *a: (time.sleep(0.02), read(*a))[1])

        # A signal before the loop listens would end the test run itself.
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        thread = threading.Thread(target=_repeat_until_stopped, args=(tmp_path / "stopped",))
        thread.start()
        with pytest.raises(Preempted, match="SIGTERM"):
            train(run)
        thread.join()
        signal.signal(signal.SIGTERM, before)
    kinds = [event["event"] for event in events(tmp_path / "stopped")]
    assert kinds[-2:] == ["saved", "preempted"]
    train(run)
    assert learnt(tmp_path / "stopped") == learnt(tmp_path / "whole")


def _repeat_until_stopped(model_dir: pathlib.Path) -> None:
    """SIGTERM as soon as the run has begun to step, and again until it is seen."""
    for _ in range(3000):
        path = model_dir / "events.jsonl"
        text = path.read_text() if path.exists() else ""
        if "preempted" in text:
            return
        steps = model_dir / "metrics.jsonl"
        if steps.exists() and '"loss"' in steps.read_text():
            os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.02)


def test_a_finished_run_says_so_and_does_nothing(tmp_path):
    run = make_run(tmp_path, steps=5)
    first = train(run)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = train(run)
    assert again["resumed_from"] == 5
    assert again["line"]["loss"] == first["line"]["loss"]
    assert again["evaluation"]["eval/domain/loss"] == first["evaluation"]["eval/domain/loss"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_killed_after_the_last_checkpoint_before_the_last_word(tmp_path):
    shorter = train(make_run(tmp_path, steps=3))
    run = make_run(tmp_path, steps=5)
    first = train(run)
    lines = (tmp_path / "events.jsonl").read_text().splitlines(keepends=True)
    assert '"finished"' in lines[-1]
    (tmp_path / "events.jsonl").write_text("".join(lines[:-1]))
    again = train(run)
    assert again["line"]["loss"] == first["line"]["loss"]
    assert again["seconds"]["step"] > shorter["seconds"]["step"]
    assert events(tmp_path)[-1]["event"] == "finished"
    assert events(tmp_path)[-1]["step"] == 5


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (
            {"architecture": Architecture(**{**vars(ARCHITECTURE), "layers": 3})},
            "layers: 2 there, 3",
        ),
        ({"seed": 1}, "seed: 0 there, 1"),
        ({"plan": BatchPlan.from_settings(8, 8, train_steps=10)}, "sequence_length: 16 there, 8"),
        (
            {"plan": BatchPlan.from_settings(4, 16, train_steps=10)},
            r"past phases cannot be changed\.\nBATCH_SIZE = \[\(8, 640\), \(4, None\)\] keeps them",
        ),
        (
            {"plan": BatchPlan.from_settings(8, 16, train_steps=3)},
            "after the last of .*Write TRAIN_STEPS = 5 or more, which is TRAIN_TOKENS = 640;",
        ),
    ],
)
def test_what_would_corrupt_a_run_is_refused(tmp_path, changes, named):
    train(make_run(tmp_path, steps=5))
    before = (tmp_path / "metrics.jsonl").read_bytes(), (tmp_path / "plan.json").read_bytes()
    with pytest.raises(UsageError, match=named):
        train(make_run(tmp_path, **{"steps": 10, **changes}))
    assert before == (
        (tmp_path / "metrics.jsonl").read_bytes(),
        (tmp_path / "plan.json").read_bytes(),
    )


def test_a_changed_learning_rate_is_allowed_and_told(tmp_path):
    train(make_run(tmp_path, steps=5))
    change = {"name": "Schedule.peak_learning_rate", "old": "0.01", "new": "0.001"}
    slower = AdamW(Schedule(peak_learning_rate=1e-3))
    train(make_run(tmp_path, steps=10, optimizer=slower, config_changes=[change]))
    resumed = next(event for event in events(tmp_path) if event["event"] == "resumed")
    assert resumed["config_changes"] == [change]
    assert resumed["step"] == 5
    # After 640 tokens: of a cosine over them with 256 of warm-up, then over 1,280.
    (warned,) = [event["reason"] for event in events(tmp_path) if event["event"] == "warned"]
    assert warned.startswith("learning rate at step 5 goes from 0.001 to 0.000")
    # What the refusal of another batch size says to write is accepted.
    plan = BatchPlan.from_settings([(8, 1280), (4, None)], 16, train_steps=12)
    assert train(make_run(tmp_path, plan=plan, optimizer=slower))["line"]["step"] == 12


def test_parameters_of_another_run_to_start_from(tmp_path):
    first = train(make_run(tmp_path / "first", steps=10))
    run = make_run(tmp_path / "second", steps=5, initial_checkpoint_path=str(tmp_path / "first"))
    train(run)
    at_start = lines(tmp_path / "second")[0]
    assert at_start["step"] == 0
    for key, value in first["evaluation"].items():
        assert at_start[key] == pytest.approx(value, rel=1e-6)
    other = Architecture(**{**vars(ARCHITECTURE), "d_ff": 256})
    with pytest.raises(UsageError, match="another architecture"):
        train(
            make_run(
                tmp_path / "third",
                architecture=other,
                initial_checkpoint_path=str(tmp_path / "first"),
            )
        )
    with pytest.raises(UsageError, match="no checkpoint at"):
        train(make_run(tmp_path / "fourth", initial_checkpoint_path=str(tmp_path / "nowhere")))


def test_a_loss_that_is_no_number_stops_the_run_unsaved(tmp_path):
    exploding = AdamW(Schedule(peak_learning_rate=10.0, shape="constant"), clip_norm=None, b2=0.0)
    with pytest.raises(Fault, match="lower the learning rate"):
        train(
            make_run(
                tmp_path,
                steps=200,
                optimizer=exploding,
                checkpoint_period=200,
                compute_dtype="bfloat16",
                z_loss=1e30,
            )
        )
    assert not list(tmp_path.glob("checkpoint_*"))
    assert events(tmp_path)[-1]["event"] == "warned"
