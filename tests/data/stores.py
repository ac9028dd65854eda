"""Token stores of known content for the tests of this room."""

import pathlib

import numpy as np

from t5x_style.data.store import StoreWriter, TokenStore


def write_store(
    path: pathlib.Path, documents: list[list[int]], *, seed: int = 0, **meta
) -> TokenStore:
    """A store of `documents` (ids, EOS included)."""
    writer = StoreWriter(path, dtype=np.dtype("<u4"), seed=seed)
    for document in documents:
        writer.add(np.array(document, np.uint32), np.array([len(document)]))
    writer.finish(
        {"source": path.name, "split": "train", "tokenizer_hash": "0" * 64, "bytes": 0} | meta
    )
    return TokenStore.open(path)


def counting_stores(folder: pathlib.Path, sizes: dict[str, int]) -> dict[str, TokenStore]:
    """Train stores by source: the tokens of source k are k * 10^7, k * 10^7 + 1, and so on."""
    return {
        name: write_store(folder / name, [list(range(k * 10**7, k * 10**7 + size))])
        for k, (name, size) in enumerate(sizes.items())
    }
