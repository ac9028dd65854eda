"""The store holds what was put in, shuffled by the seed, and refuses what does not belong to it."""

import json
import os

import numpy as np
import pyarrow.parquet
import pytest

from t5x_style.data import TokenStore
from t5x_style.data.building import assemble as assembly
from t5x_style.data.building import parts as build_parts
from t5x_style.data.stores.token_store import token_dtype
from t5x_style.errors import Fault, UsageError
from tests.data.store_helpers import write_store

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


@pytest.mark.parametrize("part_size", [3, 40])
def test_parts_of_any_size_make_the_same_store(tmp_path, monkeypatch, part_size):
    rows = [{"id": str(i), "license": "ab"[i % 2], "reason": None} for i in range(200)]
    documents = list(DOCUMENTS)
    for i in range(50, 150, 3):
        documents[i], rows[i] = [], rows[i] | {"reason": "length"}
    whole = write_store(tmp_path / "whole", documents, rows=rows, source="a")
    # Documents cut by blocks, groups of rows and files cut by their limits.
    monkeypatch.setattr(assembly, "BLOCK_TOKENS", 5)
    monkeypatch.setattr(assembly, "OPEN_FILES", 3)
    monkeypatch.setattr(build_parts, "FLUSH_ROWS", 10)
    monkeypatch.setattr(build_parts, "FLUSH_TOKENS", 40)
    cut = write_store(tmp_path / "cut", documents, rows=rows, source="a", part_size=part_size)
    assert cut.meta == whole.meta
    assert documents_of(cut) == documents_of(whole)
    monkeypatch.setattr(assembly, "GROUP_ROWS", 8)
    grouped = [
        write_store(tmp_path / f"grouped {n}", documents, rows=rows, source="a", part_size=n)
        for n in (part_size, 200)
    ]
    assert grouped[0].meta == grouped[1].meta


def test_ids_that_a_disk_gives_in_small_pieces(tmp_path, monkeypatch):
    """A network file system may give fewer bytes than it is asked for."""
    whole = write_store(tmp_path / "whole", DOCUMENTS, source="a")
    read = os.preadv
    monkeypatch.setattr(
        os, "preadv", lambda file, views, offset: read(file, [views[0][:3]], offset)
    )
    assert write_store(tmp_path / "pieces", DOCUMENTS, source="a").meta == whole.meta
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: 0)
    with pytest.raises(Fault, match=r"part-00000\.tokens is shorter than its table"):
        write_store(tmp_path / "cut", DOCUMENTS)


@pytest.mark.parametrize(
    ("size", "rows", "tokens", "held"),
    [
        (1, 2, 100, [2, 2, 1]),
        (1, 5, 100, [5, 0]),
        (3, 100, 10, [4, 1]),
        (5, 100, 10, [2, 2, 1]),
        (12, 100, 10, [1, 1, 1, 1, 1, 0]),
        (1, 100, 100, [5]),
    ],
)
def test_a_part_holds_few_rows_and_ids_in_memory(tmp_path, monkeypatch, size, rows, tokens, held):
    """Five documents of `size` ids, written whenever there are so many rows or ids."""
    monkeypatch.setattr(build_parts, "FLUSH_ROWS", rows)
    monkeypatch.setattr(build_parts, "FLUSH_TOKENS", tokens)
    part = build_parts.PartWriter(tmp_path, 0, dtype=np.dtype("<u2"))
    for number in range(5):
        part.add(np.full(size, number), {"bytes": size})
    part.finish({})
    batches = [len(batch) for _, batch in build_parts.tables(tmp_path, 1, ["tokens"])]
    assert batches == held
    written = np.fromfile(build_parts.part_file(tmp_path, 0, "tokens"), "<u2")
    assert written.tolist() == np.repeat(range(5), size).tolist()


def test_tables_of_what_is_kept_and_what_was_dropped(tmp_path):
    rows = [{"id": f"doc {i}", "date": f"20{i:02}-01-01", "license": None} for i in range(90)]
    documents = [[10 + i, 1] for i in range(90)]
    for i in range(30):
        rows[i]["license"] = "MIT"
    for i, reason in (
        (3, "length"),
        (40, "bad_record"),
        (41, "empty"),
        (50, "length"),
        (89, "date"),
    ):
        documents[i] = []
        rows[i] |= {"reason": reason, "where": f"file:{i}", "detail": f"why {i}"}
    store = write_store(tmp_path / "store", documents, rows=rows, filtered={"never": 0})
    table = pyarrow.parquet.read_table(store.path / "documents.parquet").to_pylist()
    # Each document holds its number, so the table must name the same one in the same place.
    numbers = [document[0] - 10 for document in documents_of(store)]
    assert [row["id"] for row in table] == [f"doc {i}" for i in numbers]
    assert [row["date"] for row in table] == [f"20{i:02}-01-01" for i in numbers]
    dropped = pyarrow.parquet.read_table(store.path / "dropped.parquet").to_pylist()
    assert [row["where"] for row in dropped] == [f"file:{i}" for i in (3, 40, 41, 50)], "no dates"
    assert [row["reason"] for row in dropped] == ["length", "bad_record", "empty", "length"]
    assert dropped[0] == {"where": "file:3", "id": "doc 3", "reason": "length", "detail": "why 3"}
    meta = store.meta
    assert (meta["documents"], meta["skipped"], meta["dropped"]) == (85, 1, 1)
    assert meta["filtered"] == {"never": 0, "length": 2, "date": 1}
    assert meta["licenses"] == [[None, 56, 112], ["MIT", 29, 58]]
    assert meta["dates"] == ["2000-01-01", "2088-01-01"]
    assert meta["bytes"] == 85


def test_a_store_without_such_fields_has_no_such_files(tmp_path):
    store = write_store(tmp_path / "store", DOCUMENTS)
    names = {"tokens.bin", "document_ends.npy", "digests.npy", "meta.json"}
    assert {path.name for path in store.path.iterdir()} == names == set(store.meta["checksums"])


def test_a_flipped_bit_in_any_file_is_found_and_named(tmp_path):
    rows = [{"id": str(i), "reason": None} for i in range(200)]
    rows[7]["reason"] = "length"
    store = write_store(tmp_path / "store", [*DOCUMENTS[:7], [], *DOCUMENTS[8:]], rows=rows)
    files = sorted(store.path.iterdir())
    assert len(files) == 6
    for file in files:
        content = file.read_bytes()
        for place in {*range(0, len(content), max(len(content) // 60, 1)), len(content) - 1}:
            damaged = bytearray(content)
            damaged[place] ^= 1 << place % 8
            file.write_bytes(damaged)
            # A flipped digit of the format's version reads as another version.
            error = (Fault, UsageError) if file.name == "meta.json" else Fault
            with pytest.raises(error, match=rf"{file.name} |has store format"):
                TokenStore.open(store.path).verify()
        file.write_bytes(content)
        TokenStore.open(store.path).verify()
        file.unlink()
        with pytest.raises((Fault, UsageError), match=rf"{file.name}"):
            TokenStore.open(store.path)
        file.write_bytes(content)


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


def test_no_document_is_no_store(tmp_path):
    with pytest.raises(Fault, match="'store', split 'train': not one document"):
        write_store(tmp_path / "store", [])
    assert not (tmp_path / "store").exists()


def test_narrowest_dtype():
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
