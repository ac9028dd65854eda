"""Token stores of known content for the tests of this room."""

import hashlib
import json
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5x_style.data.building.assemble import assemble
from t5x_style.data.building.parts import PartWriter
from t5x_style.data.stores.token_store import TokenStore


def write_store(
    path: pathlib.Path,
    documents: list[list[int]],
    *,
    seed: int = 0,
    rows: Sequence[dict[str, Any]] = (),
    part_size: int = 10**9,
    **meta,
) -> TokenStore:
    """A store of `documents` (ids, EOS included).

    Args:
      path: of the store.
      documents: ids; an empty list is a document that was dropped.
      seed: of their order.
      rows: what the table of a part says of each, `reason` for one that was dropped.
      part_size: documents in a part.
      **meta: what else its meta.json says.
    """
    folder = path.with_name(f".building-{path.name}")
    folder.mkdir(parents=True)
    starts = range(0, max(len(documents), 1), part_size)
    rows = rows or [{} for _ in documents]
    for number, start in enumerate(starts):
        part = PartWriter(folder, number, dtype=np.dtype("<u4"))
        stop = start + part_size
        for document, row in zip(documents[start:stop], rows[start:stop], strict=True):
            if document:
                digest = hashlib.blake2b(str(document).encode(), digest_size=16).digest()
                plain = {"bytes": len(document) - 1, "digest": digest}
                part.add(np.array(document, np.uint32), plain | row)
            else:
                part.drop(row)
        part.finish({})
    plain = {"source": path.name, "split": "train", "tokenizer_hash": "0" * 64, "files": []}
    assemble(folder, len(starts), dtype=np.dtype("<u4"), seed=seed, meta=plain | meta)
    (folder / "store").rename(path)
    shutil.rmtree(folder)
    return TokenStore.open(path)


def counting_stores(folder: pathlib.Path, sizes: dict[str, int]) -> dict[str, TokenStore]:
    """Train stores by source: the tokens of source k are k * 10^7, k * 10^7 + 1, and so on."""
    return {
        name: write_store(folder / name, [list(range(k * 10**7, k * 10**7 + size))])
        for k, (name, size) in enumerate(sizes.items())
    }


def write_jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)
