"""The store holds what was put in, shuffled by the seed, and refuses what does not belong to it."""

import json

import numpy as np
import pytest

from t5x_style.data import TokenStore
from t5x_style.data.store import StoreWriter, token_dtype
from t5x_style.errors import Fault, UsageError
from tests.data.stores import write_store

DOCUMENTS = [[10 * i + j for j in range(i % 7)] + [1] for i in range(200)]


def documents_of(store):
    return [part.tolist() for part in np.split(store.tokens, store.document_ends)[:-1]]


def test_documents_come_back_whole_and_shuffled(tmp_path):
    store = write_store(tmp_path / "store", DOCUMENTS, seed=5)
    found = documents_of(store)
    assert sorted(found) == sorted(DOCUMENTS)
    assert found != DOCUMENTS
    assert store.num_tokens == sum(map(len, DOCUMENTS)) == store.meta["tokens"]
    assert store.meta["documents"] == 200
    assert documents_of(write_store(tmp_path / "again", DOCUMENTS, seed=5)) == found
    assert documents_of(write_store(tmp_path / "other", DOCUMENTS, seed=6)) != found
    store.verify()
    assert not store.tokens.flags.writeable


def test_another_tokenizer_is_refused(tmp_path):
    path = write_store(tmp_path / "store", DOCUMENTS).path
    TokenStore.open(path, tokenizer_hash="0" * 64)
    with pytest.raises(UsageError, match="made with another tokenizer"):
        TokenStore.open(path, tokenizer_hash="f" * 64)


def test_damage_is_found(tmp_path):
    store = write_store(tmp_path / "store", DOCUMENTS)
    tokens_file = store.path / "tokens.bin"
    content = bytearray(tokens_file.read_bytes())
    content[100] ^= 1
    tokens_file.write_bytes(content)
    with pytest.raises(Fault, match=r"tokens\.bin has changed"):
        TokenStore.open(store.path).verify()
    tokens_file.write_bytes(content[:-4])
    with pytest.raises(Fault, match=r"tokens\.bin has"):
        TokenStore.open(store.path)
    (store.path / "meta.json").unlink()
    with pytest.raises(UsageError, match="not a token store"):
        TokenStore.open(store.path)


def test_another_format_is_refused(tmp_path):
    path = write_store(tmp_path / "store", DOCUMENTS).path
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"format_version": 0}))
    with pytest.raises(UsageError, match="format 0"):
        TokenStore.open(path)


def test_no_document_leaves_nothing(tmp_path):
    writer = StoreWriter(tmp_path / "store", dtype=np.dtype("<u2"), seed=0)
    with pytest.raises(Fault, match="'empty', split 'train': not one document"):
        writer.finish({"source": "empty", "split": "train"})
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_was_left_half_is_not_there(tmp_path):
    StoreWriter(tmp_path / "store", dtype=np.dtype("<u2"), seed=0).add([1, 2, 3], [3])
    assert not (tmp_path / "store").exists()
    store = write_store(tmp_path / "store", DOCUMENTS)
    assert store.meta["documents"] == 200
    assert [entry.name for entry in tmp_path.iterdir()] == ["store"]


def test_narrowest_dtype():
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
