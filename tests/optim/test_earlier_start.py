"""What a start changes for a run that goes on, the rates computed by hand."""

import dataclasses
import json

import pytest

from t5x_style.data import BatchPlan
from t5x_style.optim import AdamW, Schedule
from t5x_style.optim.earlier_start import EarlierStart
from tests.my_team import Staircase

COSINE = AdamW(Schedule(peak_learning_rate=1e-3))


def planned(steps: int, batch: int = 4) -> BatchPlan:
    return BatchPlan.from_settings(batch, 16, train_steps=steps)


def earlier(optimizer: AdamW = COSINE, step: int = 10, **plan) -> EarlierStart:
    # Through JSON, as plan.json keeps it.
    fields = json.loads(json.dumps(dataclasses.asdict(optimizer)))
    return EarlierStart(step, fields, planned(**{"steps": 10, **plan}))


def test_a_longer_horizon_says_what_it_does_to_the_rate_of_the_last_step():
    # A tenth of the peak at the end; halfway, the mean of the peak and that tenth.
    assert earlier().rate_change(COSINE, planned(20)) == (
        "learning rate at step 10 goes from 0.0001 to 0.00055: the horizon was 640 tokens and is "
        "1,280 (Schedule.shape = 'constant', and 'wsd' before its cooldown, need no horizon)"
    )


def test_a_schedule_that_needs_no_horizon_says_nothing_of_a_longer_one():
    constant = AdamW(Schedule(1e-3, shape="constant"))
    assert earlier(constant).rate_change(constant, planned(20)) is None
    wsd = AdamW(Schedule(1e-3, shape="wsd", decay_fraction=0.2))
    assert earlier(wsd, step=8).rate_change(wsd, planned(100)) is None
    assert "goes from 0.0001 to 0.001" in earlier(wsd, step=10).rate_change(wsd, planned(100))


@pytest.mark.parametrize(
    ("changed", "rates"),
    [
        # Step 10 of 20 of a cosine from 1e-3 to 1e-4.
        ({"peak_learning_rate": 2e-3}, "0.00055 to 0.0011"),
        ({"shape": "constant"}, "0.00055 to 0.001"),
        ({"final_fraction": 0.0}, "0.00055 to 0.0005"),
        # Ten of twenty steps of warm-up.
        ({"warmup_tokens": 1280}, "0.00055 to 0.0005"),
    ],
)
def test_another_peak_shape_or_warm_up_says_what_it_does(changed, rates):
    now = AdamW(dataclasses.replace(COSINE.schedule, **changed))
    notice = earlier(steps=20).rate_change(now, planned(20))
    assert f"learning rate at step 10 goes from {rates}: " in notice
    assert "the fields of the optimizer or its schedule were changed" in notice
    assert "horizon" not in notice


def test_both_reasons_are_said_where_both_move_the_rate():
    now = AdamW(Schedule(2e-3))
    notice = earlier().rate_change(now, planned(20))
    assert "from 0.0001 to 0.0011" in notice
    assert "the horizon was 640 tokens" in notice
    assert "were changed" in notice


def test_what_leaves_the_rate_alone_says_nothing():
    assert earlier().rate_change(COSINE, planned(10)) is None
    decayed = dataclasses.replace(COSINE, weight_decay=0.5)
    assert earlier().rate_change(decayed, planned(10)) is None
    # Another kind of schedule cannot be compared with fields that it does not have.
    assert earlier().rate_change(AdamW(Staircase(1e-3)), planned(10)) is None


def test_the_batch_sizes_that_keep_the_past_are_written_out():
    start = earlier(step=3)
    assert start.batch_size_from_here(planned(10, batch=8)) == "[(4, 192), (8, None)]"
    phased = BatchPlan.from_settings([(2, 64), (4, None)], 16, train_steps=10)
    start = EarlierStart(5, {}, phased)
    assert start.batch_size_from_here(planned(9, batch=8)) == "[(2, 64), (4, 192), (8, None)]"
