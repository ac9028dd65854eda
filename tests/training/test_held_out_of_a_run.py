"""A run whose validation stores are replaced between two starts, and sources it only watches."""

import dataclasses

import pytest

from t5x_style.errors import UsageError
from t5x_style.reporting import read_derived, read_run
from t5x_style.training import EarlyStopping, derive, train
from t5x_style.training import run as run_module
from tests.model_dir import events
from tests.training.runs import constant, made_up_store, make_run, stores

ADVISE = EarlyStopping(patience_tokens=10**9)


def replaced(name="general", seed=7):
    before = stores()
    held = before.validation | {name: made_up_store(f"{name} anew", 256, seed)}
    return dataclasses.replace(before, validation=held)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Ten steps of a run, evaluated at 0, 5 and 10."""
    model_dir = tmp_path_factory.mktemp("run") / "run"
    train(make_run(model_dir, steps=10, eval_period=5, early_stopping=ADVISE))
    return model_dir


def test_replaced_text_is_an_event_a_notice_and_a_new_beginning(begun):
    digest = read_derived(begun).held_out[-1].stores["general"].tokens_digest
    longer = {"steps": 20, "eval_period": 5, "early_stopping": ADVISE}
    same = make_run(begun, **longer)
    assert (len(same.held_out), list(same.replaced)) == (1, [])
    run = make_run(begun, stores=replaced(), **longer)
    (notice,) = [text for text in derive(run).notices if "was replaced" in text]
    assert "'general' was replaced at step 10" in notice
    # Until there is an evaluation of the new text, the state is that of the old one.
    evaluations = read_run(begun).evaluations
    assert run.plateau(evaluations).step == 10
    train(run)
    (event,) = events(begun, "held_out_replaced")
    assert (event["step"], event["tokens"], event["source"]) == (10, 10 * 128, "general")
    assert (event["old"], event["new"]) == (
        digest,
        run.held_out[-1].stores["general"].tokens_digest,
    )
    assert [e for e in events(begun, "warned") if "'general' was replaced" in e["reason"]]
    # Steps 0 to 10 are of another text: the lowest score is looked for after them.
    evaluations = read_run(begun).evaluations
    assert [line["step"] for line in evaluations] == [0, 5, 10, 15, 20]
    state = run.plateau(evaluations[:4])
    assert (state.best_step, state.since_step) == (15, 15)
    assert make_run(begun, stores=replaced(), **longer).plateau(evaluations).since_step >= 15
    # Without the watched source, nothing begins anew.
    domain = EarlyStopping(10**9, sources=["domain"])
    other = make_run(begun, stores=replaced(), steps=20, early_stopping=domain)
    lowest = min(evaluations, key=lambda line: line["eval/domain/bits_per_byte"])
    assert other.plateau(evaluations).best_step == lowest["step"]
    assert len(read_run(begun).replacements) == 1


def test_a_source_with_a_share_of_0_is_watched_and_has_no_weight(tmp_path):
    both = stores()
    only = dataclasses.replace(
        both, phases=constant({"domain": 1.0}), train={"domain": both.train["domain"]}
    )
    run = make_run(tmp_path, steps=2, stores=only, early_stopping=ADVISE)
    assert run.watched_weights == {"domain": 1.0}
    assert derive(run).held_out[-1].stores.keys() == {"domain", "general"}
    alone = EarlyStopping(1, sources=["general"])
    assert make_run(tmp_path, stores=only, early_stopping=alone).watched_weights == {"general": 1.0}
    with pytest.raises(UsageError, match=r"'general' has a share of 0 .*beside domain"):
        make_run(
            tmp_path, stores=only, early_stopping=EarlyStopping(1, sources=["domain", "general"])
        )
    train(make_run(tmp_path, steps=2, stores=only))
    (first, *_) = read_run(tmp_path).evaluations
    assert {"eval/domain/loss", "eval/general/loss"} <= first.keys()


def test_what_the_initial_weights_were_trained_on_is_told(begun, tmp_path, monkeypatch):
    asked = []

    def seen(trained_on, validation, tokenizer):
        asked.append((list(trained_on), list(validation)))
        return ["3 of the 4 documents of 'general' validation"]

    monkeypatch.setattr(run_module, "seen_by_run", seen)
    assert not make_run(tmp_path / "alone").seen_before
    assert asked == []
    run = make_run(tmp_path / "next", initial_checkpoint_path=str(begun))
    assert asked == [(["domain", "general"], ["domain", "general"])]
    (notice,) = [text for text in derive(run).notices if "held-out" in text]
    assert "INITIAL_CHECKPOINT_PATH was trained on held-out text: 3 of the 4" in notice
    # A run that continues has told it at its beginning.
    assert not make_run(begun, initial_checkpoint_path=str(begun)).seen_before
