"""A made-up plan.json, for tests of its readers."""

import dataclasses
import json
import pathlib

from t5x_style.accounting import Architecture, SourceAccount, Topology
from t5x_style.reporting import DerivedRun, Horizon, PhaseRecord, PlannedSource, VocabularyRecord
from t5x_style.reporting.run.held_out_text import HeldOutText

ARCHITECTURE = Architecture(vocab_size=4096, layers=4, d_model=128, d_ff=344, heads=4)


def made_up_plan(shares: dict[str, float], *, tokens: int = 100, **fields) -> DerivedRun:
    """A run of `tokens` tokens on sources with these shares; `fields` replace others."""
    account = SourceAccount(unique_tokens=1000, tokens=50, share=0, epochs=0.5, effective_tokens=50)
    derived = DerivedRun(
        identity={"tokenizer": "t", "blend": shares},
        architecture=ARCHITECTURE,
        topology=Topology(),
        parameters={"total": 1000, "non_embedding": 900},
        flops_per_token={"model_flops_6nd": 6000.0},
        horizon=Horizon(tokens, 1, tokens, [PhaseRecord(1, tokens, 1, tokens, {})], tokens / 1000),
        optimizer={},
        packing={},
        compute_dtype="float32",
        blend=[],
        sources={
            name: PlannedSource(dataclasses.replace(account, share=share), share, share, name)
            for name, share in shares.items()
        },
        held_out=[HeldOutText(-1, 0, {})],
        notices=[],
        vocabulary=VocabularyRecord("t.model", None, "t", 4096),
        early_stopping=None,
        own_law=None,
        laws={},
    )
    return dataclasses.replace(derived, **fields)


def write_plan(model_dir: str | pathlib.Path, derived: DerivedRun) -> None:
    (pathlib.Path(model_dir) / "plan.json").write_text(json.dumps(derived.to_json()))
