"""What a run derives before step 0, and that its lines say the same at the end."""

import dataclasses
import json
import math
import re
import shutil
import types

import pytest

from t5x_style.accounting.laws import ParametricLaw
from t5x_style.checkpoints.beginning import NOTHING_THERE
from t5x_style.data import BatchPlan, BlendPhase, SharePhase
from t5x_style.errors import UsageError
from t5x_style.partitioning import make_mesh
from t5x_style.reporting import SilentWriter, derived_rows, read_derived, read_run
from t5x_style.training import EarlyStopping, derive, session, train
from t5x_style.training.folder import record_end, write_plan
from t5x_style.training.identity import refuse_another_run
from tests.disk import Disk
from tests.training.runs import ARCHITECTURE, make_run, stores

OWN = ParametricLaw("mine", 1.5, 40.0, 60.0, 0.3, 0.3, "made up", (1e8, 1e12))
FLOPS = ("model_flops_6nd", "model_flops_full", "model_flops_causal", "hardware_flops")


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A run with a law of its own, in batch-size phases: its folder, and what train returned."""
    model_dir = tmp_path_factory.mktemp("audited")
    plan = BatchPlan.from_settings([(4, 256), (8, None)], 16, train_steps=12)
    return model_dir, train(make_run(model_dir, plan=plan, own_law=OWN))


def test_planned_flops_are_those_at_the_end(audited):
    model_dir, result = audited
    plan = json.loads((model_dir / "plan.json").read_text())
    for convention in FLOPS:
        planned = plan["flops_per_token"][convention] * plan["horizon"]["tokens"]
        assert result["line"][convention] == pytest.approx(planned, rel=1e-12)
    for law, targets in plan["laws"].items():
        for key, value in targets.items():
            assert result["line"][f"chinchilla/{law}/{key}"] == value


def test_every_line_holds_the_run_against_each_law(audited):
    lines = read_run(audited[0]).training
    assert [line["remaining_tokens"] for line in lines] == [1280 - line["tokens"] for line in lines]
    for law in ("mine", "hoffmann", "besiroglu"):
        gains = [line[f"chinchilla/{law}/remaining_gain"] for line in lines]
        expected = [line[f"chinchilla/{law}/expected_loss"] for line in lines]
        assert gains == pytest.approx([loss - expected[-1] for loss in expected])
        assert gains[-1] == 0
    assert {line["chinchilla/approach_1/remaining_gain"] for line in lines} == {None}


def test_the_plan_alone_knows_the_law_of_ones_own(audited, tmp_path):
    model_dir, _ = audited
    assert read_run(model_dir).own_law == OWN
    # Another law is no other run, and a finished run is not begun again for it.
    other = dataclasses.replace(OWN, name="theirs")
    assert train(make_run(model_dir, steps=12, own_law=other))["resumed_from"] == 12


@pytest.mark.parametrize("allow_blend_change", [False, True])
def test_a_run_with_an_older_order_of_rows_is_refused(audited, tmp_path, allow_blend_change):
    """plan.json as versions before ROW_ORDER wrote it; a change of the blend is no way around."""
    folder = shutil.copytree(audited[0], tmp_path / "run")
    plan = json.loads((folder / "plan.json").read_text())
    del plan["identity"]["row_order"]
    for version in plan["blend"]:
        version["reached"] = version.pop("capped_at")
    (folder / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(UsageError, match=r"(?s)row_order: None there.*another order of rows"):
        train(make_run(folder, steps=15, allow_blend_change=allow_blend_change))


@pytest.mark.parametrize("other", [{}, {"new": None}])
def test_what_one_run_has_and_the_other_has_not_is_named(other):
    """Whichever of the two has it: a plan.json of another version has other fields."""
    common = {"blend": {"a": 1}, "stores": {"legal": "one"}, "seed": 0}
    runs = [common | {"new": {"size": 3}}, common | other]
    for old, new in (runs, runs[::-1]):
        with pytest.raises(UsageError, match=r"new: .* there, .* asked for"):
            refuse_another_run(old, new, a_start())


def a_start(*changes):
    """What a refusal asks of a run."""
    return types.SimpleNamespace(
        model_dir="run",
        allow_blend_change=False,
        config_changes=[
            dict(zip(("name", "old", "new"), change, strict=True)) for change in changes
        ],
    )


def test_a_refusal_names_the_settings_that_changed_and_no_digest():
    digests = [letter * 64 for letter in "abcd"]
    old = {"blend": {}, "stores": {"law": digests[0], "gone": "e" * 64}, "tokenizer": digests[1]}
    new = {"blend": {}, "stores": {"law": digests[2], "new": "f" * 64}, "tokenizer": digests[3]}
    changed = a_start(("Corpus.duplicates", "None", "@Duplicates()"), ("Corpus.seed", None, "1"))
    with pytest.raises(UsageError) as refused:
        refuse_another_run(old, new, changed)
    message = str(refused.value)
    assert not re.search("[0-9a-f]{12}", message)
    assert "stores.law: its text, vocabulary, seed or cleaning is another than there" in message
    assert "stores.gone: only there" in message
    assert "stores.new: only asked for" in message
    assert "tokenizer: the vocabulary is another than there" in message
    assert "Corpus.duplicates: None there, @Duplicates() now" in message
    with pytest.raises(UsageError, match="no setting differs from the last start: a file that"):
        refuse_another_run(old, new, a_start())


def test_going_on_with_another_law(tmp_path):
    train(make_run(tmp_path, steps=5, own_law=OWN))
    other = dataclasses.replace(OWN, name="theirs")
    line = train(make_run(tmp_path, steps=10, own_law=other))["line"]
    assert line["chinchilla/theirs/expected_loss"] == OWN.loss(
        line["tokens"] / line["tokens_per_param"], line["tokens"]
    )
    assert "chinchilla/mine/expected_loss" not in line
    assert read_run(tmp_path).own_law == other


def test_early_stopping_stands_in_the_table(tmp_path):
    rule = EarlyStopping(patience_tokens=100_000, min_delta=0.01, sources=["general"])
    derived = derive(make_run(tmp_path, early_stopping=rule))
    assert derived.early_stopping["weights"] == {"general": 1.0}
    (row,) = [row for row in derived_rows(derived) if row[0] == "early stopping"]
    assert row == (
        "early stopping",
        "advise",
        "when bits per byte of general 100.0% has not fallen by more than 0.01 in 100K tokens",
    )
    assert derive(make_run(tmp_path)).early_stopping is None


def test_what_cannot_be_watched_or_named_is_refused(tmp_path):
    rule = EarlyStopping(patience_tokens=100, sources=["generl"])
    with pytest.raises(UsageError, match="did you mean 'general'"):
        make_run(tmp_path, early_stopping=rule)
    with pytest.raises(UsageError, match="a law that ships"):
        make_run(tmp_path, own_law=dataclasses.replace(OWN, name="hoffmann"))


@pytest.mark.parametrize(
    "name", ["log_period", "eval_period", "checkpoint_period", "keep_checkpoints"]
)
def test_a_period_is_at_least_one_step(tmp_path, name):
    assert getattr(make_run(tmp_path, **{name: 1}), name) == 1
    with pytest.raises(UsageError, match=f"train.{name} = 0: must be 1 or more"):
        make_run(tmp_path, **{name: 0})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("eval_tokens", -100), ("keep_period", -1), ("z_loss", -1e-4), ("z_loss", math.nan)],
        *[("log_period", -1), ("sources", 0), ("eos_id", -1)],
    ],
)
def test_a_negative_number_where_none_has_a_meaning_is_refused(tmp_path, field, value):
    with pytest.raises(UsageError, match=rf"train\.{field} = {value}: must be \d or more"):
        make_run(tmp_path, **{field: value})


def test_without_tokens_to_evaluate_nothing_is_evaluated_first_or_last(tmp_path):
    run = make_run(tmp_path, steps=2, eval_tokens=0, eval_period=1)
    assert train(run)["evaluation"] == {}
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert not any("eval/" in line for line in lines)
    with pytest.raises(UsageError, match=r"eval_period = 0: .*eval_tokens = 0 switches evalu"):
        make_run(tmp_path, eval_period=0)
    with pytest.raises(UsageError, match=r"early_stopping watches .*eval_tokens = 0 switches"):
        make_run(tmp_path, eval_tokens=0, early_stopping=EarlyStopping(patience_tokens=1))


def test_a_model_has_a_row_for_each_piece_and_may_have_more(tmp_path):
    for size in (128, 129):
        make_run(tmp_path, architecture=dataclasses.replace(ARCHITECTURE, vocab_size=size))
    with pytest.raises(UsageError, match=r"vocab_size = 127 is below .* which has 128 pieces"):
        make_run(tmp_path, architecture=dataclasses.replace(ARCHITECTURE, vocab_size=127))


def test_the_end_of_a_run_without_a_rule_says_nothing(tmp_path):
    run = make_run(tmp_path, early_stopping=EarlyStopping(patience_tokens=1))
    assert run.end(None, 3) == {}
    state = run.plateau([])
    assert state is None
    assert make_run(tmp_path).plateau([{"step": 1}]) is None


def test_the_files_before_step_0_are_on_the_disk(tmp_path, monkeypatch):
    """A resumed run reads plan.json; a power cut after the first checkpoint must not lose it."""
    disk = Disk(monkeypatch)
    run = make_run(tmp_path)
    write_plan(run, derive(run))
    assert disk.has_name(tmp_path / "plan.json")
    assert read_derived(tmp_path).identity == derive(run).identity
    writer = SilentWriter(tmp_path)
    record_end(run, writer, 5, {"step": 1.0}, {}, {}, ())
    assert disk.has_name(tmp_path / "plan.json")
    achieved = read_derived(tmp_path).achieved
    assert (achieved["step"], achieved["tokens"]) == (5, 640)
    assert sum(source["tokens"] for source in achieved["sources"].values()) == 640


def test_shares_of_the_whole_run_and_of_its_ends(tmp_path):
    only, both = {"domain": 1.0}, {"domain": 0.5, "general": 0.5}
    phases = (SharePhase(80 * 16, only, only), SharePhase(None, both, both))
    run = make_run(tmp_path, steps=20, stores=dataclasses.replace(stores(), phases=phases))
    # Of 160 rows, 80 are of one source, and 80 of both in turns.
    assert run.shares == pytest.approx({"domain": 0.75, "general": 0.25})
    found = derive(run).sources
    shares = [(s.first_share, s.account.share, s.last_share) for s in found.values()]
    assert shares == [(1.0, 0.75, 0.5), (0.0, 0.25, 0.5)]


def test_a_source_has_no_share_at_an_end_whose_blend_leaves_it_out(tmp_path):
    only, both = {"domain": 1.0}, {"domain": 0.5, "general": 0.5}
    run = make_run(tmp_path, steps=20)
    (whole,) = run.blend
    for first, last in ((only, both), (both, only)):
        versions = [
            dataclasses.replace(whole, row=row, phases=(BlendPhase(None, shares, shares),))
            for row, shares in ((0, first), (80, last))
        ]
        found = derive(dataclasses.replace(run, blend=versions)).sources["general"]
        expected = (first.get("general", 0.0), last.get("general", 0.0))
        assert (found.first_share, found.last_share) == expected


ASKED, ANOTHER = {"domain": 0.25}, {"domain": 0.5}


@pytest.mark.parametrize(
    ("step", "before", "kinds"),
    [
        (None, None, ["started", "warned", "warned"]),
        (5, None, ["resumed", "warned", "warned"]),
        # The blend of the last start was another one: it changes here, and once.
        (5, ANOTHER, ["resumed", "blend_changed", "warned", "warned"]),
        (5, ASKED, ["resumed", "warned", "warned"]),
        (6, ANOTHER, ["resumed", "warned", "warned"]),
    ],
)
def test_a_start_is_announced_with_its_warnings(tmp_path, step, before, kinds):
    run = make_run(tmp_path)
    derived = dataclasses.replace(derive(run), notices=["one", "two"])
    (old,) = run.blend
    changed = types.SimpleNamespace(step=5, asked=ASKED, shares=old.shares)
    announced = types.SimpleNamespace(
        **{name: getattr(run, name) for name in ("plan", "topology", "config_changes")},
        initial_checkpoint_path=None,
        blend=(old, changed) if step else (old,),
        replaced=(),
        beginning=NOTHING_THERE,
    )
    events = []
    writer = types.SimpleNamespace(event=lambda kind, **fields: events.append((kind, fields)))
    session._announce(announced, derived, before, writer, make_mesh(run.topology), step)
    assert [kind for kind, _ in events] == kinds
    assert [fields["reason"] for _, fields in events[-2:]] == ["one", "two"]
    assert {(fields["step"], fields["tokens"]) for _, fields in events} == {
        (step or 0, (step or 0) * 128)
    }
