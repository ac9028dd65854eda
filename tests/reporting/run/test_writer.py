import json
import pathlib
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest

from t5x_style.errors import Fault, UsageError
from t5x_style.reporting import RunWriter, read_run
from t5x_style.reporting.run import writer as run_writer
from tests.calls import calls_of
from tests.disk import Disk


def lines(path: pathlib.Path) -> list[dict]:
    """The lines, by a strict reader: NaN is no JSON."""

    def refuse(text):
        raise AssertionError(f"{text} is no JSON")

    return [json.loads(text, parse_constant=refuse) for text in path.read_text().splitlines()]


def tensorboard_events(folder: pathlib.Path) -> list:
    """The TFRecords of every event file in a folder: length, its checksum, the event, another."""
    from tensorboardX.proto.event_pb2 import Event

    events = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            events.append(Event.FromString(content[12 : 12 + length]))
            content = content[16 + length :]
    return events


def test_lines_are_strict_json_in_order(tmp_path):
    begun = time.time()
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 16, "loss": float("nan"), "grad_norm": float("inf")})
        writer.metrics({"step": 2, "tokens": 32, "loss": np.float32(0.5), "n": np.int64(3)})
        writer.metrics({"step": 2, "tokens": 32, "eval/legal/loss": 4.5, "mfu_full": None})
    first, second, third = lines(tmp_path / "metrics.jsonl")
    assert first["loss"] is None
    assert first["grad_norm"] is None
    assert second["loss"] == 0.5
    assert second["n"] == 3
    assert third["eval/legal/loss"] == 4.5
    assert third["mfu_full"] is None
    assert begun <= third["time"] <= time.time()


@pytest.mark.parametrize("value", ["0.5", [0.5], np.ones(2)], ids=["string", "list", "array"])
def test_a_value_that_is_no_number_is_refused(tmp_path, value):
    with (
        RunWriter(tmp_path, resume_step=None) as writer,
        pytest.raises(TypeError, match="metric 'loss'"),
    ):
        writer.metrics({"step": 1, "loss": value})


def test_events(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.event("spike", step=7, tokens=112, reason="grad_norm", loss=float("inf"), of=[1, 2])
        with pytest.raises(ValueError, match="no event 'saving'"):
            writer.event("saving", step=7, tokens=112)
    (event,) = lines(tmp_path / "events.jsonl")
    del event["time"]
    assert event == {
        "event": "spike",
        "step": 7,
        "tokens": 112,
        "reason": "grad_norm",
        "loss": None,
        "of": [1, 2],
    }


def test_tensorboard_has_the_evaluations_and_the_last_line_of_each_second(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        for step in range(1, 51):
            writer.metrics({"step": step, "tokens": 16 * step, "loss": 2.0, "mfu_full": None})
        writer.metrics({"step": 25, "tokens": 400, "eval/legal/loss": 1.5})
        writer.metrics({"step": 50, "tokens": 800, "eval/legal/loss": 1.0})
    train = [event for event in tensorboard_events(tmp_path / "train") if event.summary.value]
    assert train[-1].step == 50
    assert len(train) < 10
    assert {value.tag: value.simple_value for value in train[-1].summary.value} == {
        "tokens": 800,
        "loss": 2.0,
    }
    evaluations = [event for event in tensorboard_events(tmp_path / "eval") if event.summary.value]
    assert [event.step for event in evaluations] == [25, 50]


def test_a_resumed_run_reads_as_if_never_interrupted(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    with RunWriter(whole, resume_step=None) as writer:
        for step in range(1, 21):
            writer.metrics({"step": step, "tokens": step, "loss": 1 / step})
    # Twice in a row: killed at 12 with a checkpoint at 8, and at 15 with a checkpoint at 8.
    for resume_step, last in ((None, 12), (8, 15), (8, 20)):
        with RunWriter(cut, resume_step=resume_step) as writer:
            writer.event("resumed" if resume_step else "started", step=resume_step or 0, tokens=0)
            for step in range((resume_step or 0) + 1, last + 1):
                writer.metrics({"step": step, "tokens": step, "loss": 1 / step})

    def without_time(path):
        return [{**line, "time": None} for line in lines(path / "metrics.jsonl")]

    assert without_time(cut) == without_time(whole)
    assert [event["event"] for event in lines(cut / "events.jsonl")] == [
        "started",
        "resumed",
        "resumed",
    ]
    # TensorBoard drops the points from there on.
    starts = [
        event.step for event in tensorboard_events(cut / "train") if event.HasField("session_log")
    ]
    assert starts == [9, 9]


@pytest.fixture
def killed_run(tmp_path):
    """A process saved at step 2 and was killed; an hour later another one got to step 4."""
    metrics = [(1, 1000.0), (2, 1010.0), (3, 4670.0), (4, 4690.0)]
    events = [("started", 0, 990.0), ("saved", 2, 1011.0), ("resumed", 2, 4650.0)]
    (tmp_path / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "tokens": 16 * s, "time": at}) + "\n" for s, at in metrics)
    )
    (tmp_path / "events.jsonl").write_text(
        "".join(
            json.dumps({"event": k, "step": s, "tokens": 16 * s, "time": at}) + "\n"
            for k, s, at in events
        )
    )
    return tmp_path


def test_lost_seconds_are_those_of_the_work_and_not_of_the_pause(killed_run):
    with RunWriter(killed_run, resume_step=2) as writer:
        assert writer.unbooked["lost"] == 40
    assert [line["step"] for line in lines(killed_run / "metrics.jsonl")] == [1, 2]


def test_lost_seconds_are_remembered_until_a_checkpoint_holds_them(killed_run):
    with RunWriter(killed_run, resume_step=2) as writer:
        writer.event("resumed", step=2, tokens=32)
    # Killed again before it wrote a line, or saved: they are not in the ledger of step 2.
    with RunWriter(killed_run, resume_step=2) as writer:
        # And the moments of the second start.
        assert writer.unbooked["lost"] == pytest.approx(40, abs=2)
        writer.event("resumed", step=2, tokens=32)
        writer.event("saved", step=3, tokens=48)
    # The checkpoint of step 3 was never whole.
    with RunWriter(killed_run, resume_step=2) as writer:
        # And the moments of the second start.
        assert writer.unbooked["lost"] == pytest.approx(40, abs=2)
    with RunWriter(killed_run, resume_step=3) as writer:
        assert writer.unbooked["lost"] == pytest.approx(0, abs=2)


def test_work_that_began_with_its_first_line_is_lost_from_there(killed_run):
    """The clock of both may show the same second."""
    text = (killed_run / "events.jsonl").read_text()
    (killed_run / "events.jsonl").write_text(text.replace("4650.0", "4670.0"))
    with RunWriter(killed_run, resume_step=2) as writer:
        assert writer.unbooked["lost"] == 20


def test_a_single_line_is_written_without_another(tmp_path, monkeypatch):
    monkeypatch.setattr(run_writer, "FLUSH_SECONDS", 0.01)
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 1})
        deadline = time.monotonic() + 20
        while not (written := (tmp_path / "metrics.jsonl").stat().st_size):
            if time.monotonic() > deadline:
                break
            time.sleep(0.005)
    assert written


def test_starting_from_nothing_cuts_every_line(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 0, "tokens": 0, "eval/legal/loss": 9.0})
    with RunWriter(tmp_path, resume_step=None):
        pass
    assert lines(tmp_path / "metrics.jsonl") == []


def test_lines_that_a_kill_cut_short_are_dropped(tmp_path):
    whole = '{"step": 1, "tokens": 16, "time": 5.0}\n'
    (tmp_path / "metrics.jsonl").write_text(whole + '{"step": 2, "ti')
    started = '{"event": "started", "step": 0, "tokens": 0, "time": 4.0}\n'
    (tmp_path / "events.jsonl").write_text(started + '{"event": "sa')
    with RunWriter(tmp_path, resume_step=5) as writer:
        writer.event("resumed", step=5, tokens=80)
    assert lines(tmp_path / "metrics.jsonl") == [{"step": 1, "tokens": 16, "time": 5.0}]
    assert [event["event"] for event in lines(tmp_path / "events.jsonl")] == ["started", "resumed"]


KILLED = """
import os, signal, sys, time
from t5x_style.reporting import RunWriter
writer = RunWriter(sys.argv[1], resume_step=None)
for step in range(1, 5000):
    writer.metrics({"step": step, "tokens": step, "loss": 0.5})
    if step == 3000:
        writer.flush()
        print("flushed", flush=True)
time.sleep(60)
"""


def test_flushed_lines_survive_a_kill(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "flushed\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    steps = [line["step"] for line in read_run(tmp_path).training]
    assert steps[:3000] == list(range(1, 3001))


def test_lines_are_on_disk_within_seconds_without_a_flush(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        deadline = time.monotonic() + 20
        step = 0
        # Densely enough that the queue never runs dry.
        while not (tmp_path / "metrics.jsonl").stat().st_size and time.monotonic() < deadline:
            step += 1
            writer.metrics({"step": step, "tokens": step})
            time.sleep(0.001)
        assert time.monotonic() < deadline


def test_what_was_flushed_or_closed_is_on_the_disk(tmp_path, monkeypatch):
    """A power cut loses what the kernel has only in its cache; a kill does not."""
    disk = Disk(monkeypatch)
    files = [tmp_path / "metrics.jsonl", tmp_path / "events.jsonl"]
    with RunWriter(tmp_path, resume_step=None) as writer:
        for step in (1, 2):
            writer.metrics({"step": step, "tokens": step, "eval/legal/loss": 1.0})
            writer.event("saved", step=step, tokens=step)
            writer.flush()
            assert [len(lines(file)) for file in files] == [step, step]
            assert all(map(disk.has, files))
            # A reader of TensorBoard's files sees them, too.
            seen = tensorboard_events(tmp_path / "eval")
            assert [event.step for event in seen if event.summary.value][-1:] == [step]
        writer.metrics({"step": 3, "tokens": 3})
        writer.event("finished", step=3, tokens=3)
    assert all(map(disk.has, files))
    with RunWriter(tmp_path, resume_step=1):
        assert [line["step"] for line in lines(files[0])] == [1]
        assert disk.has_name(files[0])


def test_each_training_line_is_one_point_of_tensorboard(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 1, "loss": 1.0})
        for _ in range(3):
            writer.event("saved", step=1, tokens=1)
    events = tensorboard_events(tmp_path / "train")
    assert [event.step for event in events if event.summary.value] == [1]
    # The run was not resumed, so no point is to be dropped.
    assert not any(event.HasField("session_log") for event in events)


def test_a_field_that_json_cannot_express_is_a_fault(tmp_path):
    writer = RunWriter(tmp_path, resume_step=None)
    fields = {"a": {1: (True, np.int64(2), np.float32(0.5), float("nan"))}, "b": None, "c": "x"}
    writer.event("warned", step=1, tokens=1, **fields)
    writer.flush()
    (event,) = lines(tmp_path / "events.jsonl")
    assert event["a"] == {"1": [True, 2, 0.5, None]}
    assert (event["b"], event["c"]) == (None, "x")
    writer.event("warned", step=1, tokens=1, reason=object())
    with pytest.raises(Fault, match="is no JSON value"):
        writer.close()


def test_a_directory_with_a_scheme_is_refused():
    with pytest.raises(UsageError, match="model_dir = 'gs://bucket/run': gs:// is not"):
        RunWriter("gs://bucket/run", resume_step=None)


def test_a_closed_writer_takes_no_more(tmp_path):
    writer = RunWriter(tmp_path, resume_step=None)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="closed"):
        writer.metrics({"step": 1})


def test_a_line_takes_microseconds_of_the_training_loop(tmp_path):
    line = {f"chinchilla/law_{index}/optimal_params": 1.5 * index for index in range(60)}
    with RunWriter(tmp_path, resume_step=None) as writer:
        calls = calls_of(writer.metrics, {"step": 1, "tokens": 1, **line})
    # The loop's thread queues: it encodes no line, and reads no value but by its class.
    assert "put" in calls
    assert {"dumps", "write", "flush", "fsync"}.isdisjoint(calls)
    assert len(calls) < 20


def test_the_writer_imports_no_heavy_library(tmp_path):
    program = (
        "import sys; from t5x_style.reporting import RunWriter\n"
        "with RunWriter(sys.argv[1], resume_step=None) as w: w.metrics({'step': 1, 'loss': 1.0})\n"
        "print([n for n in ('tensorflow', 'jax', 'torch', 'matplotlib') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert run.stdout == "[]\n"
