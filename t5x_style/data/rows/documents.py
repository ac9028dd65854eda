"""The documents that a row of tokens is made of, by name and place."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5x_style.data.rows.reader import BatchReader
from t5x_style.data.stores.held_out import stored_ids
from t5x_style.data.stores.token_store import TokenStore

# Of one row; a row of short documents may have thousands.
_NAMED = 8


def documents_of_rows(
    reader: BatchReader, stores: Mapping[str, TokenStore], rows: Sequence[int]
) -> list[dict[str, Any]]:
    """Where the tokens of rows come from, in JSON types and without any text.

    Args:
      stores: {source: its train store}, those of the reader.
      rows: global rows counted from 0, all of one sequence length.

    Returns:
      For each row: `row`; `source`; `store`, its folder; `tokens`, the first and the last token in
      the store; `documents`, the number of documents that have one of these tokens; `places`, those
      of the first documents in the store, counted from 0; and `ids`, of those that have one.
    """
    found: list[dict[str, Any]] = []
    sources, starts, length = reader.windows(np.asarray(rows, np.int64))
    for row, source, start in zip(rows, sources.tolist(), starts.tolist(), strict=True):
        name = reader.names[source]
        store, end = stores[name], start + length
        first, last = np.searchsorted(store.document_ends, [start, end], side="right").tolist()
        places = np.arange(first, min(last + 1, first + _NAMED))
        ids = [name for name in stored_ids(store.path, places) if name is not None]
        found.append(
            {
                "row": int(row),
                "source": name,
                "store": str(store.path),
                "tokens": [start, end],
                "documents": last + 1 - first,
                "places": places.tolist(),
            }
            | ({"ids": ids} if ids else {})
        )
    return found
