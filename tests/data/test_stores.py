"""Stores that are built when they must be, reused when they may be, and never half there."""

import dataclasses
import os
import pathlib
import sys

import numpy as np
import pytest

from t5x_style.data import Corpus, SharePhase, Source, ensure_stores, missing_stores
from t5x_style.data.records import documents
from t5x_style.data.vocabulary import train_tokenizer
from t5x_style.errors import UsageError
from tests.data.stores import write_jsonl


@pytest.fixture
def corpus(tokenizer, tmp_path):
    """Two small sources, one without a validation split."""
    legal = write_jsonl(
        tmp_path / "legal.jsonl", [f"Clause {i} of the licence." for i in range(300)]
    )
    general = write_jsonl(tmp_path / "general.jsonl", [f"Country {i}\n\u2581" for i in range(200)])
    return Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="blend",
        cache_dir=str(tmp_path / "stores"),
        sources=[
            Source(name="legal", splits={"train": legal, "validation": legal}),
            Source(name="general", splits={"train": general}),
        ],
        mixtures={"blend": {"legal": 0.51, "general": 0.49}},
        workers=1,
    )


def texts_of(store, tokenizer):
    assert (store.tokens[store.document_ends - 1] == tokenizer.eos_id).all()
    parts = np.split(store.tokens, store.document_ends)[:-1]
    return [tokenizer.decode(part[:-1]) for part in parts]


def builds_in(folder):
    """{store: time of its build}"""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("*/meta.json")}


def test_stores_hold_the_documents(corpus, tokenizer):
    stores = ensure_stores(corpus)
    shares = {"legal": 0.51, "general": 0.49}
    assert stores.phases == (SharePhase(None, shares, shares),)
    assert list(stores.train) == ["legal", "general"]
    assert list(stores.validation) == ["legal"]
    for source in corpus.sources:
        store = stores.train[source.name]
        expected = list(documents(source, "train"))
        found = texts_of(store, tokenizer)
        assert sorted(found) == sorted(expected)
        assert found != expected, "shuffled"
        assert store.meta["bytes"] == sum(len(text.encode()) for text in expected)
        assert store.meta["text_bytes"] == store.meta["bytes"]
        assert store.meta["documents"] == len(expected)
    heavy = {"tensorflow", "seqio", "tensorflow_datasets"} & set(sys.modules)
    assert not heavy, heavy


def test_reused_as_long_as_it_matches(corpus, embedded, tmp_path):
    folder = pathlib.Path(corpus.cache_dir)
    assert [(plan.task, plan.split) for plan in missing_stores(corpus)] == [
        ("legal", "train"),
        ("legal", "validation"),
        ("general", "train"),
    ]
    assert not folder.exists(), "asking leaves nothing behind"
    with pytest.raises(UsageError, match=r"missing .*legal train, .*t5x-style cache"):
        ensure_stores(corpus, build=False)
    ensure_stores(corpus)
    first = builds_in(folder)
    ensure_stores(corpus, build=False)
    (tmp_path / "general.jsonl").touch()
    (tmp_path / "legal.jsonl").rename(tmp_path / "moved.jsonl")
    moved = Source(
        name="legal", splits={s: str(tmp_path / "moved.jsonl") for s in ("train", "validation")}
    )
    corpus = dataclasses.replace(corpus, sources=[moved, corpus.sources[1]])
    ensure_stores(corpus)
    assert builds_in(folder) == first, "touched and moved, but with the same content"

    content = (tmp_path / "general.jsonl").read_text().replace("Country 7\\n", "Kountry 7\\n")
    stamp = (tmp_path / "general.jsonl").stat()
    (tmp_path / "general.jsonl").write_text(content)
    os.utime(tmp_path / "general.jsonl", ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    assert [plan.task for plan in missing_stores(corpus)] == ["general"]

    for changed in ({"seed": 1}, {"tokenizer": another_tokenizer(embedded, tmp_path)}):
        assert len(missing_stores(dataclasses.replace(corpus, **changed))) == 3


def another_tokenizer(embedded, tmp_path):
    texts = {"a": documents(embedded["general"], "validation")}
    return train_tokenizer(
        texts, {"a": 1.0}, vocab_size=400, path=tmp_path / "other.model", sample_bytes=50_000
    )
