"""The end of a run, written on a disk that fails and read from files that were damaged since."""

import json
import pathlib
import shutil

import pytest

from t5x_style.errors import Fault
from t5x_style.training import EarlyStopping, train
from t5x_style.training import folder as end
from tests.model_dir import events, lines
from tests.training.runs import make_run


def edit(path: pathlib.Path, keep) -> None:
    """Keep the lines of which `keep` is true."""
    text = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in text if keep(json.loads(line))))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 5 steps that has ended, and its result."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(make_run(folder, steps=5))


@pytest.fixture
def ended(whole, tmp_path):
    """A copy of it that a test may damage."""
    shutil.copytree(whole[0], tmp_path / "run")
    return tmp_path / "run"


def test_a_finished_run_whose_lines_are_gone_is_finished_and_has_no_loss(ended, capsys):
    (ended / "metrics.jsonl").unlink()
    again = train(make_run(ended, steps=5))
    assert again["line"] == {"step": 5, "tokens": 640}
    assert again["evaluation"] == {}
    assert again["seconds"] == events(ended)[-1]["seconds"]
    assert "the lines about steps 1 to 5 are missing" in capsys.readouterr().err


def test_a_finished_run_whose_last_lines_are_gone_does_not_take_an_earlier_one(ended, capsys):
    edit(ended / "metrics.jsonl", lambda line: line["step"] <= 3)
    again = train(make_run(ended, steps=5))
    assert again["line"] == {"step": 5, "tokens": 640}
    assert "the lines about steps 4 to 5 are missing" in capsys.readouterr().err


def test_a_finished_run_with_a_broken_line_says_so(ended, whole, capsys):
    text = (ended / "metrics.jsonl").read_text().replace('{"step": 3', '{"step" 3')
    (ended / "metrics.jsonl").write_text(text)
    assert train(make_run(ended, steps=5))["line"]["loss"] == whole[1]["line"]["loss"]
    console = capsys.readouterr().err
    assert "metrics.jsonl: line 4 cannot be read" in console
    assert "the lines about steps 3 to 3 are missing" in console


def test_a_run_that_early_stopping_ended_stays_ended_without_its_lines(tmp_path):
    """Without them the rule cannot be asked again; the event has what it said."""
    rule = EarlyStopping(patience_tokens=256, min_delta=1e3, mode="stop")
    options = {"steps": 40, "eval_period": 2, "early_stopping": rule}
    first = train(make_run(tmp_path, **options))
    assert first["line"]["step"] < 40
    (tmp_path / "metrics.jsonl").unlink()
    again = train(make_run(tmp_path, **options))
    assert again["resumed_from"] == first["line"]["step"]
    assert (again["reason"], again["best_step"]) == (first["reason"], first["best_step"])


def test_lines_that_only_the_last_checkpoint_has_are_written_at_the_next_start(
    tmp_path, monkeypatch
):
    """The disk is full from the last save to the end."""
    from t5x_style.reporting.logs import log_file

    run, write = make_run(tmp_path, steps=5), log_file.LogFile._write_waiting

    def full(file):
        if file.path.name == "metrics.jsonl" and b'"step": 5' in b"".join(file._waiting):
            raise OSError(28, "No space left on device")
        write(file)

    with monkeypatch.context() as patch:
        patch.setattr(log_file.LogFile, "_write_waiting", full)
        with pytest.raises(Fault, match=r"lines of .*metrics\.jsonl \(No space left on device\)"):
            train(run)
    assert all(line["step"] < 5 for line in lines(tmp_path))
    again = train(run)
    assert again["resumed_from"] == 5
    assert [line["step"] for line in lines(tmp_path) if "loss" in line][-1] == 5
    assert again["line"]["loss"] == lines(tmp_path)[-2]["loss"]
    assert again["evaluation"]["eval/domain/loss"] > 0
    assert events(tmp_path)[-1]["event"] == "finished"


def test_a_plan_that_cannot_be_written_at_the_end_names_the_checkpoint(tmp_path, monkeypatch):
    write_plan = end.write_plan

    def full(run, derived):
        if derived.achieved is not None:
            raise OSError(28, "No space left on device")
        write_plan(run, derived)

    run = make_run(tmp_path, steps=5)
    with monkeypatch.context() as patch:
        patch.setattr(end, "write_plan", full)
        with pytest.raises(Fault, match=r"plan\.json .*No space left.* checkpoint of step 5 is"):
            train(run)
    assert train(run)["resumed_from"] == 5
    assert events(tmp_path)[-1]["event"] == "finished"
