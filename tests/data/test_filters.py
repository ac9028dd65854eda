"""Filters: what they let through, what is counted, and that stores and vocabularies see them."""

import dataclasses
import json

import pytest

from t5x_style.data import Corpus, Length, Rewrite, Source, ensure_stores, missing_stores
from t5x_style.data.filters import filtered
from t5x_style.data.records import documents
from t5x_style.errors import Fault, UsageError

TEXTS = [
    "short",
    "write to jane.doe@example.org about the contract of sale",
    "this one must go because it is secret, says its author",
    "a text of a good length that passes everything as it is",
    "x" * 500,
]
MASKED = "write to <EMAIL> about the contract of sale"
MODULE = r"""
import re

def mask(text):
    if "secret" in text:
        return None
    return re.sub(r"[\w.]+@[\w.]+", "<EMAIL>", text)

def broken(text):
    return 1 / 0

def number(text):
    return 7

def half(text):
    return "x" + chr(0xD800)
"""


@pytest.fixture
def corpus(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "privacy_of_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    source = Source(
        name="a",
        splits={"train": str(tmp_path / "a.jsonl")},
        filters=[Length(10, 400), Rewrite("privacy_of_test:mask")],
    )
    return Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="a",
        cache_dir=str(tmp_path / "stores"),
        sources=[source],
        workers=1,
    )


def refiltered(corpus, *filters):
    source = dataclasses.replace(corpus.sources[0], filters=filters)
    return dataclasses.replace(corpus, sources=[source])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_holds_what_the_filters_let_through_and_counts_the_rest(corpus, workers, tokenizer):
    corpus = dataclasses.replace(corpus, workers=workers)
    store = ensure_stores(corpus).train["a"]
    ends = store.document_ends.tolist()
    texts = [
        tokenizer.decode(store.tokens[start:end])
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert sorted(texts) == sorted([MASKED, TEXTS[3]])
    assert store.meta["filtered"] == {"length": 2, "privacy_of_test:mask": 1}
    assert sorted(documents(corpus.sources[0], "train")) == sorted(texts)


def test_another_filter_or_another_text_of_its_module_is_another_store(corpus, tmp_path):
    ensure_stores(corpus)
    assert missing_stores(corpus) == []
    assert missing_stores(refiltered(corpus, Length(10, 400)))
    assert missing_stores(refiltered(corpus, Length(11, 400), Rewrite("privacy_of_test:mask")))
    (tmp_path / "privacy_of_test.py").write_text(MODULE.replace("<EMAIL>", "<ADDRESS>"))
    assert missing_stores(corpus)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("privacy_of_test:broken", Fault, "failed on a document that begins 'short': ZeroDivision"),
        ("privacy_of_test:number", Fault, "gave a int, not a text"),
        ("privacy_of_test:half", Fault, "gave half a surrogate pair at character 1"),
        ("privacy_of_test:maks", UsageError, "no function 'maks'; did you mean 'mask'"),
        ("privacy_off_test:mask", UsageError, "no module 'privacy_off_test'"),
    ],
)
def test_a_function_that_fails_is_named(corpus, tmp_path, function, error, message, workers):
    corpus = dataclasses.replace(refiltered(corpus, Rewrite(function)), workers=workers)
    with pytest.raises(error, match=message):
        ensure_stores(corpus)
    assert not list(tmp_path.glob("stores/a-*")), "something was left that looks like a store"


def test_filters_follow_each_other():
    assert filtered([Rewrite("textwrap:dedent"), Length(0, 3)], "    abc") == ("abc", "")
    assert filtered([Length(0, 3), Rewrite("textwrap:dedent")], "    abc") == (None, "length")


def test_declarations_that_cannot_be():
    with pytest.raises(UsageError, match="below min_characters = 5"):
        Length(5, 4)
    with pytest.raises(UsageError, match="write 'module:function'"):
        Rewrite("module.function")


def test_a_corpus_goes_to_the_process_that_builds_and_back(corpus):
    assert list(Corpus.from_json(corpus.to_json()).sources[0].filters) == list(
        corpus.sources[0].filters
    )
