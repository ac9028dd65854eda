"""What the builder says while it builds, read off the files of the parts."""

import pathlib
import threading

import pytest

from t5x_style.data.building.parts import Job
from t5x_style.data.building.progress import Progress, _duration
from t5x_style.data.formats.format import Part


def job(folder, number, size):
    return Job("", "a", "train", str(folder), number, Part("a", 0, None, size))


def lay_down(job, ids):
    job.file("tokens").write_bytes(bytes(2 * ids))
    job.file("json").write_text("{}")


def test_counts_what_is_whole_what_is_growing_and_nothing_else(tmp_path):
    jobs = [job(tmp_path, number, 10_000_000) for number in range(4)]
    progress = Progress(jobs, 2)
    assert progress.line().startswith("building:   0% of 40 MB, 0 tokens, 0.00 M tokens/s")
    assert "left" not in progress.line()
    # Of an earlier start, and no part of this work.
    lay_down(job(tmp_path, 9, 0), 777)
    lay_down(jobs[0], 1000)
    pathlib.Path(tmp_path, ".unfinished.tokens").write_bytes(bytes(2 * 50))
    progress.begun -= 60
    progress.look()
    line = progress.line()
    assert line.startswith("building:  25% of 40 MB, 1,050 tokens, ")
    assert line.endswith(", 0 h 03 min left")


def test_parts_of_a_store_that_is_in_place_still_count(tmp_path):
    folder = tmp_path / "store"
    folder.mkdir()
    jobs = [job(folder, number, 10) for number in range(2)]
    progress = Progress(jobs, 2)
    for work in jobs:
        lay_down(work, 5)
    progress.look()
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    progress.look()
    assert progress.line().startswith("building: 100% of 0 MB, 10 tokens")


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0 s"), (99.4, "99 s"), (100, "0 h 02 min"), (3570, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_a_duration_is_read_at_a_glance(seconds, written):
    assert _duration(seconds) == written


@pytest.mark.parametrize(("terminal", "end", "wait"), [(True, "\r", 1), (False, "\n", 10)])
def test_a_line_is_written_as_long_as_there_is_work(tmp_path, capsys, terminal, end, wait):
    """Each second over the last one on a terminal, every ten seconds below it in a file."""
    progress = Progress([job(tmp_path, 0, 10)], 2)
    progress.terminal = terminal
    asked = []

    class Closed(threading.Event):
        def wait(self, timeout):
            asked.append(timeout)
            if len(asked) == 2:
                lay_down(job(tmp_path, 0, 10), 5)
            if len(asked) == 3:
                super().wait(60)
            return self.is_set()

    progress.closed = Closed()
    with progress:
        while len(asked) < 3:
            assert progress.thread.is_alive()
    assert not progress.thread.is_alive()
    assert asked == [wait] * 3
    first, second, nothing = capsys.readouterr().err.split(end)
    assert first.startswith("building:   0% of 0 MB, 0 tokens")
    assert second.startswith("building: 100% of 0 MB, 5 tokens")
    assert nothing == ""


def test_nothing_to_do_starts_no_thread(tmp_path):
    with Progress([], 2) as progress:
        assert not progress.thread.is_alive()
    assert progress.line().startswith("building:   0% of 0 MB, 0 tokens")


def test_a_store_that_is_in_place_hides_no_other(tmp_path):
    """Of two folders, the first is gone. What grows is counted anew at each look."""
    (tmp_path / "b").mkdir()
    progress = Progress([job(tmp_path / "a", 0, 10), job(tmp_path / "b", 0, 30)], 1)
    assert ", 0 tokens, " in progress.line()
    lay_down(job(tmp_path / "b", 0, 30), 5)
    (tmp_path / "b" / ".unfinished.tokens").write_bytes(bytes(3))
    for _ in range(2):
        progress.look()
        assert progress.line().startswith("building:  75% of 0 MB, 13 tokens, ")
