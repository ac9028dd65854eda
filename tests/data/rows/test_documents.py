"""Which documents a row is made of, by the tokens of the row itself."""

import numpy as np
import pytest

from t5x_style.data import BatchReader, Blend
from t5x_style.data.rows.documents import documents_of_rows
from t5x_style.data.stores import held_out
from tests.data.store_helpers import write_store


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Two sources; document k of the first has k + 3 tokens of its own, and an id that says k."""
    folder = tmp_path_factory.mktemp("stores")
    numbered = [[100 * k + n for n in range(k % 5 + 3)] for k in range(60)]
    named = write_store(
        folder / "legal", numbered, rows=[{"id": f"file.jsonl:{k}"} for k in range(60)], seed=4
    )
    plain = write_store(folder / "general", [[7_000 + k] * 40 for k in range(9)], seed=5)
    return {"legal": named, "general": plain}


@pytest.mark.parametrize("document_starts", [False, True])
def test_the_documents_of_a_row_are_those_of_its_tokens(stores, document_starts):
    reader = BatchReader(
        Blend.constant({"legal": 0.5, "general": 0.5}),
        stores,
        sequence_lengths=[(0, 12)],
        seed=3,
        document_starts=document_starts,
    )
    rows = list(range(30, 50))
    read = reader.rows(np.array(rows))
    seen = set()
    for found, tokens, source in zip(
        documents_of_rows(reader, stores, rows), read.tokens, read.source, strict=True
    ):
        name = reader.names[source]
        assert found["source"] == name
        assert found["store"] == str(stores[name].path)
        begin, end = found["tokens"]
        store = stores[name]
        np.testing.assert_array_equal(np.sort(store.tokens[begin : end + 1]), np.sort(tokens[:13]))
        ends = [0, *store.document_ends.tolist()]
        inside = [
            place
            for place in range(len(ends) - 1)
            if set(range(ends[place], ends[place + 1])) & set(range(begin, end + 1))
        ]
        assert found["places"] == inside
        assert found["documents"] == len(inside)
        if name == "legal":
            # The tokens of a document say which one it is.
            ids = {f"file.jsonl:{token // 100}" for token in tokens[:13].tolist()}
            assert set(found["ids"]) == ids
        else:
            assert "ids" not in found
        seen.add(name)
    assert seen == {"legal", "general"}


def test_of_a_row_of_many_documents_the_first_are_named(tmp_path):
    store = write_store(tmp_path / "short", [[k, 1] for k in range(2, 60)])
    stores = {"short": store}
    reader = BatchReader(Blend.constant({"short": 1.0}), stores, sequence_lengths=[(0, 60)], seed=0)
    (found,) = documents_of_rows(reader, stores, [0])
    assert found["documents"] in (30, 31)
    first = found["places"][0]
    assert found["places"] == list(range(first, first + 8))


def test_ids_are_read_from_the_groups_that_hold_them(stores, tmp_path):
    """In any order, over borders of groups, the last document included."""
    import pyarrow.parquet

    path = stores["legal"].path / held_out.DOCUMENTS_FILE
    table = pyarrow.parquet.read_table(path)
    pyarrow.parquet.write_table(table, tmp_path / path.name, row_group_size=7)
    right = table["id"].to_pylist()
    places = np.array([59, 0, 6, 7, 13, 14, 7])
    assert held_out.stored_ids(tmp_path, places) == [right[place] for place in places]
