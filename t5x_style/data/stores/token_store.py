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
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from t5x_style.errors import Fault, UsageError
from t5x_style.files import locked

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
# meta.json has a checksum for so many bytes of tokens.bin each, by which damage has a place.
BLOCK_BYTES = 1 << 26
# Bytes that a verification reads at a time.
READ_BYTES = 1 << 20


class StoreChanged(Fault):
    """A store is not what was built: the message names the file, and the place if it is known."""

    event = "store_changed"


class Piece(NamedTuple):
    """Bytes of a store that have a checksum of their own.

    Attributes:
      file: its name.
      first, end: the bytes, `end` exclusive.
      digest: their SHA-256.
      is_block: whether they are one of several pieces of the file.
    """

    file: str
    first: int
    end: int
    digest: str
    is_block: bool


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
        tokenizer_hash, fingerprint, format_version, checksums, blocks (bytes, and the SHA-256 of
        each; an older store has none), files; where the source names such
        fields, licenses ([[license, documents, tokens], ...], most tokens first) and dates ([first,
        last]).
      opened: tokens.bin as it was when it was mapped; None for arrays that no file is behind.
    """

    path: pathlib.Path
    tokens: np.ndarray
    document_ends: np.ndarray
    meta: dict[str, Any]
    opened: os.stat_result | None = None

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
        with open(path / TOKENS_FILE, "rb") as file:
            opened = os.fstat(file.fileno())
            tokens = np.memmap(file, dtype, mode="r")
        ends = mapped_array(path / ENDS_FILE)
        if ends.dtype != np.int64 or len(ends) != meta["documents"] or ends[-1] != meta["tokens"]:
            raise Fault(f"{path / ENDS_FILE} does not end where {TOKENS_FILE} ends")
        store = cls(path, tokens, ends, meta, opened)
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

    def check_ids(self, first: int, end: int, vocab_size: int, where: str = "") -> None:
        """Refuses ids that the vocabulary does not have among tokens `first` to `end` - 1.

        Raises:
          StoreChanged: names the first of them, its document, and `where`.
        """
        wrong = np.flatnonzero(self.tokens[first:end] >= vocab_size)
        if len(wrong):
            place = first + int(wrong[0])
            document = int(np.searchsorted(self.document_ends, place, side="right"))
            raise changed(
                self.path / TOKENS_FILE,
                f": token {place:,}, in document {document:,} of {self.meta.get('source')!r}{where}"
                f", is {int(self.tokens[place]):,}, and the vocabulary has {vocab_size:,} ids",
            )

    def pieces(self, name: str) -> list[Piece]:
        """The pieces of a file of the store, in order; none if the store has no such file."""
        if name not in self.meta["checksums"]:
            return []
        blocks = self.meta.get("blocks")
        if name != TOKENS_FILE or blocks is None:
            size = (self.path / name).stat().st_size
            if name == TOKENS_FILE:
                size = self.tokens.nbytes
            return [Piece(name, 0, size, self.meta["checksums"][name], is_block=False)]
        size, step = self.tokens.nbytes, blocks["bytes"]
        return [
            Piece(name, first, min(first + step, size), digest, is_block=True)
            for first, digest in zip(range(0, size, step), blocks["sha256"], strict=True)
        ]

    def verify(self) -> None:
        """Reads every byte, and compares with the checksums of the build.

        Raises:
          StoreChanged: a file has changed since; names it, and the block.
        """
        # The first has the checksums of the others.
        for name in sorted(self.meta["checksums"], key=META_FILE.__ne__):
            with open(self.path / name, "rb") as file:
                for piece in self.pieces(name):
                    self.verify_piece(piece, file.fileno())

    def verify_piece(
        self, piece: Piece, descriptor: int, read_on: Callable[[int], bool] = bool
    ) -> None:
        """Reads the bytes of a piece, and compares them with the checksum.

        Args:
          descriptor: of the open file.
          read_on: called with the number of bytes after each read; false ends it unverified.

        Raises:
          StoreChanged: they have changed.
        """
        path = self.path / piece.file
        if piece.file == META_FILE:
            if meta_digest(os.pread(descriptor, piece.end + 1, 0)) != piece.digest:
                raise changed(path)
            return
        digest, at = hashlib.sha256(), piece.first
        buffer = memoryview(bytearray(READ_BYTES))
        while at < piece.end:
            read = os.preadv(descriptor, [buffer[: piece.end - at]], at)
            if not read:
                break  # the file was cut
            digest.update(buffer[:read])
            at += read
            if not read_on(read):
                return
        # The verification is its only reader: it takes no memory from what others read.
        os.posix_fadvise(descriptor, piece.first, at - piece.first, os.POSIX_FADV_DONTNEED)
        if digest.hexdigest() != piece.digest:
            last = piece.end - 1
            raise changed(path, f" in bytes {piece.first:,} to {last:,}" if piece.is_block else "")


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
        size = meta["tokens"] * np.dtype(meta["dtype"]).itemsize
        blocks = meta.get("blocks")
        if blocks is not None and -(-size // blocks["bytes"]) != len(blocks["sha256"]):
            raise ValueError(f"{len(blocks['sha256'])} blocks of {blocks['bytes']} bytes")
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise changed(path / META_FILE) from error
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
        raise changed(path) from error


def changed(path: pathlib.Path, how: str = "") -> StoreChanged:
    """The error about a file of a store; `how` begins with a space or a colon."""
    return StoreChanged(f"{path} has changed since it was built{how}: remove the store")


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
