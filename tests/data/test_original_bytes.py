"""Bits per byte are of the bytes of the original text, whatever a vocabulary does to it."""

import dataclasses
import itertools

import numpy as np
import pytest

from t5x_style.commands.corpora.cache import _facts
from t5x_style.data import (
    Corpus,
    Duplicates,
    Source,
    Tokenizer,
    TokenStore,
    ensure_stores,
    evaluation_set,
)
from t5x_style.data.building import parts
from t5x_style.data.building.assemble import assemble
from tests.data.store_helpers import write_jsonl
from tests.data.tokenizers.test_text_bytes import normalising

# Twelve bytes for three of the text; nine spaces too many; and a text that stays as it is.
ADDS, REMOVES, KEEPS = "the ㍿", "the" + " " * 10 + "fox", "the quick brown fox"
TEXTS = [ADDS, REMOVES, KEEPS]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """{vocabulary: Stores} of the three texts, for training and for validation."""
    folder = tmp_path_factory.mktemp("original")
    splits = {
        "train": write_jsonl(folder / "train.jsonl", ["is trained on", *map(str.upper, TEXTS)]),
        "validation": write_jsonl(folder / "validation.jsonl", TEXTS),
    }
    found = {}
    lossy = normalising(folder)
    for name, tokenizer in (("lossy", lossy), ("bytes", Tokenizer("bytes"))):
        corpus = Corpus(
            tokenizer, "a", str(folder / "stores"), [Source(name="a", splits=splits)], workers=1
        )
        found[name] = ensure_stores(corpus)
    # The second of two equal texts is dropped.
    twice = {
        "train": write_jsonl(folder / "more.jsonl", ["other text"]),
        "validation": write_jsonl(folder / "twice.jsonl", [ADDS, *TEXTS]),
    }
    corpus = dataclasses.replace(
        corpus,
        tokenizer=lossy,
        sources=[Source(name="a", splits=twice)],
        duplicates=Duplicates(near=False),
    )
    found["cleaned"] = ensure_stores(corpus)
    return found


def test_what_is_lost_is_counted_and_never_offset(stores):
    """A net sum has nine bytes more and nine fewer: nothing lost."""
    (lossy, whole) = (stores[name].validation["a"] for name in ("lossy", "bytes"))
    facts = _facts(lossy)
    assert facts["lossy documents"] == 2
    assert facts["lost bytes"] == (3 + 12) + 9
    assert facts["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert facts["bytes/token"] == facts["bytes"] / facts["tokens"]
    facts = _facts(whole)
    assert (facts["lossy documents"], facts["lost bytes"]) == (0, 0)


def test_bits_per_byte_divide_by_the_bytes_of_the_documents(stores):
    for name in ("lossy", "bytes", "cleaned"):
        rows = evaluation_set(stores[name].validation["a"], stores[name].tokenizer, 8)
        assert rows.bytes == sum(len(text.encode()) for text in TEXTS)


def test_of_a_document_that_is_cut_they_are_the_bytes_of_its_first_ids(stores):
    """What the ids at hand were made of: it grows to the document's own bytes and no further."""
    store, tokenizer = stores["lossy"].validation["a"], stores["lossy"].tokenizer
    ends = [0, *store.document_ends.tolist()]
    in_order = []
    for begin, end in itertools.pairwise(ends):
        ids = np.array(store.tokens[begin : end - 1], np.int32)
        (text,) = (t for t in TEXTS if tokenizer.encode_array(t).tolist() == ids.tolist())
        in_order.append(text)
    sizes = [
        evaluation_set(store, tokenizer, 4, max_tokens=n).bytes for n in range(1, ends[-1] + 1)
    ]
    assert sizes == sorted(sizes)
    before = 0
    for text, end in zip(in_order, ends[1:], strict=True):
        before += len(text.encode())
        assert sizes[end - 1] == before
    begin = ends[in_order.index(KEEPS)]
    # The first id of the text that stays is the space put before it, alone or with the word.
    before = sizes[begin - 1] if begin else 0
    ids = store.tokens[begin : begin + 4].tolist()
    assert [size - before for size in sizes[begin : begin + 4]] == [
        len(tokenizer.decode(ids[:n]).encode()) for n in range(1, 5)
    ]


def test_only_a_validation_store_of_a_vocabulary_that_changes_text_has_the_file(stores):
    for name, split, has in (
        ("lossy", "validation", True),
        ("lossy", "train", False),
        ("bytes", "validation", False),
    ):
        store = getattr(stores[name], split)["a"]
        assert (store.path / "extra_bytes.npy").exists() == has
        assert ("extra_bytes.npy" in store.meta["checksums"]) == has
        store.verify()


@pytest.mark.parametrize("split", ["train", "validation"])
def test_the_space_before_a_text_that_only_ids_are_known_of_is_no_text(
    tmp_path, monkeypatch, split
):
    """A seqio Task of a vocabulary such as T5's: its ids decode without their first space."""
    tokenizer = normalising(tmp_path)
    ids = [np.append(tokenizer.encode_array(text), 1) for text in ("the fox", "quick")]
    monkeypatch.setattr(parts, "_task_documents", lambda job, corpus: ids)
    corpus = Corpus(tokenizer, "task", str(tmp_path), mixture_or_task_module="their.tasks")
    parts.build_part(parts.Job(corpus.to_json(), "task", split, str(tmp_path), 0, None))
    meta = {"source": "task", "split": split, "tokenizer_hash": tokenizer.hash, "files": []}
    assemble(tmp_path, 1, dtype=np.dtype("<u2"), seed=0, meta=meta)
    store = TokenStore.open(tmp_path / "store")
    assert store.meta["bytes"] == len("the fox") + len("quick")
    assert (store.meta["text_bytes"], store.meta["lossy_documents"]) == (None, None)
    if split == "validation":
        assert evaluation_set(store, tokenizer, 4).bytes == len("the fox") + len("quick")
