"""A run with its own packing: its rows, its steps and its evaluations are of one mind."""

import dataclasses
import json

import numpy as np
import pytest

from t5x_style.data import BatchPlan, Packing
from t5x_style.errors import UsageError
from t5x_style.training import train
from tests.training.runs import EOS, make_run, stores

PLAN = BatchPlan.from_settings(8, [(8, 256), (16, None)], train_steps=8)
OWN = Packing("document_starts", attend_across_documents=False, loss_from_context=3)


def stores_of_documents():
    """The made-up stores with an EOS at the end of each document of 8 tokens."""
    held = stores()
    for store in [*held.train.values(), *held.validation.values()]:
        store.tokens[store.document_ends - 1] = EOS
    return held


def packed_run(model_dir, packing: Packing, **changes):
    fields = {"plan": PLAN, "stores": stores_of_documents(), "checkpoint_period": 4} | changes
    return make_run(model_dir, packing=packing, **fields)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("packed")
    return model_dir, packed_run(model_dir, OWN), train(packed_run(model_dir, OWN))


def test_rows_begin_where_documents_do(packed):
    _, run, _ = packed
    rows = run.reader.rows(np.arange(32, 64))
    assert rows.tokens.shape == (32, 18)
    assert (rows.tokens[:, 0] == EOS).all()
    assert make_run("no-such-run", plan=PLAN).reader.rows(np.arange(32)).split_position is None


def test_the_loss_is_that_of_the_packing(packed, tmp_path):
    """Other rows, other context and other predictions: every part of it is another number."""
    trained, evaluated = {}, {}
    for name, packing in {
        "none": Packing(),
        "starts": Packing("document_starts"),
        "segments": Packing(attend_across_documents=False),
        "context": Packing(loss_from_context=3),
    }.items():
        folder = tmp_path / name
        train(packed_run(folder, packing, plan=BatchPlan.from_settings(8, 16, train_steps=2)))
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        evaluated[name] = lines[0]["eval/domain/loss"]
        trained[name] = lines[1]["loss"]
    # Of the first step: all begin with the same parameters.
    assert len({round(loss, 6) for loss in trained.values()}) == 4
    assert evaluated["none"] == evaluated["starts"] == evaluated["context"]
    assert evaluated["segments"] != pytest.approx(evaluated["none"], rel=1e-4)
    plan = json.loads((packed[0] / "plan.json").read_text())
    assert Packing(**plan["packing"]) == OWN


def test_other_rows_are_another_run_and_other_attention_is_not(packed):
    model_dir, _, _ = packed
    concatenated = dataclasses.replace(OWN, windows="concatenated")
    with pytest.raises(UsageError, match="windows: 'document_starts' there, 'concatenated' asked"):
        train(packed_run(model_dir, concatenated))
    longer = BatchPlan.from_settings(8, [(8, 256), (16, None)], train_steps=9)
    across = dataclasses.replace(OWN, attend_across_documents=True)
    assert train(packed_run(model_dir, across, plan=longer))["resumed_from"] == 8
