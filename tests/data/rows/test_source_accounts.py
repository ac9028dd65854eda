"""Caps in epochs, and the accounts of each source of a run."""

import numpy as np
import pytest

from t5x_style.accounting import SourceAccount
from t5x_style.accounting.laws.data_constrained import effective_tokens
from t5x_style.data import BatchPlan
from t5x_style.data.rows.source_accounts import accounts, checked_caps, rows_within
from t5x_style.errors import UsageError
from t5x_style.reporting import achieved_rows, source_rows
from t5x_style.training import derive, within_caps
from t5x_style.training.identity import identity
from tests.training.runs import make_run

# 255 windows of the domain's 4,096 tokens, 511 of the general 8,192.
WINDOWS = {"domain": 255, "general": 511}


def capped_run(folder, at_cap, caps=None, steps=80):
    """640 rows, of which the domain is owed 326.4: 1.28 of its epochs."""
    return make_run(folder, steps=steps, at_cap=at_cap, max_epochs=caps or {"domain": 1.0})


def test_caps_of_one_number_or_several():
    assert checked_caps(3, ["a", "b"]) == {"a": 3.0, "b": 3.0}
    assert checked_caps({"b": 0.5}, ["a", "b"]) == {"a": 40.0, "b": 0.5}
    with pytest.raises(UsageError, match="did you mean 'domain'"):
        checked_caps({"domian": 1}, ["domain", "general"])
    with pytest.raises(UsageError, match="of 'a' = 0: must be above 0"):
        checked_caps({"a": 0}, ["a"])


@pytest.mark.parametrize("cap", [0.01, 0.5, 1.0])
def test_rows_within_a_cap_are_the_most(tmp_path, cap):
    reader = capped_run(tmp_path, "repeat").reader
    caps = {"domain": cap, "general": 40.0}
    rows = rows_within(reader, caps, 640)
    domain = list(reader.names).index("domain")
    assert reader.blend.counts(rows)[domain] == int(cap * WINDOWS["domain"])
    assert reader.blend.counts(rows + 1)[domain] == int(cap * WINDOWS["domain"]) + 1
    assert rows_within(reader, {"domain": 2.0, "general": 2.0}, 640) == 640


def test_accounts_are_of_the_rows(tmp_path):
    run = capped_run(tmp_path, "repeat", steps=500)
    source = run.reader.rows(np.arange(4000)).source
    for name, account in accounts(run.reader, run.stores.train, 4000).items():
        tokens = 16 * int((source == list(run.reader.names).index(name)).sum())
        unique = run.stores.train[name].num_tokens
        assert account == SourceAccount(
            unique_tokens=unique,
            tokens=tokens,
            share=tokens / 64_000,
            epochs=tokens / 16 / WINDOWS[name],
            effective_tokens=effective_tokens(tokens, unique),
        )
    # The laws are given the sum of these.
    effective = sum(account.effective_tokens for account in run.accounts(500).values())
    assert run.auditor.line_at(run.plan.tokens)["effective_tokens"] == pytest.approx(
        effective, rel=1e-12
    )
    assert effective < 64_000


def test_refused(tmp_path):
    with pytest.raises(UsageError, match=r"'domain' would be read 1\.3 times"):
        derive(capped_run(tmp_path, "refuse"))
    with pytest.raises(UsageError, match="did you mean 'renormalise'"):
        capped_run(tmp_path, "renormalize")


def test_stopped(tmp_path):
    asked = capped_run(tmp_path, "stop")
    run = within_caps(asked)
    # 62 steps of 8 rows take 252.96 rows of the domain, 63 would take 257.04 of 255.
    assert (asked.plan.steps, run.plan.steps) == (80, 62)
    (notice,) = derive(run).notices
    assert notice == (
        "source 'domain' is at its cap of 1 epochs at step 62 of 80: the run is planned to end "
        "there"
    )
    assert within_caps(run) is run
    enough = capped_run(tmp_path, "stop", {"domain": 2.0})
    assert within_caps(enough) is enough
    with pytest.raises(UsageError, match="AT_CAP = 'stop': source 'domain' is at its cap"):
        within_caps(capped_run(tmp_path, "stop", {"domain": 0.001}))


def test_a_run_that_was_stopped_before_a_sequence_length_continues_with_more(tmp_path):
    """The cap is reached in the first length; with another cap the rows before it are the same."""
    plan = BatchPlan.from_settings(8, [(16, 9000), (32, None)], train_steps=90)
    changes = {"plan": plan, "at_cap": "stop"}
    stopped = within_caps(make_run(tmp_path, max_epochs={"domain": 0.5}, **changes))
    assert [phase.sequence_length for phase in stopped.plan.phases] == [16]
    more = within_caps(make_run(tmp_path, max_epochs={"domain": 2.0}, **changes))
    assert more.plan.steps == 90
    assert identity(stopped) == identity(more)
    rows = np.arange(stopped.plan.rows)
    np.testing.assert_array_equal(stopped.reader.rows(rows).tokens, more.reader.rows(rows).tokens)


def test_renormalised(tmp_path):
    run = capped_run(tmp_path, "renormalise")
    planned = derive(run)
    # The domain is owed 255 rows at row 500; all later rows are of the other source.
    source = run.reader.rows(np.arange(640)).source
    domain = list(run.reader.names).index("domain")
    assert (source[:500] == domain).sum() == 255
    assert (source[500:] != domain).all()
    assert planned.notices == [
        "source 'domain' is at its cap of 1 epochs after 8.00K tokens: the others take its share"
    ]
    assert planned.sources["domain"].account.epochs == 1.0
    assert planned.sources["general"].account.tokens == 16 * 385
    (row, _) = source_rows(planned)
    assert row == ("domain", "51.00% to 0.00%", "4,080", "4,096", "1.00", "4,080")
    with pytest.raises(
        UsageError, match=r"every source of the blend is at its cap .* raise max_epochs"
    ):
        capped_run(tmp_path, "renormalise", {"domain": 0.5, "general": 0.5})


def test_repeated(tmp_path):
    run = capped_run(tmp_path, "repeat")
    assert derive(run).notices == ["source 'domain' will be read 1.3 times, past its cap of 1"]
    (domain, general) = achieved_rows(run.accounts(40))
    assert domain == ("domain", "50.94%", "2,608", "4,096", "0.64", "2,608")
    assert general[1] == "49.06%"
