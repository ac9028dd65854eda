"""Duplicates among the documents of a split, and of documents in stores built before."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow

from t5x_style.data.building.parts import tables
from t5x_style.data.cleaning.duplicates import Duplicates, Fingerprints, Verdicts
from t5x_style.data.stores.held_out import stored_ids
from t5x_style.data.stores.token_store import (
    DIGESTS_FILE,
    SIGNATURES_FILE,
    mapped_array,
    read_meta,
)

# The signatures of all parts, in the folder of the build: mapped, not held in memory.
ALL_SIGNATURES_FILE = "signatures"


def judge(
    folder: pathlib.Path,
    parts: int,
    kept: np.ndarray,
    these: Fingerprints,
    duplicates: Duplicates,
    earlier: Sequence[pathlib.Path],
) -> tuple[np.ndarray, dict[int, str]]:
    """Finds the documents of the parts that repeat an earlier one.

    Args:
      folder: of the parts.
      parts: their number.
      kept: bool [n], the documents that were not dropped for another reason.
      these: the fingerprints of those, in reading order.
      duplicates: the definition of a duplicate.
      earlier: the stores whose documents come before these.

    Returns:
      (why, details): why is uint8 [n] into `duplicates.WHY`, details is {document: name of the one
      it repeats}.
    """
    before = [_store_fingerprints(path) for path in earlier]
    verdicts = duplicates.verdicts(these, before)
    why = np.zeros(len(kept), np.uint8)
    numbers = np.flatnonzero(kept)
    why[numbers] = verdicts.why
    sizes = [len(fingerprints.digests) for fingerprints in before]
    named = _repeated_names(folder, parts, numbers, verdicts, earlier, sizes)
    repeating = np.flatnonzero(verdicts.why)
    return why, {int(numbers[i]): named[int(verdicts.repeats[i])] for i in repeating}


def write_fingerprints(store: pathlib.Path, these: Fingerprints, order: np.ndarray) -> list[str]:
    """Writes the fingerprints of a store's documents into it. Returns the names of the files.

    Args:
      store: the folder.
      these: the result of `fingerprints`.
      order: int64, those of the documents in the store, in its order.
    """
    np.save(store / DIGESTS_FILE, these.digests[order], allow_pickle=False)
    if these.signatures is None:
        return [DIGESTS_FILE]
    shape = (len(order), these.signatures.shape[1])
    written = np.lib.format.open_memmap(store / SIGNATURES_FILE, "w+", np.uint32, shape)
    for first in range(0, len(order), 1 << 14):
        block = slice(first, first + (1 << 14))
        written[block] = these.signatures[order[block]]
    written.flush()
    return [DIGESTS_FILE, SIGNATURES_FILE]


def fingerprints(
    folder: pathlib.Path, parts: int, kept: np.ndarray, duplicates: Duplicates | None
) -> Fingerprints:
    """The digests of the documents that are kept, in reading order, and signatures if needed."""
    digests = []
    near = duplicates is not None and duplicates.near
    first = 0
    with open(folder / ALL_SIGNATURES_FILE, "wb") as file:
        for _, batch in tables(folder, parts, ["digest", "signature"]):
            chosen = batch.filter(pyarrow.array(kept[first : first + len(batch)]))
            first += len(batch)
            digests.append(_concatenated_bytes(chosen["digest"]).reshape(-1, 16))
            if near:
                file.write(_concatenated_bytes(chosen["signature"]).data)
    signatures = None
    if duplicates is not None and near:
        count = int(kept.sum())
        signatures = np.zeros((0, duplicates.permutations), np.uint32)
        if count:
            signatures = np.memmap(folder / ALL_SIGNATURES_FILE, np.uint32, "r").reshape(count, -1)
    return Fingerprints(np.concatenate([np.zeros((0, 16), np.uint8), *digests]), signatures)


def _concatenated_bytes(column: pyarrow.Array) -> np.ndarray:
    """The bytes of all values end to end, uint8."""
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8)


def _store_fingerprints(path: pathlib.Path) -> Fingerprints:
    signatures = path / SIGNATURES_FILE
    return Fingerprints(
        mapped_array(path / DIGESTS_FILE),
        mapped_array(signatures) if signatures.is_file() else None,
    )


def _repeated_names(
    folder: pathlib.Path,
    parts: int,
    numbers: np.ndarray,
    verdicts: Verdicts,
    earlier: Sequence[pathlib.Path],
    sizes: Sequence[int],
) -> dict[int, str]:
    """{number of a document as in `Verdicts.repeats`: its name}, of documents that are repeated."""
    repeated = np.unique(verdicts.repeats[verdicts.repeats >= 0])
    named: dict[int, str] = {}
    begins = 0
    for path, size in zip(earlier, sizes, strict=True):
        inside = repeated[(repeated >= begins) & (repeated < begins + size)] - begins
        if len(inside):
            meta = read_meta(path)
            for place, name in _stored_names(path, inside):
                named[begins + place] = f"{name} of {meta['source']} {meta['split']}"
        begins += size
    wanted = set(numbers[repeated[repeated >= begins] - begins].tolist())
    first = 0
    for _, batch in tables(folder, parts, ["where", "id"]) if wanted else ():
        for row in range(len(batch)):
            if first + row in wanted:
                name = batch["id"][row].as_py() or batch["where"][row].as_py()
                named[begins + int(np.searchsorted(numbers, first + row))] = str(name)
        first += len(batch)
    return named


def _stored_names(path: pathlib.Path, places: np.ndarray) -> Iterator[tuple[int, str]]:
    """(place, name) of the documents of a store at these places."""
    for place, name in zip(places.tolist(), stored_ids(path, places), strict=True):
        yield place, name if name is not None else f"document {place}"
