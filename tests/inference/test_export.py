"""The parameters of a run alone: the same numbers, from which the same things are done."""

import json

import jax
import numpy as np
import pytest

from t5x_style.accounting import Topology
from t5x_style.checkpoints.find import restore_facts, step_of
from t5x_style.errors import UsageError
from t5x_style.inference import export_parameters, restore_model, restored
from t5x_style.training import train
from tests.training.runs import FakeTokenizer, make_run


def test_exported_parameters_are_those_of_the_run_and_others_start_from_them(tmp_path, monkeypatch):
    monkeypatch.setattr(restored, "run_tokenizer", lambda *_: FakeTokenizer())
    run, output = tmp_path / "run", tmp_path / "exports/first"
    end = train(make_run(run, steps=8, checkpoint_period=4))
    checkpoint = export_parameters(str(run), str(output), step=8)
    assert checkpoint == output / "checkpoint_8"
    parameters, exported = (
        restore_model(str(folder), Topology(), step=8).parameters for folder in (run, output)
    )
    jax.tree.map(np.testing.assert_array_equal, exported, parameters)
    # AdamW has two moments of the size of each parameter.
    sizes = [
        sum(path.stat().st_size for path in (folder / "checkpoint_8/state").rglob("d/*"))
        for folder in (run, output)
    ]
    assert sizes[1] < 0.5 * sizes[0]
    # What was moved aside has another name, and is of the same step.
    aside = run / "abandoned_checkpoint_8_2"
    (run / "checkpoint_8").rename(aside)
    assert restore_model(str(aside), Topology()).step == 8
    from_aside = export_parameters(str(aside), str(tmp_path / "aside"))
    assert from_aside == tmp_path / "aside/checkpoint_8"
    facts = [restore_facts(folder)["tokens"] for folder in (from_aside, checkpoint, aside)]
    assert len(set(facts)) == 1
    # A run from them begins where the first one ended.
    other = make_run(tmp_path / "other", steps=3, initial_checkpoint_path=str(output))
    train(other)
    with (tmp_path / "other/metrics.jsonl").open() as lines:
        first = json.loads(lines.readline())
    assert first["eval/domain/loss"] == pytest.approx(end["evaluation"]["eval/domain/loss"])
    # They cannot be trained on themselves, and stay as they are.
    for steps in (8, 12):
        with pytest.raises(UsageError, match=r"parameters alone.* INITIAL_CHECKPOINT_PATH"):
            train(make_run(output, steps=steps, checkpoint_period=4))
    assert {path.name for path in output.iterdir()} == {"checkpoint_8", "plan.json"}
    # Nothing is written over.
    with pytest.raises(UsageError, match="is there already: name another folder"):
        export_parameters(str(run), str(output), step=4)


def test_an_older_checkpoint_has_its_step_in_its_name(tmp_path):
    assert step_of(tmp_path / "damaged_checkpoint_120_2") == 120
    with pytest.raises(UsageError, match=r"best has no MANIFEST.json: name it checkpoint_<step>"):
        step_of(tmp_path / "best")
