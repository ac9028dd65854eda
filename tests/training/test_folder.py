"""The folder of a run, damaged between two starts or removed under it."""

import pytest

from t5x_style.data import BatchReader
from t5x_style.errors import Fault
from t5x_style.reporting.run import writer as run_writer
from t5x_style.training import derive, train
from t5x_style.training.folder import missing_files_writer, write_files
from t5x_style.training.session import refuse_foreign_files
from tests.model_dir import events, lines, remove
from tests.training.runs import make_run


def test_a_folder_that_is_removed_while_the_run_trains_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run_writer, "FLUSH_SECONDS", 0.01)
    read, reads, model_dir = BatchReader.rows, [], tmp_path / "run"

    def rows(reader, indices):
        reads.append(indices)
        if len(reads) == 8:
            remove(model_dir)
        return read(reader, indices)

    monkeypatch.setattr(BatchReader, "rows", rows)
    # No save is on its way at that moment.
    train(make_run(model_dir, steps=12, eval_period=6, checkpoint_period=100))
    found = [line["step"] for line in lines(model_dir) if "loss" in line]
    assert found == list(range(1, 13))
    assert {"plan.json", "config.gin", "checkpoint_12"} <= {f.name for f in model_dir.iterdir()}
    assert events(model_dir)[0]["event"] == "started"
    reasons = [event["reason"] for event in events(model_dir, "logs_rewritten")]
    assert any("plan.json, config.gin of" in reason for reason in reasons)
    # It is a run that can be made longer.
    assert train(make_run(model_dir, steps=14, eval_period=6))["resumed_from"] == 12


@pytest.mark.parametrize("name", ["plan.json", "config.gin"])
def test_a_file_of_the_start_that_is_removed_is_written_again(tmp_path, name):
    run = make_run(tmp_path)
    write_files(run, derive(run))
    content = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    write_missing = missing_files_writer(run, derive(run))
    assert write_missing() == []
    (tmp_path / name).unlink()
    assert write_missing() == [name]
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == content


def test_a_hole_in_the_lines_is_told_where_the_run_goes_on(tmp_path):
    train(make_run(tmp_path, steps=10))
    text = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(text[:5]))
    train(make_run(tmp_path, steps=12))
    (told,) = events(tmp_path, "logs_broken")
    assert told["reason"] == "metrics.jsonl: the lines about steps 5 to 10 are missing"
    assert told["step"] == 10


DAMAGED = {
    "missing": None,
    "cut": '{"identity": {"see',
    "empty": "",
    "no plan": "{}",
    "a list": "[]",
    "a horizon that is none": '{"horizon": "x", "identity": {}}',
    "not text": b"\xff\xfe\x00",
}


@pytest.fixture(scope="module")
def with_checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("with_checkpoint")
    train(make_run(folder, steps=5))
    return folder


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_plan_beside_checkpoints_says_what_to_do(with_checkpoint, content):
    plan = with_checkpoint / "plan.json"
    if content is None:
        plan.unlink(missing_ok=True)
    else:
        plan.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(Fault, match="has checkpoints up to step 5") as refused:
        refuse_foreign_files(str(with_checkpoint))
    message = str(refused.value)
    assert "plan.json" in message
    assert "back from a copy" in message
    assert "train.from_scratch = True" in message


def test_files_that_cannot_be_written_at_a_start_are_a_fault_of_the_folder(tmp_path):
    run = make_run(tmp_path / "taken" / "run")
    (tmp_path / "taken").write_text("")
    with pytest.raises(Fault, match=r"cannot write a run under .*taken/run"):
        write_files(run, derive(run))
