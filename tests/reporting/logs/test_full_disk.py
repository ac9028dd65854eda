"""A disk that does not take the lines of a run, and files that vanish under it.

The limit on a file's size is the kernel's own: a write beyond it is taken in part, then refused.
"""

import contextlib
import errno
import json
import os
import pathlib
import resource
import time

import pytest

from t5x_style.errors import Fault
from t5x_style.reporting import RunWriter
from t5x_style.reporting.logs.log_file import LogFile
from t5x_style.reporting.run import writer as run_writer
from tests.model_dir import events, lines, remove


@contextlib.contextmanager
def files_of_at_most(size: int):
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def steps(folder: pathlib.Path) -> list[int]:
    return [line["step"] for line in lines(folder)]


def reasons(folder: pathlib.Path, kind: str) -> list[str]:
    return [event["reason"] for event in events(folder, kind)]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(run_writer, "FLUSH_SECONDS", 0.01)


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_lines_wait_while_the_disk_takes_none_and_are_written_later_in_order(tmp_path, capsys):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 16})
        writer.flush()
        size = (tmp_path / "metrics.jsonl").stat().st_size
        # Half of a line fits.
        with files_of_at_most(size + 20):
            for step in (2, 3, 4):
                writer.metrics({"step": step, "tokens": 16 * step})
                writer.flush()
            assert (tmp_path / "metrics.jsonl").stat().st_size == size + 20
        writer.metrics({"step": 5, "tokens": 80})
    assert steps(tmp_path) == [1, 2, 3, 4, 5]
    again, _ = reasons(tmp_path, "logs_rewritten")
    assert "metrics.jsonl can be written again" in again
    assert os.strerror(errno.EFBIG) in again
    assert "0 were dropped" in again
    # Once, however often it was tried.
    console = capsys.readouterr().err
    assert console.count("metrics.jsonl cannot be written (File too large)") == 1


def test_what_a_save_finds_in_memory_goes_into_the_checkpoint_and_back(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.event("started", step=0, tokens=0)
        writer.metrics({"step": 1, "tokens": 16})
        assert writer.flush() == {}
        size = (tmp_path / "metrics.jsonl").stat().st_size
        with files_of_at_most(size):
            for step in (2, 3):
                writer.metrics({"step": step, "tokens": 16 * step, "loss": step / 3})
            kept = json.loads(json.dumps(writer.flush()))
            assert [json.loads(line)["step"] for line in kept["metrics.jsonl"]] == [2, 3]
            # A kill here: the files are as they are now.
            content = {file: file.read_bytes() for file in tmp_path.glob("*.jsonl")}
    killed = tmp_path / "killed"
    killed.mkdir()
    for file, left in content.items():
        (killed / file.name).write_bytes(left)
    for folder in (killed, tmp_path):
        # In the second folder the lines were written after the save.
        with RunWriter(folder, resume_step=3, last_line_step=3, unwritten=kept) as writer:
            writer.event("resumed", step=3, tokens=48)
            writer.metrics({"step": 4, "tokens": 64})
        assert steps(folder) == [1, 2, 3, 4]
        assert lines(folder)[2]["loss"] == 1.0
        assert not any("missing" in reason for reason in reasons(folder, "logs_broken"))


def test_a_run_that_ends_on_a_full_disk_says_what_is_missing_and_where(tmp_path):
    writer = RunWriter(tmp_path, resume_step=None)
    with files_of_at_most(0):
        writer.metrics({"step": 1, "tokens": 16})
        writer.metrics({"step": 2, "tokens": 32})
        with pytest.raises(Fault, match=r"2 lines of .*/metrics\.jsonl \(File too large\)"):
            writer.close()


def test_the_error_that_ends_a_run_is_not_hidden_by_its_log(tmp_path, capsys):

    def interrupted():
        with files_of_at_most(0), RunWriter(tmp_path, resume_step=None) as writer:
            writer.metrics({"step": 1, "tokens": 16})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "1 lines of" in capsys.readouterr().err


def test_lines_beyond_the_bound_are_dropped_oldest_first_and_counted(tmp_path, monkeypatch):
    from t5x_style.reporting.logs import log_file

    monkeypatch.setattr(log_file, "MOST_WAITING_BYTES", 600)
    with RunWriter(tmp_path, resume_step=None) as writer:
        with files_of_at_most(0):
            for step in range(1, 101):
                writer.metrics({"step": step, "tokens": step})
                if step == 1:
                    writer.flush()
            assert 5 < len(writer.flush()["metrics.jsonl"]) < 20
        writer.metrics({"step": 101, "tokens": 101})
    written = steps(tmp_path)
    # The first may have been in the file in part.
    assert written[0] == 1
    assert written[1:] == list(range(written[1], 102))
    again, _ = reasons(tmp_path, "logs_rewritten")
    assert f"{101 - len(written)} were dropped" in again


def test_lines_that_the_disk_lost_after_it_took_them_are_written_again(tmp_path, monkeypatch):
    """The kernel reports a failed write-back once, at the next fsync, and forgets the bytes."""
    fsync, failing = os.fsync, []

    def fails(descriptor):
        if failing and os.readlink(f"/proc/self/fd/{descriptor}").endswith("metrics.jsonl"):
            # What the kernel had in its cache reads as zeros afterwards.
            size = os.fstat(descriptor).st_size
            os.ftruncate(descriptor, failing.pop())
            os.ftruncate(descriptor, size)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fails)
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 16})
        writer.flush()
        failing.append((tmp_path / "metrics.jsonl").stat().st_size)
        writer.metrics({"step": 2, "tokens": 32})
        writer.flush()
        writer.metrics({"step": 3, "tokens": 48})
    assert steps(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("name", ["metrics.jsonl", "events.jsonl"])
def test_a_file_that_is_removed_is_made_again_with_all_of_its_lines(tmp_path, name):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.event("started", step=0, tokens=0)
        writer.metrics({"step": 1, "tokens": 16})
        writer.flush()
        (tmp_path / name).unlink()
        wait_for((tmp_path / name).exists)
        writer.metrics({"step": 2, "tokens": 32})
    assert steps(tmp_path) == [1, 2]
    assert [event["event"] for event in events(tmp_path)] == [
        "started",
        "logs_rewritten",
    ]
    (reason,) = reasons(tmp_path, "logs_rewritten")
    assert reason == f"{name} was removed while the run was writing it, and is made again"


def test_a_file_that_a_network_forgets_keeps_what_was_not_synced(tmp_path, monkeypatch):
    """Once its name is removed, a file of NFS cannot be read through an open descriptor."""
    path = tmp_path / "metrics.jsonl"
    file = LogFile(path)
    for text, synced in (("one", True), ("two", False)):
        file.append(text)
        file.write(synced=synced)
    path.unlink()

    def stale(*_):
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "pread", stale)
    (news,) = file.write(synced=True)
    file.close()
    assert news.kind == "logs_broken"
    assert news.reason.endswith("is made again without its first 4 bytes")
    assert path.read_text() == "two\n"


def test_another_file_in_the_place_of_a_log_is_moved_aside(tmp_path):
    """An editor writes a new file and renames it."""
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 16})
        writer.flush()
        (tmp_path / "edited").write_text("mine\n")
        (tmp_path / "edited").rename(tmp_path / "metrics.jsonl")
        writer.metrics({"step": 2, "tokens": 32})
    assert steps(tmp_path) == [1, 2]
    assert (tmp_path / "metrics.jsonl.replaced").read_text() == "mine\n"


def test_a_file_that_is_cut_while_it_is_written_is_told(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        for step in (1, 2, 3):
            writer.metrics({"step": step, "tokens": step})
            writer.flush()
        whole = (tmp_path / "metrics.jsonl").read_bytes()
        # In the middle of the second line.
        os.truncate(tmp_path / "metrics.jsonl", len(whole) // 2)
        writer.metrics({"step": 4, "tokens": 4})
    assert steps(tmp_path) == [1, 4]
    (reason,) = reasons(tmp_path, "logs_broken")
    lost = len(whole) - len(whole.splitlines(keepends=True)[0])
    assert f"its last {lost} bytes are lost" in reason


def test_a_folder_that_is_removed_is_made_again_with_what_belongs_there(tmp_path, capsys):
    folder = tmp_path / "runs" / "first"

    def write_missing() -> list[str]:
        if (folder / "plan.json").exists():
            return []
        (folder / "plan.json").write_text("{}")
        return ["plan.json"]

    folder.mkdir(parents=True)
    write_missing()
    with RunWriter(folder, resume_step=None, write_missing_files=write_missing) as writer:
        writer.event("started", step=0, tokens=0)
        writer.metrics({"step": 1, "tokens": 16, "eval/legal/loss": 1.0})
        writer.flush()
        remove(tmp_path / "runs")
        wait_for((folder / "events.jsonl").exists)
        writer.metrics({"step": 2, "tokens": 32, "eval/legal/loss": 0.5})
    assert steps(folder) == [1, 2]
    assert (folder / "plan.json").read_text() == "{}"
    assert events(folder)[0]["event"] == "started"
    assert any("Checkpoints" in reason for reason in reasons(folder, "logs_rewritten"))
    assert "runs/first was removed while the run was writing there" in capsys.readouterr().err
    # TensorBoard has the lines from there on.
    assert list((folder / "eval").iterdir())


def test_a_folder_that_cannot_be_made_again_is_tried_until_it_can(tmp_path):
    """Its place is taken by a file for a while, as where a file system is not mounted."""
    folder = tmp_path / "run"
    with RunWriter(folder, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 16})
        writer.flush()
        remove(folder)
        folder.write_text("")
        writer.metrics({"step": 2, "tokens": 32})
        assert [json.loads(line)["step"] for line in writer.flush()["metrics.jsonl"]] == [2]
        folder.unlink()
        writer.metrics({"step": 3, "tokens": 48})
    assert steps(folder) == [1, 2, 3]


def test_a_tensorboard_file_that_cannot_be_written_stops_no_run(tmp_path, capsys):
    # The folder's name is taken by a file.
    (tmp_path / "eval").write_text("")
    with RunWriter(tmp_path, resume_step=None) as writer:
        for step in (1, 2):
            writer.metrics({"step": step, "tokens": step, "eval/legal/loss": 1.0})
            writer.flush()
        (tmp_path / "eval").unlink()
        writer.metrics({"step": 3, "tokens": 3, "eval/legal/loss": 1.0})
    assert steps(tmp_path) == [1, 2, 3]
    assert capsys.readouterr().err.count("miss points") == 1
    assert list((tmp_path / "eval").iterdir())
