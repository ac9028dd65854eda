"""The tables before step 0 and at the end, of a made-up plan."""

import dataclasses

import pytest

from t5x_style.accounting import LawAudit, SourceAccount, Topology
from t5x_style.reporting import (
    Horizon,
    PhaseRecord,
    PlannedSource,
    achieved_rows,
    derived_rows,
    source_rows,
)
from tests.plans import made_up_plan

SCHEDULE = {
    "peak_learning_rate": 3e-4,
    "shape": "cosine",
    "warmup_tokens": 2_000_000,
    "final_fraction": 0.1,
}


@pytest.fixture
def derived():
    phases = [(4, 16, 10, 640), (8, 16, 10, 1280), (8, 32, 1_000, 256_000)]
    return made_up_plan(
        {},
        topology=Topology(data=2, fsdp=4, remat="full", kernel="blockwise"),
        parameters={"total": 1_234_567, "non_embedding": 1_000_000},
        flops_per_token={
            "model_flops_6nd": 6e6,
            "model_flops_full": 7e6,
            "model_flops_causal": 6.5e6,
            "hardware_flops": 8e6,
        },
        horizon=Horizon(257_920, 1_020, 32, [PhaseRecord(*phase, {}) for phase in phases], 0.25),
        optimizer={"schedule": SCHEDULE, "b1": 0.9},
        early_stopping={
            "mode": "stop",
            "measure": "bits_per_byte",
            "weights": {"legal": 0.51, "web": 0.49},
            "min_delta": 0.01,
            "patience_tokens": 100_000,
        },
        laws={
            "none": LawAudit(None, None, None, None),
            "one": LawAudit(1e9, 2e10, 2.5, 0.75),
            "two": LawAudit(2e9, 1e10, None, None),
            "three": LawAudit(None, 1e10, None, None),
        },
    )


def test_the_table_before_step_0(derived):
    assert derived_rows(derived) == [
        (
            "parameters",
            "1,234,567",
            "1,000,000 without embeddings; L 4, D 128, F 344, heads 4/4 x 32, V 4,096",
        ),
        ("tokens", "257,920", "0.2 per parameter"),
        (
            "steps",
            "1,020",
            "sequences per step: 4 x 10 steps, then 8 x 10 steps, then 8 x 1,000 steps",
        ),
        (
            "sequence length",
            "32",
            "TASK_FEATURE_LENGTHS: 16 for 1.92K tokens, then 32 for 256K tokens",
        ),
        (
            "FLOPs, 6 N D",
            "1.548e+12",
            "full 1.805e+12, causal 1.676e+12, hardware 2.063e+12 (remat full)",
        ),
        ("learning rate", "0.0003", "cosine, warm-up 2.00M tokens, to 0.1 of the peak"),
        ("mesh", "data=2 x fsdp=4", "compute in float32, attention blockwise"),
        (
            "early stopping",
            "stop",
            "when bits per byte of legal 51.0%, web 49.0% has not fallen by more than 0.01 in "
            "100K tokens",
        ),
        ("optimum, one", "N 1.00B", "D 20.0B for the same 6 N D; compute efficiency 0.750"),
        ("optimum, two", "N 2.00B", "D 10.0B for the same 6 N D"),
    ]


def test_a_schedule_of_ones_own_shows_its_fields(derived):
    for optimizer in ({"schedule": {"first": 0.5, "halved": 4}}, {"first": 0.5, "halved": 4}):
        rows = derived_rows(dataclasses.replace(derived, optimizer=optimizer))
        assert ("learning rate", "", "first 0.5, halved 4") in rows
    assert ("learning rate", "0.0003", "cosine, warm-up 2.00M tokens, to 0.1 of the peak") in (
        derived_rows(dataclasses.replace(derived, optimizer=SCHEDULE))
    )


def test_the_tokens_of_each_source():
    account = SourceAccount(4_000, 10_000, 0.255, epochs=2.5, effective_tokens=8_765.4)
    sources = {
        "legal": PlannedSource(account, 0.25, 0.5, "legal"),
        "web": PlannedSource(account, 0.75, 0.75, "web"),
    }
    cells = ("10,000", "4,000", "2.50", "8,765")
    assert source_rows(made_up_plan({}, sources=sources)) == [
        ("legal", "25.00% to 50.00%", *cells),
        ("web", "75.00%", *cells),
    ]
    assert achieved_rows({"legal": account}) == [("legal", "25.50%", *cells)]
