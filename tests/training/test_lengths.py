"""Sequence length by phase: the same run whole and in pieces, each length at its own FLOPs."""

import json

import numpy as np
import pytest

from t5x_style.accounting import Topology, training_flops_per_token
from t5x_style.data import BatchPlan, BatchReader
from t5x_style.errors import UsageError
from t5x_style.reporting import derived_rows, read_derived
from t5x_style.training import train
from tests.model_dir import events, lines
from tests.training.runs import ARCHITECTURE, make_run

# 4 steps of 8 x 8 tokens, 4 of 4 x 16 and 4 of 8 x 16.
PLAN = BatchPlan.from_settings(
    [(8, 256), (4, 256), (8, None)], [(8, 256), (16, None)], train_steps=12
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    model_dir = tmp_path_factory.mktemp("whole")
    return model_dir, train(make_run(model_dir, plan=PLAN, checkpoint_period=3))


def test_each_length_is_accounted_at_its_own(whole):
    model_dir, _ = whole
    plan = json.loads((model_dir / "plan.json").read_text())
    training = [line for line in lines(model_dir) if "loss" in line]
    assert [line["tokens"] for line in training] == [
        *(64, 128, 192, 256, 320, 384, 448, 512, 640, 768, 896, 1024)
    ]
    for key, convention in (("model_flops_causal", "causal"), ("hardware_flops", "hardware")):
        short, long = (
            training_flops_per_token(ARCHITECTURE, length, convention) for length in (8, 16)
        )
        expected = [
            short * min(line["tokens"], 256) + long * max(0, line["tokens"] - 256)
            for line in training
        ]
        assert [line[key] for line in training] == pytest.approx(expected, rel=1e-12)
        of_phases = [phase["flops_per_token"][key] for phase in plan["horizon"]["phases"]]
        assert of_phases == pytest.approx([short, long, long], rel=1e-12)
        assert plan["flops_per_token"][key] * 1024 == pytest.approx(expected[-1], rel=1e-12)
    # Evaluations have the last length.
    assert plan["horizon"]["sequence_length"] == 16
    (row,) = [row for row in derived_rows(read_derived(model_dir)) if row[0] == "sequence length"]
    assert row[2] == "TASK_FEATURE_LENGTHS: 8 for 256 tokens, then 16 for 768 tokens"


def test_what_was_had_is_what_was_planned(whole):
    model_dir, result = whole
    plan = json.loads((model_dir / "plan.json").read_text())
    first, *_, last = events(model_dir)
    for name, planned in plan["sources"].items():
        had = plan["achieved"]["sources"][name]
        assert last["sources"][name] == had
        assert first["sources"][name] == planned
        assert had["tokens"] == planned["tokens"] == result["line"][f"tokens/{name}"]
        assert had["epochs"] == planned["epochs"]
    assert plan["achieved"]["tokens"] == last["tokens"] == 1024


@pytest.mark.parametrize("rows", [20, 40, 56], ids=["8", "4 x 16", "8 x 16"])
def test_broken_off_in_any_phase_it_goes_on(whole, tmp_path, monkeypatch, rows):
    read = BatchReader.rows

    def broken(reader, numbers):
        if rows in numbers:
            raise InterruptedError
        return read(reader, numbers)

    with monkeypatch.context() as patch:
        patch.setattr(BatchReader, "rows", broken)
        with pytest.raises(InterruptedError):
            train(make_run(tmp_path, plan=PLAN, checkpoint_period=3))
    train(make_run(tmp_path, plan=PLAN, checkpoint_period=3))
    losses = [
        np.array([line["loss"] for line in lines(folder) if "loss" in line])
        for folder in (whole[0], tmp_path)
    ]
    assert len(losses[0]) == 12
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)


def test_every_length_must_fit(tmp_path):
    plan = BatchPlan.from_settings(8, [(16, 256), (20, None)], train_steps=4)
    with pytest.raises(UsageError, match="the sequence length = 20 is not a multiple"):
        make_run(tmp_path, plan=plan, topology=Topology(sequence=8))
