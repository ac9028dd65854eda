"""Trials as child processes: together, failing, killed, started again."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from t5x_style.errors import Fault, UsageError
from t5x_style.files import OWNER_FILE, owned
from t5x_style.sweeps import SweepRecord, TrialEntry, grid_trials, read_sweep, run_trials, trials
from tests.disk import Disk

STUB = (sys.executable, str(Path(__file__).with_name("stub_train.py")))
GRID = {"LEARNING_RATE": [1.0, 2.0, 4.0], "Model.width": [1, 2]}


def sweep(folder, *, grid=None, arguments=("--gin.STEPS=3",), concurrent=1, identity="a"):
    return run_trials(
        grid_trials(grid or GRID),
        folder,
        arguments=list(arguments),
        identity=identity,
        concurrent_trials=concurrent,
        program=STUB,
    )


def starts(folder: Path) -> dict[str, int]:
    return {path.parent.name: len(path.read_text().split()) for path in folder.glob("*/starts")}


def without_seconds(entries):
    return [dataclasses.replace(entry, seconds=None) for entry in entries]


def test_each_trial_is_a_run_directory_with_a_log(tmp_path, capsys):
    entries = sweep(tmp_path)
    assert [entry.status for entry in entries] == ["finished"] * 6
    assert entries[5].values == {"LEARNING_RATE": 4.0, "Model.width": 2}
    assert entries[5].result["train_loss"] == 1 / (4 * 2 * 3)
    assert entries[5].result["train_loss_steps"] == 2
    assert entries[5].result["tokens"] == 30
    assert entries[5].result["compute_efficiency"] == 0.25
    assert (tmp_path / "LEARNING_RATE=4.0,width=2.log").read_text() == "done\n"
    assert json.loads((tmp_path / "sweep.json").read_text()) == {
        "arguments": ["--gin.STEPS=3"],
        "identity": "a",
        "trials": [entry.to_json() for entry in entries],
    }
    assert list(entries[0].to_json()) == [
        "name", "values", "status", "reason", "seconds", "result",
    ]  # fmt: skip
    assert read_sweep(tmp_path).trials == entries
    output = capsys.readouterr().out
    last = next(line for line in output.splitlines() if line.startswith("[6/6]"))
    assert last.startswith("[6/6] LEARNING_RATE=4.0,width=2: finished")
    assert last.endswith(" s, loss 0.0417, mean of the last 2 steps")


def test_a_failed_trial_is_reported_and_the_others_go_on(tmp_path, capsys):
    entries = sweep(tmp_path, arguments=["--gin.FAIL=2"])
    assert [entry.status for entry in entries] == ["finished", "failed"] * 3
    assert entries[1].reason == "ZeroDivisionError: width (status 1)"
    assert "width=2: failed after" in capsys.readouterr().out


def test_finished_trials_stay_and_failed_ones_are_tried_again(tmp_path):
    sweep(tmp_path, arguments=["--gin.FAIL=2"])
    sweep(tmp_path, arguments=["--gin.FAIL=2"])
    assert set(starts(tmp_path).values()) == {1, 2}
    assert starts(tmp_path)["LEARNING_RATE=1.0,width=1"] == 1


def test_a_grid_may_grow(tmp_path):
    sweep(tmp_path, grid={"LEARNING_RATE": [1.0]})
    entries = sweep(tmp_path, grid={"LEARNING_RATE": [1.0, 8.0]})
    assert [entry.status for entry in entries] == ["finished", "finished"]
    assert starts(tmp_path) == {"LEARNING_RATE=1.0": 1, "LEARNING_RATE=8.0": 1}


def test_trials_of_another_configuration_are_not_mixed_in(tmp_path):
    sweep(tmp_path, grid={"LEARNING_RATE": [1.0]})
    with pytest.raises(UsageError, match="1 finished trials of other run files or bindings"):
        sweep(tmp_path, grid={"LEARNING_RATE": [1.0]}, identity="b")
    with pytest.raises(UsageError, match="take another sweep_dir"):
        sweep(tmp_path, grid={"LEARNING_RATE": [1.0]}, arguments=["--gin.STEPS=4"])


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"arguments": [], "trials": []}', '{"trials": 3}']
)
def test_a_file_that_is_no_record_of_a_sweep(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(Fault, match=r"sweep\.json: not the record of a sweep"):
        sweep(tmp_path, grid={"LEARNING_RATE": [1.0]})


def test_a_trial_that_refuses_its_configuration_is_a_failed_one(tmp_path):
    entries = sweep(tmp_path, grid={"LEARNING_RAET": [1.0]})
    assert entries[0].status == "failed"
    assert "nothing uses a macro LEARNING_RAET (its configuration is refused)" in entries[0].reason


def test_trials_run_side_by_side(tmp_path):
    """None of them ends before all six have started."""
    entries = sweep(tmp_path, arguments=["--gin.STEPS=1", "--gin.TOGETHER=6"], concurrent=6)
    assert [entry.status for entry in entries] == ["finished"] * 6


@pytest.fixture
def written(monkeypatch):
    """The statuses of all trials, each time that sweep.json is written."""
    statuses = []
    write = SweepRecord.write

    def remember(record, folder):
        write(record, folder)
        statuses.append([entry.status for entry in record.trials])

    monkeypatch.setattr(SweepRecord, "write", remember)
    return statuses


def test_every_start_and_every_end_is_recorded(tmp_path, written):
    sweep(tmp_path, grid={"LEARNING_RATE": [1.0, 2.0]})
    assert written == [
        ["waiting", "waiting"],
        ["running", "waiting"],
        ["finished", "waiting"],
        ["finished", "running"],
        ["finished", "finished"],
        ["finished", "finished"],
    ]


def test_no_more_trials_run_at_a_time_than_asked_for(tmp_path, written):
    sweep(tmp_path, arguments=["--gin.STEPS=1", "--gin.TOGETHER=2"], concurrent=2)
    assert max(statuses.count("running") for statuses in written) == 2


def test_the_record_of_a_sweep_is_on_the_disk_whenever_it_is_written(tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    entry = TrialEntry("a", {"X": 1})
    for status in ("running", "finished"):
        entry.status = status
        SweepRecord([], "a", [entry]).write(tmp_path)
        assert disk.has_name(tmp_path / "sweep.json")
    assert read_sweep(tmp_path).trials == [entry]


@pytest.mark.parametrize(
    ("returned", "status", "reason"),
    [
        (0, "finished", None),
        (143, "preempted", None),
        (75, "preempted", "the last words (status 75)"),
        # It died of SIGTERM before it could handle it.
        (-15, "preempted", None),
        (-9, "failed", "the last words (status -9)"),
        (1, "failed", "the last words (status 1)"),
        (2, "failed", "the last words (its configuration is refused)"),
    ],
)
def test_how_a_trial_ended(tmp_path, returned, status, reason):
    (tmp_path / "a.log").write_text("first\n the last words\n\n")
    entry = TrialEntry("a", {}, "running", reason="of an earlier start")
    process = types.SimpleNamespace(returncode=returned)
    log = (tmp_path / "open.log").open("w")
    trials._close(trials._Running(entry, process, log, time.monotonic() - 5), tmp_path)
    assert (entry.status, entry.reason) == (status, reason)
    assert log.closed
    assert entry.seconds >= 5


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("", "status 1"),
        ("error: one\nerror: two\nlater words\n", "two (status 1)"),
        ("words\n", "words (status 1)"),
    ],
)
def test_the_cause_of_a_failure_is_its_last_error_or_its_last_line(tmp_path, log, cause):
    (tmp_path / "a.log").write_text(log)
    assert trials._cause(tmp_path / "a.log", 1) == cause


CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.sweeps.test_trials import sweep
from t5x_style.commands.main import main
from t5x_style.errors import Preempted
try:
    sweep(Path({folder!r}), arguments={arguments!r}, concurrent={concurrent})
except Preempted as error:
    sys.exit(143)
except KeyboardInterrupt:
    sys.exit(130)
"""


def start_sweep(folder: Path, *, concurrent=1, arguments=("--gin.STEPS=4", "--gin.SECONDS=0.15")):
    root = str(Path(__file__).resolve().parents[2])
    code = CHILD.format(
        root=root, folder=str(folder), arguments=list(arguments), concurrent=concurrent
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)


def wait_for(what, seconds: float = 20.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def pids(folder: Path) -> list[int]:
    return [int(pid) for path in folder.glob("*/starts") for pid in path.read_text().split()]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_killed_and_started_again_gives_the_table_of_an_uninterrupted_sweep(tmp_path):
    arguments = ["--gin.STEPS=4", "--gin.SECONDS=0.15"]
    for kills in range(2):
        process = start_sweep(tmp_path / "killed", concurrent=2)
        started = 3 + kills
        wait_for(lambda enough=started: len(pids(tmp_path / "killed")) >= enough)
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(is_running, pids(tmp_path / "killed"))))
    entries = sweep(tmp_path / "killed", arguments=arguments)
    whole = sweep(tmp_path / "whole", arguments=["--gin.STEPS=4", "--gin.SECONDS=0.0"])
    assert without_seconds(entries) == without_seconds(whole)
    for trial in whole:
        lines = (tmp_path / "killed" / trial.name / "metrics.jsonl").read_text()
        assert lines == (tmp_path / "whole" / trial.name / "metrics.jsonl").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal")
def test_the_trials_of_a_killed_sweep_die_with_it(tmp_path):
    """They would last ten minutes, and nobody is left to end them."""
    arguments = ["--gin.STEPS=1", "--gin.SECONDS=600.0"]
    process = start_sweep(tmp_path, concurrent=2, arguments=arguments)
    try:
        wait_for(lambda: len(pids(tmp_path)) == 2)
        process.kill()
        process.wait()
        wait_for(lambda: not any(map(is_running, pids(tmp_path))))
    finally:
        for pid in filter(is_running, pids(tmp_path)):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_stop_is_passed_on_so_that_trials_save(tmp_path, number, status):
    process = start_sweep(tmp_path, concurrent=2)
    wait_for(lambda: len(pids(tmp_path)) == 2)
    time.sleep(0.3)  # until the stub listens for the signal
    process.send_signal(number)
    assert process.wait(10) == status
    assert not any(map(is_running, pids(tmp_path)))
    trials = read_sweep(tmp_path).trials
    assert [trial.status for trial in trials] == ["preempted"] * 2 + ["waiting"] * 4


def test_a_trial_that_does_not_leave_is_ended(tmp_path, monkeypatch):
    import t5x_style.sweeps.trials as module

    monkeypatch.setattr(module, "GRACE_SECONDS", 0.3)
    folder = tmp_path / "LEARNING_RATE=1.0"

    interrupted = []

    def interrupt(seconds, sleep=time.sleep):
        sleep(seconds)
        if (folder / "metrics.jsonl").exists() and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupt)
    arguments = ["--gin.STUBBORN=1", "--gin.STEPS=1000", "--gin.SECONDS=0.05"]
    with pytest.raises(KeyboardInterrupt):
        sweep(tmp_path, grid={"LEARNING_RATE": [1.0]}, arguments=arguments)
    assert not any(map(is_running, pids(tmp_path)))


def test_two_sweeps_do_not_share_a_directory(tmp_path):
    process = start_sweep(tmp_path)
    wait_for(lambda: pids(tmp_path))
    try:
        in_use = rf"--sweep_dir = {tmp_path} is in use by process {process.pid} on host "
        with pytest.raises(UsageError, match=in_use):
            sweep(tmp_path)
        # The trials own their own folders.
        (trial,) = (path.parent for path in tmp_path.glob("*/starts"))
        with owned(trial / OWNER_FILE, "a trial"):
            pass
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def test_guard_refuses_to_start_what_nobody_waits_for():
    guard = Path(run_trials.__code__.co_filename).with_name("guard.py")
    done = subprocess.run(
        [sys.executable, str(guard), str(os.getpid() + 1_000_000), "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "gone" in done.stderr
