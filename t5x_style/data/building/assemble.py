"""Puts the parts of a split together into a store: shuffled, counted and with checksums.

Memory holds some 100 bytes a document (300 with metadata), and one block of ids at a time.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet

from t5x_style.data.building.deduplicate import fingerprints, judge, write_fingerprints
from t5x_style.data.building.parts import OTHER_SPLIT, part_file, tables
from t5x_style.data.cleaning.duplicates import KEPT, WHY, Duplicates
from t5x_style.data.stores.token_store import (
    BLOCK_BYTES,
    DOCUMENTS_FILE,
    DROPPED_FILE,
    ENDS_FILE,
    EXTRA_BYTES_FILE,
    FORMAT_VERSION,
    META_FILE,
    TOKENS_FILE,
    meta_digest,
)
from t5x_style.errors import Fault
from t5x_style.files import file_digest, sync, write_whole

# Ids that are gathered at a time, and files of parts that are open at once.
BLOCK_TOKENS = 1 << 22
OPEN_FILES = 128
# Rows of a Parquet row group. They do not depend on the parts, so that the bytes do not either.
GROUP_ROWS = 1 << 16
METADATA = ("id", "date", "license")
# Reasons without a row in dropped.parquet: kept, or of another split.
NOT_LISTED = ("", "date", OTHER_SPLIT)


@dataclasses.dataclass(frozen=True)
class Documents:
    """All documents of a split in reading order, dropped ones included.

    Attributes:
      part: int32 [n], the part that holds it.
      start: int64 [n], of the ids in that part.
      tokens: int64 [n], 0 where it was dropped.
      bytes, text_bytes, lost: int64 [n]; text_bytes is None if the text was never seen.
      reasons: uint8 [n] into `names`: why a document was dropped.
      names: of the reasons. names[0] = "" is a document that was kept.
    """

    part: np.ndarray
    start: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    text_bytes: np.ndarray | None
    lost: np.ndarray
    reasons: np.ndarray
    names: list[str]


def assemble(
    folder: pathlib.Path,
    parts: int,
    *,
    dtype: np.dtype,
    seed: int,
    meta: Mapping[str, Any],
    duplicates: Duplicates | None = None,
    earlier: Sequence[pathlib.Path] = (),
) -> dict[str, Any]:
    """Makes the store `folder / "store"` of the parts in `folder`. meta.json is written last.

    The documents of all parts in order are permuted by the seed. So the store does not depend on
    how they were cut into parts.

    Args:
      folder: of the parts.
      parts: their number.
      dtype: of the ids.
      seed: of the order of documents, from 0 to 2^64 - 1.
      meta: more entries of meta.json. Messages name `source` and `split`.
      duplicates: drops documents that repeat an earlier one.
      earlier: stores whose documents are earlier ones, too.

    Returns:
      the entries of meta.json.

    Raises:
      Fault: no document is left.
    """
    found = _read(folder, parts)
    kept_so_far = found.reasons == 0
    # The fingerprint that belongs to a document.
    place = np.cumsum(kept_so_far) - 1
    these = fingerprints(folder, parts, kept_so_far, duplicates)
    details = dict[int, str]()
    if duplicates is not None:
        why, details = judge(folder, parts, kept_so_far, these, duplicates, earlier)
        found = _mark_duplicates(found, why)
    kept = np.flatnonzero(found.reasons == 0)
    if not len(kept):
        counts = np.bincount(found.reasons, minlength=len(found.names))
        reasons = zip(found.names, counts, strict=True)
        dropped_counts = ", ".join(f"{n:,} {name}" for name, n in reasons if n)
        raise Fault(
            f"source {meta['source']!r}, split {meta['split']!r}: not one document"
            + (f" is left (dropped: {dropped_counts})" if dropped_counts else "")
        )
    order = kept[np.random.Generator(np.random.Philox(seed)).permutation(len(kept))]

    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    ends = np.cumsum(found.tokens[order])
    np.save(store / ENDS_FILE, ends, allow_pickle=False)
    tokens_digest, blocks = _write_tokens(store / TOKENS_FILE, folder, found, order, dtype)
    checksums = {TOKENS_FILE: tokens_digest, ENDS_FILE: file_digest(store / ENDS_FILE)}
    for name in write_fingerprints(store, these, place[order]):
        checksums[name] = file_digest(store / name)
    whole: dict[str, Any] = {**meta}
    present = _present(folder, parts, (*METADATA, "extra"))
    if "extra" in present:
        starts = ends - found.tokens[order]
        _write_extra_bytes(store / EXTRA_BYTES_FILE, folder, parts, starts, order)
        checksums[EXTRA_BYTES_FILE] = file_digest(store / EXTRA_BYTES_FILE)
    if present.intersection(METADATA):
        whole |= _write_documents(store / DOCUMENTS_FILE, folder, parts, found, order)
        checksums[DOCUMENTS_FILE] = file_digest(store / DOCUMENTS_FILE)
    listed = np.array([name not in NOT_LISTED for name in found.names])[found.reasons]
    if listed.any():
        _write_dropped(store / DROPPED_FILE, folder, parts, listed, found, details)
        checksums[DROPPED_FILE] = file_digest(store / DROPPED_FILE)
    whole |= _counts(found, kept, meta) | {
        "documents": len(kept),
        "tokens": int(ends[-1]),
        "dtype": dtype.str,
        "seed": seed,
        "format_version": FORMAT_VERSION,
        "checksums": checksums | {META_FILE: "0" * 64},
        "blocks": {"bytes": BLOCK_BYTES, "sha256": blocks},
    }
    text = json.dumps(whole, indent=2) + "\n"
    own = f'"{META_FILE}": "'
    text = text.replace(own + "0" * 64, own + meta_digest(text.encode()))
    # If a kill or a power cut leaves meta.json, the other files are on the disk, too.
    for file in store.iterdir():
        sync(file)
    write_whole(store / META_FILE, text)
    return whole


def _read(folder: pathlib.Path, parts: int) -> Documents:
    names = [""]
    columns = collections.defaultdict(list)
    starts_at, last = 0, -1
    for number, batch in tables(folder, parts, ["tokens", "bytes", "text_bytes", "lost", "reason"]):
        starts_at, last = (0 if number != last else starts_at), number
        tokens = batch["tokens"].to_numpy()
        ends = starts_at + np.cumsum(tokens)
        columns["part"].append(np.full(len(tokens), number, np.int32))
        columns["start"].append(ends - tokens)
        columns["tokens"].append(tokens)
        starts_at = int(ends[-1]) if len(ends) else starts_at
        columns["bytes"].append(batch["bytes"].fill_null(0).to_numpy())
        columns["text_bytes"].append(batch["text_bytes"].fill_null(-1).to_numpy())
        columns["lost"].append(batch["lost"].fill_null(0).to_numpy())
        reasons = batch["reason"].fill_null("").dictionary_encode()
        words = reasons.dictionary.to_pylist()
        names += [word for word in words if word not in names]
        codes = np.array([names.index(word) for word in words], np.uint8)
        columns["reasons"].append(codes[reasons.indices.to_numpy()])
    joined = {name: np.concatenate(pieces) for name, pieces in columns.items()}
    if not joined:
        none = np.zeros(0, np.int64)
        return Documents(none, none, none, none, None, none, none, names)
    kept = joined["reasons"] == 0
    text_bytes = joined.pop("text_bytes")
    seen = (text_bytes[kept] >= 0).all()
    return Documents(**joined, text_bytes=text_bytes if seen else None, names=names)


class _PartFiles:
    """The ids of the parts, read at any place. The files used last stay open.

    They are read, not mapped: the pages of a map would count as memory of this process.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.files: collections.OrderedDict[int, int] = collections.OrderedDict()

    def __enter__(self) -> _PartFiles:
        return self

    def __exit__(self, *_: object) -> None:
        while self.files:
            os.close(self.files.popitem()[1])

    def read_into(self, view: memoryview, part: int, offset: int) -> None:
        """Fills `view` with the bytes of a part from `offset` on."""
        file = self.files.get(part)
        if file is None:
            if len(self.files) == OPEN_FILES:
                os.close(self.files.popitem(last=False)[1])
            file = os.open(part_file(self.folder, part, "tokens"), os.O_RDONLY)
            self.files[part] = file
        self.files.move_to_end(part)
        while view:
            size = os.preadv(file, [view], offset)
            if not size:
                raise Fault(f"{part_file(self.folder, part, 'tokens')} is shorter than its table")
            view, offset = view[size:], offset + size


def _write_tokens(
    path: pathlib.Path,
    folder: pathlib.Path,
    found: Documents,
    order: np.ndarray,
    dtype: np.dtype,
) -> tuple[str, list[str]]:
    """Writes the ids of the documents `order`, a block at a time.

    Returns:
      the SHA-256 of the file, and that of each of its pieces of BLOCK_BYTES.
    """
    width = dtype.itemsize
    digest = hashlib.sha256()
    of_blocks = [hashlib.sha256()]
    left = BLOCK_BYTES
    tokens = found.tokens[order]
    ends = np.cumsum(tokens)
    blocks = [np.empty(BLOCK_TOKENS, dtype).view(np.uint8).data for _ in range(2)]
    with (
        _PartFiles(folder) as files,
        open(path, "wb") as output,
        concurrent.futures.ThreadPoolExecutor(1) as writing,
    ):

        def put(held: memoryview) -> None:
            nonlocal left
            digest.update(held)
            output.write(held)
            while held:
                if not left:
                    of_blocks.append(hashlib.sha256())
                    left = BLOCK_BYTES
                of_blocks[-1].update(held[:left])
                held, left = held[left:], left - len(held[:left])

        # While a block is hashed and written, the next one is read.
        written = writing.submit(put, blocks[0][:0])
        for first in range(0, int(ends[-1]), BLOCK_TOKENS):
            last = min(first + BLOCK_TOKENS, int(ends[-1]))
            # The documents in the block. Those at the edges may not be whole.
            begin, end = np.searchsorted(ends, [first, last - 1], side="right")
            documents = slice(begin, end + 1)
            starts = ends[documents] - tokens[documents]
            lows = np.maximum(starts, first)
            sizes = np.minimum(ends[documents], last) - lows
            parts = found.part[order[documents]]
            places = found.start[order[documents]] + lows - starts
            by_part = np.lexsort((places, parts))
            columns = (lows - first, lows - first + sizes, parts, places)
            block = blocks[0]
            reads = zip(*(column[by_part].tolist() for column in columns), strict=True)
            for at, to, part, place in reads:
                files.read_into(block[width * at : width * to], part, width * place)
            written.result()
            written = writing.submit(put, block[: width * (last - first)])
            blocks.reverse()
        written.result()
    return digest.hexdigest(), [block.hexdigest() for block in of_blocks]


def _present(folder: pathlib.Path, parts: int, columns: Sequence[str]) -> set[str]:
    """The columns that have a value for any document."""
    return {
        name
        for _, batch in tables(folder, parts, columns)
        for name in columns
        if batch[name].null_count < len(batch)
    }


def _write_extra_bytes(
    path: pathlib.Path, folder: pathlib.Path, parts: int, starts: np.ndarray, order: np.ndarray
) -> None:
    """Writes `TextBytes.extra` of the documents `order`, whose first ids are at `starts`."""
    table = pyarrow.Table.from_batches([batch for _, batch in tables(folder, parts, ["extra"])])
    cells = table.take(pyarrow.array(order))["extra"].to_pylist()
    found = []
    for start, cell in zip(starts.tolist(), cells, strict=True):
        if cell is not None:
            found.append(np.frombuffer(cell, np.int64).reshape(-1, 2) + np.array([start, 0]))
    np.save(path, np.concatenate([np.zeros((0, 2), np.int64), *found]), allow_pickle=False)


def _write_documents(
    path: pathlib.Path, folder: pathlib.Path, parts: int, found: Documents, order: np.ndarray
) -> dict[str, Any]:
    """Writes id, date and license in the order of the store. Returns their entries of meta.json."""
    table = pyarrow.Table.from_batches(
        [batch for _, batch in tables(folder, parts, METADATA)]
    ).take(pyarrow.array(order))
    pyarrow.parquet.write_table(table, path, row_group_size=GROUP_ROWS)
    facts: dict[str, Any] = {}
    if table["license"].null_count < len(table):
        licenses = table["license"].combine_chunks().dictionary_encode()
        codes = licenses.indices.fill_null(len(licenses.dictionary)).to_numpy()
        documents = np.bincount(codes)
        tokens = np.bincount(codes, weights=found.tokens[order])
        names = [*licenses.dictionary.to_pylist(), None]
        facts["licenses"] = sorted(
            (
                [name, int(count), int(total)]
                for name, count, total in zip(names, documents, tokens, strict=False)
                if count
            ),
            key=lambda row: (-row[2], str(row[0])),
        )
    if table["date"].null_count < len(table):
        dates = pyarrow.compute.min_max(table["date"])
        facts["dates"] = [dates["min"].as_py(), dates["max"].as_py()]
    return facts


def _mark_duplicates(found: Documents, why: np.ndarray) -> Documents:
    """The documents, with those dropped whose `why` (uint8 [n] into `WHY`) is not KEPT."""
    names = [*found.names, *(name for name in WHY[1:] if name not in found.names)]
    codes = np.array([0, *(names.index(name) for name in WHY[1:])], np.uint8)
    reasons = np.where(why == KEPT, found.reasons, codes[why])
    return dataclasses.replace(found, reasons=reasons, names=names)


def _write_dropped(
    path: pathlib.Path,
    folder: pathlib.Path,
    parts: int,
    listed: np.ndarray,
    found: Documents,
    details: Mapping[int, str],
) -> None:
    """Writes a row for each document in `listed` (bool [n]), in reading order.

    `details` are of the documents that were dropped after the parts were made.
    """
    columns = ["where", "id", "reason", "detail"]
    begin = 0
    held: list[Any] = []
    rows = 0
    with contextlib.ExitStack() as closing:
        writer = None
        for _, batch in tables(folder, parts, columns):
            chosen = listed[begin : begin + len(batch)]
            numbers = begin + np.flatnonzero(chosen)
            begin += len(batch)
            batch = batch.filter(pyarrow.array(chosen))
            if not details.keys().isdisjoint(numbers.tolist()):
                batch = _with_reasons(batch, numbers, found, details)
            writer = writer or closing.enter_context(
                pyarrow.parquet.ParquetWriter(path, batch.schema)
            )
            held.append(batch)
            rows += len(batch)
            while rows >= GROUP_ROWS:
                table = pyarrow.Table.from_batches(held)
                writer.write_table(table[:GROUP_ROWS].combine_chunks())
                held, rows = table[GROUP_ROWS:].to_batches(), rows - GROUP_ROWS
        if writer is not None and rows:
            writer.write_table(pyarrow.Table.from_batches(held).combine_chunks())


def _with_reasons(
    batch: Any, numbers: np.ndarray, found: Documents, details: Mapping[int, str]
) -> Any:
    """Rows of dropped documents, with the reasons and details found after the parts were made."""
    reasons = [found.names[code] for code in found.reasons[numbers]]
    words = [
        details.get(n, d)
        for n, d in zip(numbers.tolist(), batch["detail"].to_pylist(), strict=True)
    ]
    for name, values in (("reason", reasons), ("detail", words)):
        column = pyarrow.array(values, batch.schema.field(name).type)
        batch = batch.set_column(batch.schema.get_field_index(name), name, column)
    return batch


def _counts(found: Documents, kept: np.ndarray, meta: Mapping[str, Any]) -> dict[str, Any]:
    by_reason = dict(
        zip(found.names, np.bincount(found.reasons, minlength=len(found.names)), strict=True)
    )
    text_bytes = None if found.text_bytes is None else int(found.text_bytes[kept].sum())
    counts = {
        "bytes": int(found.bytes[kept].sum()),
        "text_bytes": text_bytes,
        "lossy_documents": None if text_bytes is None else int((found.lost[kept] > 0).sum()),
        "lost_bytes": None if text_bytes is None else int(found.lost[kept].sum()),
        "skipped": int(by_reason.pop("bad_record", 0)),
        "dropped": int(by_reason.pop("empty", 0)),
    }
    del by_reason[""]
    filtered = meta.get("filtered", {}) | {name: int(n) for name, n in by_reason.items()}
    return counts | {"filtered": filtered}
