"""The token store: one flat array of token ids with its document ends, and what it was made from.

A store is a directory, whole or absent:
    tokens.bin         little-endian uint16 (V <= 65,536) or uint32, every document ended by EOS
    document_ends.npy  int64, document i is tokens[document_ends[i - 1] : document_ends[i]]
    meta.json          counts, hashes, what it was made from
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from t5x_style.errors import Fault, UsageError

FORMAT_VERSION = 1
TOKENS_FILE = "tokens.bin"
ENDS_FILE = "document_ends.npy"
META_FILE = "meta.json"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """An open store.

    Attributes:
      path: its directory.
      tokens: [T] uint16 or uint32, mapped from the file, read-only.
      document_ends: [documents] int64, exclusive end of each document in `tokens`.
      meta: source, split, documents, tokens, bytes (that the tokens stand for), text_bytes (of the
        text before tokenising; None where the text was never seen), skipped (bad records), dropped
        (empty documents), filtered ({filter: documents that it dropped}), tokenizer_hash,
        fingerprint, format_version, checksums, files.
    """

    path: pathlib.Path
    tokens: np.ndarray
    document_ends: np.ndarray
    meta: dict[str, Any]

    @classmethod
    def open(cls, path: str | os.PathLike, *, tokenizer_hash: str | None = None) -> "TokenStore":
        """Maps the store at `path`.

        Raises:
          UsageError: no store there, or one made with another tokenizer than `tokenizer_hash`.
          Fault: its files do not agree with each other.
        """
        path = pathlib.Path(path)
        meta_file = path / META_FILE
        if not meta_file.is_file():
            raise UsageError(f"{path} is not a token store (it has no {META_FILE})")
        meta = json.loads(meta_file.read_text())
        if meta["format_version"] != FORMAT_VERSION:
            raise UsageError(
                f"{path} has store format {meta['format_version']}, this program reads "
                f"{FORMAT_VERSION}: remove it and build it again"
            )
        if tokenizer_hash is not None and meta["tokenizer_hash"] != tokenizer_hash:
            raise UsageError(
                f"{path} was made with another tokenizer ({meta['tokenizer_hash'][:12]}) than the "
                f"one given ({tokenizer_hash[:12]}): its ids would mean other text"
            )
        dtype = np.dtype(meta["dtype"])
        expected = meta["tokens"] * dtype.itemsize
        found = (path / TOKENS_FILE).stat().st_size
        if found != expected:
            raise Fault(f"{path / TOKENS_FILE} has {found} bytes, its meta.json says {expected}")
        tokens = np.memmap(path / TOKENS_FILE, dtype, mode="r")
        ends = np.load(path / ENDS_FILE, mmap_mode="r", allow_pickle=False)
        if len(ends) != meta["documents"] or ends[-1] != meta["tokens"]:
            raise Fault(f"{path / ENDS_FILE} does not end where {TOKENS_FILE} ends")
        return cls(path, tokens, ends, meta)

    @property
    def num_tokens(self) -> int:
        """T, EOS tokens included."""
        return len(self.tokens)

    def verify(self) -> None:
        """Reads every byte and compares with the checksums of the build.

        Raises:
          Fault: a file has changed since.
        """
        for name, expected in self.meta["checksums"].items():
            if file_digest(self.path / name) != expected:
                raise Fault(f"{self.path / name} has changed since it was built: remove the store")


def file_digest(path: str | os.PathLike) -> str:
    """SHA-256 of a file's content, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrower of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class StoreWriter:
    """Takes documents in reading order and lays them down shuffled, atomically.

    Tokens are spooled to a file as they come, then gathered in the shuffled order, so that memory
    holds the lengths of the documents and no more than that.
    """

    def __init__(self, path: pathlib.Path, *, dtype: np.dtype, seed: int):
        """Starts a store at `path`, which must not exist, in a directory beside it."""
        self.path = path
        self.building = path.with_name(f".building-{path.name}")
        # The caller holds the lock of `path`: whatever lies here is of a builder that was killed.
        shutil.rmtree(self.building, ignore_errors=True)
        self.building.mkdir(parents=True)
        self.dtype = dtype
        self.seed = seed
        self.spool = open(self.building / "spool.bin", "wb")  # noqa: SIM115
        self.lengths: list[np.ndarray] = []

    def add(self, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """Appends documents: their ids end to end [sum(lengths)], and their lengths [documents]."""
        self.spool.write(np.ascontiguousarray(tokens, self.dtype).tobytes())
        self.lengths.append(np.asarray(lengths, np.int64))

    def finish(self, meta: Mapping[str, Any]) -> None:
        """Shuffles, writes and renames into place.

        Raises:
          Fault: no document was added.
        """
        self.spool.close()
        lengths = np.concatenate(self.lengths or [np.zeros(0, np.int64)])
        if not len(lengths):
            self.abandon()
            raise Fault(f"source {meta['source']!r}, split {meta['split']!r}: not one document")
        order = np.random.Generator(np.random.Philox(self.seed)).permutation(len(lengths))
        spool = np.memmap(self.building / "spool.bin", self.dtype, mode="r").view(np.ndarray)
        starts = np.cumsum(lengths) - lengths
        digest = hashlib.sha256()
        with open(self.building / TOKENS_FILE, "wb") as file:
            for block in _gathered(spool, starts[order], lengths[order]):
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        ends = np.cumsum(lengths[order])
        np.save(self.building / ENDS_FILE, ends, allow_pickle=False)
        (self.building / "spool.bin").unlink()
        checksums = {
            TOKENS_FILE: digest.hexdigest(),
            ENDS_FILE: file_digest(self.building / ENDS_FILE),
        }
        whole = {
            **meta,
            "documents": len(lengths),
            "tokens": int(ends[-1]),
            "dtype": self.dtype.str,
            "seed": self.seed,
            "format_version": FORMAT_VERSION,
            "checksums": checksums,
        }
        (self.building / META_FILE).write_text(json.dumps(whole, indent=2) + "\n")
        os.rename(self.building, self.path)

    def abandon(self) -> None:
        """Removes what was written."""
        self.spool.close()
        shutil.rmtree(self.building, ignore_errors=True)


def _gathered(spool: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> Iterator[bytes]:
    """The documents at `starts` in turn, some 16 MB of tokens at a time."""
    block: list[np.ndarray] = []
    held = 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        block.append(spool[start : start + length])
        held += length
        if held >= 1 << 23:
            yield np.concatenate(block).tobytes()
            block, held = [], 0
    if block:
        yield np.concatenate(block).tobytes()
