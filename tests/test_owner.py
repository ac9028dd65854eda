"""One owner of a folder: by a lock of the kernel, or by a heartbeat where there are none."""

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from t5x_style import files
from t5x_style.errors import Fault, UsageError

HOLDS = """
import pathlib, sys, time
from t5x_style import files
with files.owned(pathlib.Path(sys.argv[1]), "MODEL_DIR = runs/two"):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path) -> pathlib.Path:
    return tmp_path / "run" / files.OWNER_FILE


@pytest.fixture
def without_locks(monkeypatch):
    """A file system on which flock fails, and on which an owner beats ten times a second."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(files, "SILENT_SECONDS", 0.5)


def own(lock):
    return files.owned(lock, "MODEL_DIR = runs/two")


def test_another_process_is_refused_by_name_until_the_first_is_killed(lock):
    first = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(lock)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert first.stdout.readline() == "held\n"
        with pytest.raises(UsageError) as refused, own(lock):
            raise AssertionError("two own the folder")
        message = str(refused.value)
        assert message.startswith(
            f"MODEL_DIR = runs/two is in use by process {first.pid} on host "
            f"{socket.gethostname()}, since "
        )
        assert re.search(r"since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC: wait for its end", message)
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert lock.exists(), "a killed process removes nothing"
        with own(lock):
            assert json.loads(lock.read_text())["pid"] == os.getpid()
    finally:
        first.kill()
        first.communicate()


def test_an_end_leaves_no_lock_file_and_no_folder_that_it_made(lock):
    with own(lock):
        assert lock.exists()
    assert not lock.parent.exists()
    with own(lock):
        (lock.parent / "plan.json").write_text("{}")
    assert [file.name for file in lock.parent.iterdir()] == ["plan.json"]


def test_a_folder_that_was_there_stays(lock):
    lock.parent.mkdir()
    with own(lock):
        pass
    assert list(lock.parent.iterdir()) == []


def test_a_lock_on_a_file_that_its_owner_removed_meanwhile_is_no_lock(lock, monkeypatch):
    """The second opens the file; the first ends and removes it; then the second locks it."""
    lock.parent.mkdir()
    real, calls = fcntl.flock, []

    def late(file, how):
        if not calls:
            lock.unlink()
        calls.append(how)
        return real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with own(lock):
        assert len(calls) == 2
        assert json.loads(lock.read_text())["pid"] == os.getpid()
        with pytest.raises(UsageError, match="is in use"), own(lock):
            pass


def test_an_owner_that_has_not_written_its_name_is_still_an_owner(lock):
    lock.parent.mkdir()
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="is in use by another process: wait"), own(lock):
            pass


def test_a_lock_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(Fault, match=r"MODEL_DIR = runs/two: cannot write .*file/\.owner"),
        own(tmp_path / "file" / files.OWNER_FILE),
    ):
        pass


def test_without_locks_an_owner_that_beats_is_not_replaced(lock, without_locks, capsys):
    with own(lock):
        before = lock.stat().st_mtime_ns
        refused = pytest.raises(UsageError, match=rf"in use by process {os.getpid()} on host")
        with refused, own(lock):
            raise AssertionError("two own the folder")
        assert lock.stat().st_mtime_ns > before
    assert not lock.exists()
    assert "has no locks" in capsys.readouterr().err


def test_without_locks_a_silent_owner_is_replaced_with_a_notice(lock, without_locks, capsys):
    lock.parent.mkdir()
    lock.write_text('{"host": "gone", "pid": 7, "since": "2026-01-02 03:04:05.000001+00:00"}')
    # Its clock was wrong: the future is no sign of life.
    os.utime(lock, (time.time() + 10**6,) * 2)
    with own(lock):
        assert json.loads(lock.read_text())["host"] == socket.gethostname()
    notices = capsys.readouterr().err
    assert '"host": "gone", "pid": 7' in notices
    assert "its last owner is silent, and its place is taken" in notices


def test_without_locks_an_owner_that_ends_meanwhile_makes_place(lock, without_locks, monkeypatch):
    lock.parent.mkdir()
    lock.write_text("{}")
    monkeypatch.setattr(files.time, "sleep", lambda _: lock.unlink())
    with own(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_without_locks_an_owner_whose_place_was_taken_ends_itself(lock, without_locks, monkeypatch):
    """It was asleep for long; were it to go on, two would write."""
    ended = []
    monkeypatch.setattr(files.os, "_exit", ended.append)
    with own(lock):
        other = {"host": "b", "pid": 9, "since": "2026-01-02 03:04:05.000001+00:00"}
        lock.write_text(json.dumps(other))
        deadline = time.monotonic() + 20
        while not ended and time.monotonic() < deadline:
            time.sleep(0.01)
    assert set(ended) == {1}
    assert json.loads(lock.read_text()) == other, "it is the other's now"


def wait_for(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_lock_that_is_removed_with_its_folder_is_taken_again(lock, monkeypatch):
    """Else a second start would train in a folder that the first run has made again."""
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.02)
    with own(lock):
        shutil.rmtree(lock.parent)
        time.sleep(0.1)
        assert not lock.parent.exists(), "the run makes its folder again, and not the lock"
        lock.parent.mkdir()
        wait_for(lambda: lock.exists() and lock.read_text())
        with pytest.raises(UsageError, match=f"in use by process {os.getpid()}"), own(lock):
            raise AssertionError("two own the folder")
    assert not lock.exists()


def test_a_lock_that_another_process_took_after_its_removal_ends_the_first(lock, monkeypatch):
    monkeypatch.setattr(files, "BEAT_SECONDS", 0.02)
    ended = []
    monkeypatch.setattr(files.os, "_exit", ended.append)
    with own(lock):
        partial = lock.with_name("other")
        with open(partial, "w") as other:
            other.write('{"host": "b", "pid": 9, "since": "2026-01-02 03:04:05.000001+00:00"}')
            other.flush()
            fcntl.flock(other, fcntl.LOCK_EX)
            os.replace(partial, lock)
            wait_for(lambda: ended)
    assert set(ended) == {1}
    assert json.loads(lock.read_text())["host"] == "b", "it is the other's now"


def test_without_locks_a_file_that_is_removed_is_written_again(lock, without_locks):
    with own(lock):
        lock.unlink()
        wait_for(lock.exists)
        assert json.loads(lock.read_text())["pid"] == os.getpid()
