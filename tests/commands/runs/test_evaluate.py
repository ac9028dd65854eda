"""The verbs on a trained model: what they refuse, and how they call the rooms, without a model."""

import contextlib
import dataclasses
import pathlib
import types

import pytest

from t5x_style import data, inference, partitioning
from t5x_style.accounting import Architecture, Topology
from t5x_style.commands.runs import evaluate as verb
from t5x_style.commands.runs.generate import generate
from t5x_style.data import Packing, TokenStore
from t5x_style.data.stores import held_out
from t5x_style.errors import UsageError
from t5x_style.reporting.run.held_out_text import HeldOutStore, HeldOutText
from t5x_style.training import evaluation
from tests.plans import made_up_plan

VOCABULARY = types.SimpleNamespace(hash="own", path="own.model", eos_id=1)


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """The calls of the rooms, of a run whose source `legal` alone has a validation split."""
    found = {}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stores/legal").mkdir(parents=True)
    derived = made_up_plan(
        {"legal": 0.5, "web": 0.5}, tokens=32, packing={"windows": "document_starts"}
    )
    held_out = [HeldOutText(-1, 0, {"legal": HeldOutStore("stores/legal")})]
    derived = found["derived"] = dataclasses.replace(derived, held_out=held_out)
    model = types.SimpleNamespace(
        architecture=Architecture(vocab_size=8, layers=1, d_model=8, d_ff=8, heads=2)
    )

    def restore(model_dir, topology, *, step=None, vocabulary=None):
        found["restore"] = (model_dir, topology, step)
        return inference.RestoredModel(derived, VOCABULARY, topology, None, model, {}, 7, None)

    def evaluator(model, mesh, sets, topology, **options):
        found["evaluator"] = (sets, options)
        measures = {"loss": 2.0, "perplexity": 7.4, "bits_per_byte": 1.25, "tokens": 9}
        line = {f"eval/{name}/{key}": value for name in sets for key, value in measures.items()}
        return lambda parameters: line

    monkeypatch.setattr(inference, "restore_model", restore)
    monkeypatch.setattr(evaluation, "Evaluator", evaluator)
    monkeypatch.setattr(partitioning, "in_force", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(data, "evaluation_set", lambda *arguments: arguments)
    monkeypatch.setattr(
        TokenStore, "open", lambda path, *, tokenizer_hash: f"{path} of {tokenizer_hash}"
    )
    monkeypatch.setattr(
        inference,
        "sample",
        lambda *arguments, **options: found.update(sample=options) or ["x", "y"],
    )
    return found


def corpus_of(vocabulary, monkeypatch):
    """A corpus with that vocabulary and two other sources."""
    found = []

    def stores(corpus, *, build, evaluate_only):
        assert evaluate_only
        found.append(build)
        return types.SimpleNamespace(validation={"b": "store b", "a": "store a"})

    def seen(trained_on, validation, tokenizer):
        assert trained_on == {"legal": "stores/legal", "web": "stores/web"}
        assert (list(validation), tokenizer) == (["b", "a"], VOCABULARY)
        return ["3 of the 4 documents of 'a'"]

    monkeypatch.setattr(verb, "shared_stores", stores)
    monkeypatch.setattr(held_out, "seen_by_run", seen)
    return types.SimpleNamespace(tokenizer=vocabulary, cache_dir="stores"), found


def test_text_of_another_vocabulary_is_refused(calls, monkeypatch):
    """Its ids mean other text: the loss would be a number without a meaning."""
    other = types.SimpleNamespace(hash="other", path="other.model")
    corpus, built = corpus_of(other, monkeypatch)
    message = r"path = 'other\.model' is not the vocabulary of run, which is 'own\.model'"
    with pytest.raises(UsageError, match=message):
        verb.evaluate(model_dir="run", corpus=corpus)
    assert built == []


@pytest.mark.parametrize("dry_run", [True, False])
def test_other_sources_are_built_unless_it_is_a_dry_run(calls, monkeypatch, dry_run, capsys):
    corpus, built = corpus_of(types.SimpleNamespace(hash="own", path="a copy"), monkeypatch)
    result = verb.evaluate(model_dir="run", corpus=corpus, dry_run=dry_run)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first == "the run was trained on held-out text: 3 of the 4 documents of 'a'"
    assert built == [not dry_run]
    assert ("evaluator" in calls) != dry_run
    if dry_run:
        assert result == {"model_dir": "run", "step": 7, "sources": ["a", "b"]}
    else:
        assert [row.split() for row in rows[:1] + rows[2:]] == [
            ["source", "loss", "perplexity", "bits_per_byte", "tokens"],
            ["a", "2", "7.4", "1.25", "9"],
            ["b", "2", "7.4", "1.25", "9"],
        ]


def test_the_sources_of_the_run_are_evaluated_as_it_was_trained(calls):
    result = verb.evaluate(
        model_dir="run", step=5, batch_size=4, eval_tokens=99, cache_dir="stores"
    )
    assert calls["restore"] == ("run", Topology(), 5)
    sets, options = calls["evaluator"]
    assert sets == {"legal": ("stores/legal of own", VOCABULARY, 32, 99)}
    assert options == {
        "batch_size": 4, "eos_id": 1, "packing": Packing(windows="document_starts"), "metrics": (),
    }  # fmt: skip
    assert (result["step"], result["eval/legal/bits_per_byte"]) == (7, 1.25)


@pytest.mark.parametrize(
    "store", ["/etc", "stores/legal", "../stores/legal", "run/../stores/legal"]
)
def test_a_plan_of_a_stranger_opens_no_store_that_nobody_named(calls, store):
    """Also a relative one: it would be looked for in the folder of the start."""
    calls["derived"].held_out[-1].stores["legal"] = HeldOutStore(store)
    with pytest.raises(UsageError) as refused:
        verb.evaluate(model_dir="run")
    message, *_ = str(refused.value).splitlines()
    assert message == (
        f"run/plan.json names the validation store of 'legal', {store!r}, outside of run: if it is "
        f"yours, give --cache_dir={pathlib.Path(store).parent}"
    )
    assert "evaluator" not in calls


@pytest.mark.parametrize("store", ["..", "/", "/a/.."])
def test_a_store_is_looked_for_by_its_name_alone(calls, store):
    calls["derived"].held_out[-1].stores["legal"] = HeldOutStore(store)
    with pytest.raises(UsageError, match=r"plan\.json names the validation store of 'legal'"):
        verb.evaluate(model_dir="run", cache_dir="stores")


def test_a_store_in_the_folder_of_the_run_needs_no_flag(calls, tmp_path):
    (tmp_path / "run/kept").mkdir(parents=True)
    calls["derived"].held_out[-1].stores["legal"] = HeldOutStore(str(tmp_path / "run/kept"))
    verb.evaluate(model_dir="run")
    assert calls["evaluator"][0]["legal"][0] == f"{tmp_path}/run/kept of own"


def test_a_run_without_a_validation_split_is_refused(calls, monkeypatch):
    corpus, _ = corpus_of(VOCABULARY, monkeypatch)
    monkeypatch.setattr(held_out, "seen_by_run", lambda *_: [])
    monkeypatch.setattr(
        verb, "shared_stores", lambda *_, **options: types.SimpleNamespace(validation={})
    )
    with pytest.raises(UsageError, match=r"^run: no source has a validation split"):
        verb.evaluate(model_dir="run", corpus=corpus)


def test_each_sample_is_printed_behind_its_prompt(calls, capsys):
    result = generate(model_dir="run", prompt="pro", samples=2, step=5, seed=3, top_p=0.5)
    assert calls["restore"] == ("run", Topology(), 5)
    assert calls["sample"] == {
        "samples": 2, "max_tokens": 128, "temperature": 0.8, "top_p": 0.5, "seed": 3,
    }  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "--- sample 1 of 2, step 7 ---", "prox", "--- sample 2 of 2, step 7 ---", "proy",
    ]  # fmt: skip
    assert result == {"model_dir": "run", "step": 7, "prompt": "pro", "texts": ["x", "y"]}
    del calls["sample"]
    assert generate(model_dir="run", dry_run=True) == {"model_dir": "run", "step": 7}
    assert "sample" not in calls
