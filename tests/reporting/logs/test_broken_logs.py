"""Logs that a disk, an editor or a mistake has damaged between two starts of a run."""

import errno
import io
import json
import os
import pathlib
import re

import pytest

from t5x_style.reporting import RunWriter, read_run
from t5x_style.reporting.logs import log_lines
from tests.model_dir import events, lines


def line(step: int, **fields) -> str:
    return json.dumps({"step": step, "tokens": 16 * step, "time": 1000.0 + step, **fields}) + "\n"


def event(kind: str, step: int) -> str:
    return line(step, event=kind)


def steps(folder: pathlib.Path) -> list[int]:
    return [line["step"] for line in lines(folder)]


def resume(folder: pathlib.Path, step: int, **options) -> list[str]:
    """The reasons of the events that a start wrote about the logs."""
    with RunWriter(folder, resume_step=step, **options) as writer:
        writer.event("resumed", step=step, tokens=16 * step)
    found = events(folder)
    begun = [place for place, e in enumerate(found) if e["event"] == "resumed"][-1]
    assert {e["event"] for e in found[begun + 1 :]} <= {"logs_broken"}
    return [e["reason"] for e in found[begun + 1 :]]


BROKEN_METRICS = {
    "no JSON": '{"step": \n',
    "no object": "3\n",
    "bytes of another file": "\x00\x01\x02\n",
    "no step": '{"tokens": 32, "time": 1002.0, "loss": 1.0}\n',
    "a step that is no number": '{"step": "2", "tokens": 32, "time": 1002.0}\n',
    "no time": '{"step": 2, "tokens": 32}\n',
    "nested too deeply": "[" * 100_000 + "\n",
}


@pytest.mark.parametrize("broken", BROKEN_METRICS.values(), ids=BROKEN_METRICS)
def test_a_broken_line_is_moved_aside_and_told_and_the_run_starts(tmp_path, broken, capsys):
    (tmp_path / "metrics.jsonl").write_text(line(1) + broken + line(3))
    reasons = resume(tmp_path, 3)
    assert reasons == ["metrics.jsonl: line 2 cannot be read; moved to metrics.jsonl.broken"]
    assert steps(tmp_path) == [1, 3]
    assert (tmp_path / "metrics.jsonl.broken").read_text() == broken
    assert reasons[0] in capsys.readouterr().err


def test_a_file_that_cannot_be_read_to_its_end_is_moved_aside_but_for_the_lines_before(
    tmp_path, monkeypatch
):
    """A bad block: the disk gives the first lines and then an error."""
    path = tmp_path / "metrics.jsonl"
    whole = line(1) + line(2) + line(3)
    path.write_text(whole)

    class BadDisk(io.FileIO):
        def readinto(self, buffer):
            if self.tell() >= len(line(1) + line(2)):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().readinto(memoryview(buffer)[: len(line(1) + line(2)) - self.tell()])

    def opened(name, mode="r", *more, **options):
        if str(name).startswith(str(path)) and mode == "rb":
            return io.BufferedReader(BadDisk(name))
        return open(name, mode, *more, **options)

    monkeypatch.setattr(log_lines, "open", opened, raising=False)
    assert read_run(tmp_path).faults == [
        "metrics.jsonl: it cannot be read after 2 lines (Input/output error)"
    ]
    (reason,) = resume(tmp_path, 2)
    assert reason == (
        "metrics.jsonl: it cannot be read after 2 lines (Input/output error); moved to "
        "metrics.jsonl.broken"
    )
    assert steps(tmp_path) == [1, 2]
    assert (tmp_path / "metrics.jsonl.broken").read_text() == whole


def test_a_folder_of_the_name_of_a_log_is_moved_aside(tmp_path):
    (tmp_path / "events.jsonl").mkdir()
    (reason,) = resume(tmp_path, 1)
    assert "events.jsonl: it cannot be read after 0 lines (Is a directory)" in reason
    assert (tmp_path / "events.jsonl.broken").is_dir()


def test_a_file_that_is_no_utf8_is_mended(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line(1).encode() + b"\xff\xfe\xff\n" + b"\xff")
    assert len(resume(tmp_path, 1)) == 1
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "broken", ["garbage\n", line(2), line(2, event=3), '{"event": "saved"}\n'],
    ids=["no JSON", "no event", "an event that is no name", "an event of no step"],
)  # fmt: skip
def test_a_broken_event_is_moved_aside_and_told(tmp_path, broken):
    (tmp_path / "metrics.jsonl").write_text(line(1))
    (tmp_path / "events.jsonl").write_text(event("started", 0) + broken + event("saved", 1))
    (reason,) = resume(tmp_path, 1)
    assert reason == "events.jsonl: line 2 cannot be read; moved to events.jsonl.broken"
    kinds = [event["event"] for event in events(tmp_path)]
    assert kinds == ["started", "saved", "resumed", "logs_broken"]


def test_what_was_moved_aside_is_never_overwritten(tmp_path):
    for number in (1, 2, 3):
        (tmp_path / "metrics.jsonl").write_text(line(1) + f"garbage {number}\n")
        resume(tmp_path, 1)
    aside = sorted(tmp_path.glob("metrics.jsonl.*"))
    assert [file.read_text() for file in aside] == [f"garbage {n}\n" for n in (1, 2, 3)]
    assert [file.name for file in aside][1:] == ["metrics.jsonl.broken.2", "metrics.jsonl.broken.3"]


def test_a_log_that_was_appended_to_itself_has_each_step_once(tmp_path):
    """Also the evaluation lines, and a copy that goes on after the first."""
    first = [line(1), line(2), line(2, **{"eval/a/loss": 1.0}), line(3)]
    (tmp_path / "metrics.jsonl").write_text("".join([*first, *first, line(4)]))
    run = read_run(tmp_path)
    assert [found["step"] for found in run.training] == [1, 2, 3, 4]
    assert [found["step"] for found in run.evaluations] == [2]
    assert run.faults == [
        "metrics.jsonl: lines 1, 2, 3 and 1 more gave way to later lines of the same steps"
    ]
    assert len(resume(tmp_path, 4)) == 1
    assert steps(tmp_path) == [1, 2, 2, 3, 4]


@pytest.mark.parametrize(
    ("kept", "last_line_step", "told"),
    [
        ((10, 20, 50, 60), 60, "steps 21 to 40"),
        ((10, 20, 30), 60, "steps 31 to 60"),
        ((20, 30), 30, "steps 1 to 10"),
        ((10, 40, 60), 60, "steps 11 to 30, 41 to 50"),
        ((), 60, "steps 1 to 60"),
        ((10, 20, 30, 40, 50, 60), 60, None),
        # The checkpoint lies between two lines.
        ((10, 20), 20, None),
        # A checkpoint of an older version does not say which line was the last.
        ((10, 20), None, None),
    ],
)
def test_a_hole_in_the_lines_is_told_at_a_start(tmp_path, kept, last_line_step, told):
    text = "".join(line(step, loss_steps=10) for step in kept)
    (tmp_path / "metrics.jsonl").write_text(text)
    reasons = resume(tmp_path, 65, last_line_step=last_line_step)
    expected = [] if told is None else [f"metrics.jsonl: the lines about {told} are missing"]
    assert reasons == expected
    # It stays, and is told once in events.jsonl.
    assert resume(tmp_path, 65, last_line_step=last_line_step) == []


def test_a_hole_after_the_step_of_the_start_is_none(tmp_path):
    text = "".join(line(step, loss_steps=10) for step in (10, 20, 50))
    (tmp_path / "metrics.jsonl").write_text(text)
    assert resume(tmp_path, 25, last_line_step=20) == []
    assert steps(tmp_path) == [10, 20]


def test_a_last_line_without_its_newline_is_kept(tmp_path):
    """An editor may take the newline away."""
    (tmp_path / "metrics.jsonl").write_text(line(1) + line(2).rstrip("\n"))
    assert resume(tmp_path, 2) == []
    with RunWriter(tmp_path, resume_step=2) as writer:
        writer.metrics({"step": 3, "tokens": 48})
    assert steps(tmp_path) == [1, 2, 3]


def test_a_report_reads_around_what_is_broken_and_says_so(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line(1) + "garbage\n" + line(3))
    (tmp_path / "events.jsonl").write_text(event("started", 0) + line(2) + event("saved", 3))
    run = read_run(tmp_path)
    assert [found["step"] for found in run.training] == [1, 3]
    assert [found.kind for found in run.events] == ["started", "saved"]
    assert run.faults == [
        "metrics.jsonl: line 2 cannot be read",
        "events.jsonl: line 2 cannot be read",
    ]
    # A reader changes nothing.
    assert not list(tmp_path.glob("*.broken"))


def test_a_cut_of_the_last_steps_leaves_the_rest_of_the_file_as_it_is(tmp_path):
    """Nothing is encoded again, so a long file costs one reading."""
    odd = '{"time": 1001.0,  "step": 1, "tokens": 16.0, "loss": 1e-3}\n'
    (tmp_path / "metrics.jsonl").write_text(odd + line(2) + line(3))
    inode = (tmp_path / "metrics.jsonl").stat().st_ino
    resume(tmp_path, 2)
    assert (tmp_path / "metrics.jsonl").read_text() == odd + line(2)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == inode


def test_a_link_to_a_log_on_another_disk_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").write_text(line(1) + line(2))
    os.symlink(tmp_path / "elsewhere", tmp_path / "metrics.jsonl")
    with RunWriter(tmp_path, resume_step=1) as writer:
        writer.metrics({"step": 2, "tokens": 32, "loss": 0.5})
    assert (tmp_path / "metrics.jsonl").is_symlink()
    assert re.findall(r'"loss": 0.5', (tmp_path / "elsewhere").read_text())
