"""The record of an audit and its keys in a training line, both ways."""

import json

import pytest

from t5x_style.accounting import Architecture, Audit, Auditor, LawAudit
from t5x_style.accounting.laws import ParametricLaw

SMALL = Architecture(4096, 4, 128, 344, 4)
OWN = ParametricLaw("my-law.v2", 1.5, 40.0, 60.0, 0.3, 0.3, "made up", (1e12, 1e15))
TOKENS = 10_000_000


@pytest.mark.parametrize("tokens", [0, TOKENS])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planned_tokens": 2 * TOKENS},
        {"own_law": OWN, "effective_tokens": lambda tokens: 0.9 * tokens},
        {"own_law": OWN, "planned_tokens": 2 * TOKENS},
    ],
)
def test_a_line_brings_back_the_record(tokens, options):
    audit = Auditor(SMALL, 128, **options).audit_at(tokens)
    line = {"step": 7, "tokens": tokens, "loss": 3.0, "seconds/step": 5.0, **audit.line()}
    assert Audit.from_line(json.loads(json.dumps(line))) == audit


def test_the_keys_of_a_line():
    laws = {"mine": LawAudit(1.0, 2.0, 3.0, None)}
    audit = Audit(20.0, 4.0, {"6nd": 600.0, "hardware": 800.0}, laws)
    expected = {
        "model_flops_6nd": 600.0,
        "hardware_flops": 800.0,
        "tokens_per_param": 4.0,
        "chinchilla/mine/optimal_params": 1.0,
        "chinchilla/mine/optimal_tokens": 2.0,
        "chinchilla/mine/expected_loss": 3.0,
        "chinchilla/mine/compute_efficiency": None,
    }
    assert audit.line() == expected


def test_a_line_of_an_older_version_has_fewer_keys():
    line = {"tokens": 20, "tokens_per_param": 4.0, "chinchilla/mine/expected_loss": 3.0}
    other = {"chinchilla/mine/of_a_later_version": 1.0, "loss/legal": 2.0}
    assert Audit.from_line(line | other) == Audit(
        20, 4.0, {}, {"mine": LawAudit(None, None, 3.0, None)}
    )


@pytest.mark.parametrize("line", [{}, {"tokens": 20, "loss": 3.0}, {"tokens_per_param": 4.0}])
def test_a_line_without_an_audit(line):
    assert Audit.from_line(line) is None


def test_tokens_that_nothing_was_learnt_from_are_no_part_of_the_record():
    """10 of 40 tokens, of which 20 had been as good as 40: 15 are as good as 30."""
    auditor = Auditor(SMALL, 128, planned_tokens=100, effective_tokens=lambda tokens: tokens / 2)
    audit, fresh = auditor.audit_at(40, skipped=10), auditor.audit_at(30)
    assert (audit.tokens, audit.effective_tokens, audit.remaining_tokens) == (30, 15, 60)
    assert audit.flops == fresh.flops
    assert audit.tokens_per_param == fresh.tokens_per_param
    line = {"tokens": 40, "skipped/legal": 4, "skipped/general": 6, **audit.line()}
    assert Audit.from_line(json.loads(json.dumps(line))) == audit
    # Of a run that learnt from nothing.
    assert auditor.audit_at(40, skipped=40).laws == auditor.audit_at(0).laws
