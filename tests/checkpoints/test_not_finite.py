"""Weights that are no numbers are refused by name before anything is trained."""

import dataclasses

import numpy as np
import pytest

from t5x_style.errors import UsageError
from t5x_style.training import session as sessions
from t5x_style.training import train
from tests.training.runs import make_run


@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_initial_weights_that_are_no_numbers_are_refused(tmp_path, monkeypatch, value):
    def weights(path, tokenizer, target):
        program = opened["program"]
        found = program.model.fresh_parameters(0)
        blocks = found["blocks"]
        gain = blocks["attention_norm"]["gain"]
        blocks["attention_norm"]["gain"] = gain.at[1, 0].set(value)
        down = blocks["feed_forward"]["down"]["weight"]
        blocks["feed_forward"]["down"]["weight"] = down.at[0, 3, 5].set(value)
        return found

    opened = {}
    make = sessions.step_program

    def program(*arguments):
        opened["program"] = make(*arguments)
        return opened["program"]

    monkeypatch.setattr(sessions, "step_program", program)
    monkeypatch.setattr(sessions, "initial_parameters", weights)
    run = make_run(tmp_path / "run", steps=2)
    run = dataclasses.replace(run, initial_checkpoint_path="runs/base")
    with pytest.raises(UsageError) as error:
        train(run)
    assert str(error.value) == (
        "INITIAL_CHECKPOINT_PATH = runs/base has parameters that are not finite: "
        "blocks/attention_norm/gain, blocks/feed_forward/down/weight"
    )
    assert not list((tmp_path / "run").glob("*.jsonl"))
