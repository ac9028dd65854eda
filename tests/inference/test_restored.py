"""Which checkpoint of which run is restored; the parameters themselves are made up."""

import pathlib
import types

import jax
import pytest

from t5x_style.accounting import Topology
from t5x_style.errors import UsageError
from t5x_style.inference import restored
from tests.plans import made_up_plan, write_plan


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with checkpoints of steps 20 and 100, and what was restored from it."""
    write_plan(tmp_path, made_up_plan({"legal": 1.0}))
    for step in (20, 100):
        (tmp_path / f"checkpoint_{step}").mkdir()
    tokenizer = types.SimpleNamespace(path="t.model", hash="t")
    monkeypatch.setattr(restored, "run_tokenizer", lambda model_dir, record: tokenizer)
    monkeypatch.setattr(
        restored, "restore_parameters", lambda checkpoint, abstract: {"from": checkpoint.name}
    )
    monkeypatch.setattr(restored, "find_checkpoint", find_checkpoint)
    return tmp_path, tokenizer


def find_checkpoint(place: str):
    """The newest checkpoint of a folder, or the one that is named."""
    path = pathlib.Path(place)
    return path if path.name.startswith("checkpoint_") else path / "checkpoint_100"


@pytest.mark.parametrize(("step", "found"), [(None, 100), (20, 20)])
def test_the_newest_checkpoint_or_the_one_that_is_asked_for(run, step, found):
    folder, tokenizer = run
    model = restored.restore_model(str(folder), Topology(data=8), step=step)
    assert (model.step, model.parameters) == (found, {"from": f"checkpoint_{found}"})
    assert model.tokenizer is tokenizer
    assert model.mesh.size == jax.device_count()


def test_a_vocabulary_that_was_changed_is_refused(run):
    folder, tokenizer = run
    tokenizer.hash = "another"
    with pytest.raises(
        UsageError, match=r"t\.model is not the vocabulary that .* its hash is another"
    ):
        restored.restore_model(str(folder), Topology(data=8))
