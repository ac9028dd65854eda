"""The verb over the sweeps room: what it refuses before a trial starts, and what it hands on."""

import json
import sys

import pytest

from t5x_style.commands import main as main_module
from t5x_style.sweeps import TrialEntry
from t5x_style.sweeps import trials as trials_module
from tests.commands.conftest import RUN_FILE


@pytest.fixture
def run_sweep(toy, tmp_path, monkeypatch, capfd):
    """Runs the sweep verb with the toy verb in the place of `train`."""
    toy.train = toy.toy
    monkeypatch.setitem(sys.modules, "t5x_style.commands.runs.train", toy)
    monkeypatch.setitem(main_module.VERBS, "sweep", "trials")
    calls = []

    def run_trials(trials, sweep_dir, **arguments):
        calls.append((trials, sweep_dir, arguments))
        return [
            TrialEntry(trial.name, trial.values, "finished", result={"tokens": 3})
            for trial in trials
        ]

    monkeypatch.setattr("t5x_style.commands.studies.sweep.run_trials", run_trials)

    def run(*flags, text=RUN_FILE):
        path = tmp_path / "run.gin"
        path.write_text(text)
        given = (f"--run_files=['{path}']", f"--sweep_dir={tmp_path}/sweep")
        status = main_module.main(["sweep", "--json", *given, *flags])
        captured = capfd.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err, calls

    return run


GRID = "--grid={'LEARNING_RATE': [1e-3, 2e-3], 'ToyModel.width': [8, 16]}"


def test_hands_the_trials_on_and_prints_the_table(run_sweep, tmp_path):
    status, result, err, calls = run_sweep(GRID, "--bindings={'TRAIN_STEPS': 5}")
    assert status == 0, err
    assert len(result["trials"]) == 4
    assert "LEARNING_RATE" in err
    [(trials, sweep_dir, arguments)] = calls
    assert sweep_dir == tmp_path / "sweep"
    assert trials[3].values == {"LEARNING_RATE": 2e-3, "ToyModel.width": 16}
    assert arguments["arguments"] == [f"--gin_file={tmp_path}/run.gin", "--gin.TRAIN_STEPS=5"]
    assert arguments["concurrent_trials"] == 1


def test_the_identity_is_that_of_the_run_files_includes_and_all(run_sweep, tmp_path):
    (tmp_path / "more.gin").write_text("ToyModel.layers = 2\n")
    text = RUN_FILE + f"include '{tmp_path}/more.gin'\n"
    one = run_sweep(GRID, text=text)[3][-1][2]["identity"]
    assert run_sweep(GRID, text=text)[3][-1][2]["identity"] == one
    (tmp_path / "more.gin").write_text("ToyModel.layers = 3\n")
    assert run_sweep(GRID, text=text)[3][-1][2]["identity"] != one


@pytest.mark.parametrize(
    ("flags", "fragment"),
    [
        (["--grid={'LEARNING_RAET': [1.0]}"], "trial LEARNING_RAET=1.0: --gin.LEARNING_RAET=1.0"),
        (["--grid={'ToyModel.widht': [8]}"], "ToyModel has no parameter 'widht'"),
        (
            ["--grid={'LEARNING_RATE': [1e-3, 'fast']}"],
            "trial LEARNING_RATE=fast: --gin.LEARNING_RATE='fast': LEARNING_RATE",
        ),
        (["--grid={'ToyModel.width': [8, 7]}"], "trial width=7: ToyModel.width = 7 is odd"),
        (["--grid={'toy_unused.a': [1.0]}"], "nothing reads toy_unused.a"),
        (["--grid={}"], "sweep.grid is empty"),
        (["--grid=3"], "sweep.grid = 3 is a whole number, not a mapping"),
        ([GRID, "--bindings={'LEARNING_RATE': 1.0}"], "is in both sweep.grid and sweep.bindings"),
        ([GRID, "--concurrent_trials=0"], "must be 1 or more"),
        ([GRID, "--run_files=['nosuch.gin']"], "sweep.run_files = ['nosuch.gin']: no gin file"),
        ([GRID, "--run_files=['gs://b/run.gin']"], "sweep.run_files = 'gs://b/run.gin': gs:// is"),
        ([GRID, "--sweep_dir=gs://b/sweep"], "--sweep_dir = 'gs://b/sweep': gs:// is not a file"),
        ([], "--grid=<Mapping[str, Sequence[object]]>"),
    ],
)
def test_nothing_starts_before_every_trial_is_in_order(run_sweep, flags, fragment):
    status, _, err, calls = run_sweep(*flags)
    assert status == 2
    assert fragment in err
    assert calls == []


def test_dry_run_shows_the_trials_and_starts_none(run_sweep, tmp_path):
    status, result, _, calls = run_sweep(GRID, "--dry_run")
    assert status == 0
    assert [trial["status"] for trial in result["trials"]] == ["waiting"] * 4
    assert calls == []
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_with_trials_that_can_go_on_is_to_be_started_again(run_sweep, monkeypatch):
    """They were preempted, or lost a process; with status 0 nobody would start it again."""
    trials = [
        TrialEntry("a", {"X": 1}, "preempted"),
        TrialEntry("b", {"X": 2}, "finished"),
    ]
    monkeypatch.setattr("t5x_style.commands.studies.sweep.run_trials", lambda *a, **k: trials)
    status, _, err, _ = run_sweep(GRID)
    assert status == 75
    last = err.strip().splitlines()[-1]
    assert last == "error: 1 of 2 trials can go on: a: start the sweep again"


def test_failed_trials_are_a_fault_after_the_table(run_sweep, monkeypatch):
    failed = [
        TrialEntry("a", {"X": 1}, "failed", reason="no"),
        TrialEntry("b", {"X": 2}, "finished"),
    ]
    monkeypatch.setattr("t5x_style.commands.studies.sweep.run_trials", lambda *a, **k: failed)
    status, _, err, _ = run_sweep(GRID)
    assert status == 1
    assert err.strip().splitlines()[-1] == "error: 1 of 2 trials failed: a: no"


def test_trials_are_started_as_train(monkeypatch):
    assert (sys.executable, "-m", "t5x_style", "train") == trials_module.TRAIN
