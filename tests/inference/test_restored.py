"""Which checkpoint of which run is restored; the parameters themselves are made up."""

import types

import jax
import pytest

from t5x_style.accounting import Topology
from t5x_style.checkpoints.initial_weights import run_tokenizer
from t5x_style.errors import UsageError
from t5x_style.inference import restored
from t5x_style.reporting import VocabularyRecord
from tests.checkpoints.whole import write_checkpoint
from tests.plans import made_up_plan, write_plan


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with checkpoints of steps 20 and 100, and what was restored from it."""
    write_plan(tmp_path, made_up_plan({"legal": 1.0}))
    for step in (20, 100):
        write_checkpoint(tmp_path, step, identity={"tokenizer": "t"})
    tokenizer = types.SimpleNamespace(path="t.model", hash="t")
    monkeypatch.setattr(restored, "run_tokenizer", lambda model_dir, record, vocabulary: tokenizer)
    monkeypatch.setattr(
        restored, "restore_parameters", lambda checkpoint, abstract: {"from": checkpoint.name}
    )
    return tmp_path, tokenizer


@pytest.mark.parametrize(
    ("path", "step", "found"), [("", None, 100), ("", 20, 20), ("checkpoint_20", None, 20)]
)
def test_the_newest_checkpoint_or_the_one_that_is_asked_for(run, path, step, found):
    folder, tokenizer = run
    model = restored.restore_model(str(folder / path), Topology(data=8), step=step)
    assert (model.step, model.parameters) == (found, {"from": f"checkpoint_{found}"})
    assert model.tokenizer is tokenizer
    assert model.mesh.size == jax.device_count()


def test_a_checkpoint_that_is_damaged_or_of_another_run_is_not_restored(run, capsys):
    folder, _ = run
    file = folder / "checkpoint_100/state/manifest.ocdbt"
    file.write_bytes(b"\x01\x02\x07")
    model = restored.restore_model(str(folder), Topology(data=8))
    assert model.step == 20
    assert "checkpoint_100: state/manifest.ocdbt has other bytes" in capsys.readouterr().err
    for path, step in (("", 100), ("checkpoint_100", None)):
        with pytest.raises(UsageError, match=r"checkpoint_100: state/manifest.ocdbt has other"):
            restored.restore_model(str(folder / path), Topology(data=8), step=step)
    write_checkpoint(folder, 30, identity={"tokenizer": "x"})
    with pytest.raises(UsageError, match="is of another run, with tokenizer 'x' and not 't'"):
        restored.restore_model(str(folder), Topology(data=8), step=30)


def test_a_vocabulary_that_was_changed_is_refused(run):
    folder, tokenizer = run
    tokenizer.hash = "another"
    with pytest.raises(
        UsageError, match=r"t\.model is not the vocabulary that .* its hash is another"
    ):
        restored.restore_model(str(folder), Topology(data=8))


@pytest.fixture
def link_out(tmp_path):
    """A run's folder with a vocabulary inside, and a link that leads out of it."""
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (tmp_path / "other.model").write_text("not of the run")
    (folder / "link.model").symlink_to(tmp_path / "other.model")
    return folder


@pytest.mark.parametrize(
    "path", ["{}/other.model", "../other.model", "deep/../../other.model", "link.model"]
)
def test_a_plan_of_a_stranger_opens_no_vocabulary_outside_of_its_folder(link_out, path):
    path = path.format(link_out.parent)
    record = VocabularyRecord(path, None, "h", 4)
    with pytest.raises(UsageError) as refused:
        run_tokenizer(str(link_out), record)
    message = str(refused.value)
    assert f"{link_out}/plan.json names the vocabulary {path!r}, outside of {link_out}" in message
    # Who knows the file names it: the plan of an old run has the path of the original.
    named = str(link_out.parent / "other.model")
    assert message.endswith(f"--vocabulary={named}")
    assert run_tokenizer(str(link_out), record, named).path == named


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("bytes", "bytes"),
        ("vocabulary.model", "{}/vocabulary.model"),
        ("deep/../v.json", "{}/deep/../v.json"),
    ],
)
def test_a_vocabulary_of_the_run_needs_no_flag(link_out, path, expected):
    found = run_tokenizer(str(link_out), VocabularyRecord(path, None, "h", 4))
    assert found.path == expected.format(link_out)
