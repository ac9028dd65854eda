"""The token store: a flat array of token ids with the ends of documents, and its metadata.

A store is a directory, whole or absent:
    tokens.bin         little-endian uint16 (V <= 65,536) or uint32, every document ended by EOS
    document_ends.npy  int64, document i is tokens[document_ends[i - 1] : document_ends[i]]
    documents.parquet  id, date and license of document i, of a source that names such fields
    dropped.parquet    where, id, reason and detail of the documents that were dropped, if any
    extra_bytes.npy    int64 [k, 2], of a validation split whose vocabulary changes texts, see
                       `TokenStore.extra_bytes`
    digests.npy        uint8 [documents, 16], of the text of document i (`document_digest`)
    signatures.npy     uint32 [documents, permutations], if a corpus drops near duplicates
    meta.json          counts, checksums, and the fingerprint of all that it was made from

`t5x_style.data.building.assemble` writes it.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import re
import sys
import weakref
from typing import Any

import numpy as np

from t5x_style.errors import Fault, UsageError
from t5x_style.files import file_digest, locked

# Of the files of a store. A store of another version is built again, in another folder.
FORMAT_VERSION = 3
# Of the tokens and their order, which the fingerprint is over: a run continues on a store that was
# built again with the same one.
TOKENS_VERSION = 1
TOKENS_FILE = "tokens.bin"
ENDS_FILE = "document_ends.npy"
DOCUMENTS_FILE = "documents.parquet"
DROPPED_FILE = "dropped.parquet"
EXTRA_BYTES_FILE = "extra_bytes.npy"
DIGESTS_FILE = "digests.npy"
SIGNATURES_FILE = "signatures.npy"
META_FILE = "meta.json"


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """An open store.

    Attributes:
      path: its directory.
      tokens: [T] uint16 or uint32, mapped from the file, read-only.
      document_ends: [documents] int64, exclusive end of each document in `tokens`.
      meta: source, split, documents, tokens, bytes (that tokens encode), text_bytes (of the text
        before tokenising; None for ids without text, as the next two), lossy_documents (that do not
        decode to themselves), lost_bytes (in which they differ then), skipped (bad records),
        dropped (empty documents), filtered ({filter, or other reason: documents dropped}),
        tokenizer_hash, fingerprint, format_version, checksums, files; where the source names such
        fields, licenses ([[license, documents, tokens], ...], most tokens first) and dates ([first,
        last]).
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
          Fault: its files do not match.
        """
        path = pathlib.Path(path)
        if not (path / META_FILE).is_file():
            raise UsageError(f"{path} is not a token store (it has no {META_FILE})")
        meta = read_meta(path)
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
        for name in meta["checksums"]:
            if not (path / name).is_file():
                raise Fault(f"{path / name} is gone, or {META_FILE} has changed: remove the store")
        found = (path / TOKENS_FILE).stat().st_size
        if found != expected:
            raise Fault(f"{path / TOKENS_FILE} has {found} bytes, its meta.json has {expected}")
        tokens = np.memmap(path / TOKENS_FILE, dtype, mode="r")
        ends = mapped_array(path / ENDS_FILE)
        if ends.dtype != np.int64 or len(ends) != meta["documents"] or ends[-1] != meta["tokens"]:
            raise Fault(f"{path / ENDS_FILE} does not end where {TOKENS_FILE} ends")
        store = cls(path, tokens, ends, meta)
        weakref.finalize(store, os.close, _reader_lock(path / META_FILE))
        return store

    @property
    def num_tokens(self) -> int:
        """T, EOS tokens included."""
        return len(self.tokens)

    def extra_bytes(self) -> np.ndarray:
        """int64 [k, 2]: place in `tokens`, and how many bytes of the text its id has more there.

        That is next to `Tokenizer.token_bytes`, negative for fewer, in the order of places. A store
        of a train split does not know them.
        """
        path = self.path / EXTRA_BYTES_FILE
        return mapped_array(path) if path.is_file() else np.zeros((0, 2), np.int64)

    def verify(self) -> None:
        """Reads every byte, and compares with the checksums of the build.

        Raises:
          Fault: a file has changed since.
        """
        meta = (self.path / META_FILE).read_bytes()
        if self.meta["checksums"].get(META_FILE) != meta_digest(meta):
            raise _changed(self.path / META_FILE)
        for name, expected in self.meta["checksums"].items():
            if name != META_FILE and file_digest(self.path / name) != expected:
                raise _changed(self.path / name)


def _reader_lock(file: pathlib.Path) -> int:
    """A descriptor with a lock that readers share: `prune` removes no store that is open."""
    descriptor = os.open(file, os.O_RDONLY)
    # A file system without locks, or a prune at this moment: then the files are gone in a moment.
    with contextlib.suppress(OSError):
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return descriptor


def read_meta(path: pathlib.Path) -> dict[str, Any]:
    """The meta.json of the store at `path`.

    Raises:
      Fault: it is damaged.
    """
    try:
        meta = json.loads((path / META_FILE).read_text())
        for name, kind in _META_TYPES.items():
            if not isinstance(meta[name], kind):
                raise TypeError(f"{name} = {meta[name]!r}")
        np.dtype(meta["dtype"])
    except (ValueError, KeyError, TypeError) as error:
        raise _changed(path / META_FILE) from error
    return meta


_META_TYPES = {
    "format_version": int,
    "tokenizer_hash": str,
    "dtype": str,
    "tokens": int,
    "documents": int,
    "checksums": dict,
    "files": list,
}


def mapped_array(path: pathlib.Path) -> np.ndarray:
    """The array in one of a store's .npy files, mapped, read-only.

    Raises:
      Fault: it is damaged.
    """
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as error:
        raise _changed(path) from error


def _changed(path: pathlib.Path) -> Fault:
    return Fault(f"{path} has changed since it was built: remove the store")


def meta_digest(content: bytes) -> str:
    """SHA-256 of a meta.json without this checksum itself, which is among its entries."""
    own = rb'("meta\.json": ")[0-9a-f]{64}"'
    return hashlib.sha256(re.sub(own, rb'\1"', content)).hexdigest()


def token_dtype(vocab_size: int) -> np.dtype:
    """The narrower of uint16 and uint32 that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def store_lock(path: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """The lock of a folder that is being built. Prints a line if it has to wait."""

    def waiting() -> None:
        print(f"{path.name}: another process is building it, waiting", file=sys.stderr)

    return locked(path.with_name(f".lock-{path.name}"), waiting)
