"""Rows of tokens by index: row n follows from the stores, the blend, the seed and n alone."""

import bisect
import collections
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from t5x_style.accounting.planner.sources import FREE_EPOCHS
from t5x_style.data.blend.blend import Blend
from t5x_style.data.rows.windows import WindowRun, lay_out_windows
from t5x_style.data.stores.token_store import TokenStore
from t5x_style.errors import UsageError

# Rows whose places are computed together: some 2 ms of index arithmetic for 4,096 rows. A batch of
# a few rows then costs a look-up and a copy.
BLOCK_ROWS = 4096
ROUNDS = 6


class Rows(NamedTuple):
    """Rows of tokens.

    Attributes:
      tokens: int32 [n, S + 1]; row i predicts tokens[i, 1:] from tokens[i, :-1]. Windows that
        respect document starts are int32 [n, S + 2], see `split_position`.
      source: int32 [n] into the reader's names.
      split_position: None, or int32 [n]. A window is split at its first EOS, and the second part,
        which begins with that EOS, comes first. Let z be the S + 2 ids and J the position. The
        inputs at positions p < J are z[p], and those from J on are z[p + 1]; each predicts the id
        after it. A window without a split has J = S, and its last id has no meaning.
    """

    tokens: np.ndarray
    source: np.ndarray
    split_position: np.ndarray | None


class BatchReader:
    """Reads training rows; holds no position, so there is nothing to save or to restore.

    A source of T tokens has W = (T - 1) // S windows of S + 1 tokens at stride S. Each epoch
    predicts each token once, except fewer than S tokens; the next epoch has another offset and
    includes them. Each epoch reads the windows in a permutation of its own.

    Attributes:
      names: the sources, in the order in which `rows` numbers them.
      blend: the order of rows over sources.
    """

    def __init__(
        self,
        blend: Blend,
        stores: Mapping[str, TokenStore],
        *,
        sequence_lengths: Sequence[tuple[int, int]],
        seed: int,
        document_starts: bool = False,
        vocab_size: int | None = None,
    ):
        """Lays out the windows of every source.

        Args:
          blend: of the sources.
          stores: {source: its train store}.
          sequence_lengths: (first row, S), in order, from row 0. From that row on, each row
            predicts S tokens.
          seed: of the permutations of windows.
          document_starts: whether a window is rotated to begin where its first document begins;
            see `Rows.split_position`.
          vocab_size: ids are below it; None: they are not looked at.

        Raises:
          UsageError: a source with fewer than S + 1 tokens.
        """
        self.blend = blend
        self.names = blend.names
        self.sequence_lengths = tuple(sequence_lengths)
        self._document_starts = document_starts
        self._vocab_size = vocab_size
        self._stores = [stores[name] for name in self.names]
        # A plain view: slicing an np.memmap costs three times the copy of a row.
        self._tokens = [stores[name].tokens.view(np.ndarray) for name in self.names]
        self._ends = [stores[name].document_ends.view(np.ndarray) for name in self.names]
        self._sizes = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self._keys = np.array([_key(seed, name) for name in self.names], np.uint64)
        self._runs = lay_out_windows(blend, self._sizes, self.sequence_lengths, self._offset)
        self._first_rows = [run.first for run in self._runs]
        self._resolved: collections.OrderedDict[tuple[int, int], _Places] = (
            collections.OrderedDict()
        )

    def rows(self, indices: np.ndarray) -> Rows:
        """The rows at `indices`, any rows in any order, all of one sequence length.

        Args:
          indices: int64 [n], global rows counted from 0: batch b of B rows is b B to b B + B - 1.

        Raises:
          ValueError: rows of several sequence lengths.
          StoreChanged: an id that the vocabulary does not have.
        """
        indices = np.asarray(indices, np.int64)
        number = self._length_of(indices)
        length = self.sequence_lengths[number][1]
        source, start, rotation = self._places(number, indices)
        if rotation is None:
            width = length + 1
            batch = np.empty((len(indices), width), np.int32)
            tokens = self._tokens
            for row, (i, first) in enumerate(zip(source.tolist(), start.tolist(), strict=True)):
                batch[row] = tokens[i][first : first + width]
            self._check_ids(batch, indices, source, start, length)
            return Rows(batch, source, None)
        batch = np.zeros((len(indices), length + 2), np.int32)
        places = zip(source.tolist(), start.tolist(), rotation.tolist(), strict=True)
        for row, (i, first, at) in enumerate(places):
            ids, end = self._tokens[i], first + length + 1
            batch[row, : end - at] = ids[at:end]
            if at > first:
                batch[row, end - at :] = ids[first : at + 1]
        self._check_ids(batch, indices, source, start, length)
        split = np.where(rotation > start, start + length - rotation, length).astype(np.int32)
        return Rows(batch, source, split)

    def _check_ids(
        self,
        batch: np.ndarray,
        indices: np.ndarray,
        source: np.ndarray,
        start: np.ndarray,
        length: int,
    ) -> None:
        """Refuse ids that the vocabulary does not have. The largest of uint32 is negative here."""
        if self._vocab_size is None or batch.view(np.uint32).max(initial=0) < self._vocab_size:
            return
        for row, i, first in zip(*(x.tolist() for x in (indices, source, start)), strict=True):
            where = f" and row {row:,} of the run"
            self._stores[i].check_ids(first, first + length + 1, self._vocab_size, where)

    def windows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """The source int32 [n] and the first token int64 [n] of rows, and their length S.

        A row has S + 1 tokens of its source's store, also where it is split.

        Args:
          indices: as `rows` takes them.
        """
        indices = np.asarray(indices, np.int64)
        number = self._length_of(indices)
        source, start, _ = self._places(number, indices)
        return source, start, self.sequence_lengths[number][1]

    def tokens_by_source(self, rows: int) -> np.ndarray:
        """int64 [sources]: tokens that the first `rows` rows predict."""
        return np.sum([given * run.length for run, given in self._given(rows)], axis=0)

    def epochs(self, rows: int) -> np.ndarray:
        """float64 [sources]: how often the first `rows` rows read each source."""
        return np.sum([given / run.windows for run, given in self._given(rows)], axis=0)

    def tokens_of_epoch(self) -> np.ndarray:
        """int64 [sources]: the fewest tokens that one epoch of each source predicts."""
        return np.min([run.windows * run.length for run in self._runs], axis=0)

    def check_horizon(self, total_rows: int, caps: Mapping[str, float] | None) -> list[str]:
        """A warning for each source that the run repeats past the free epochs.

        Args:
          total_rows: of the run.
          caps: {source: most epochs}; None: without a limit.

        Raises:
          UsageError: a source would be read more often than its cap.
        """
        warnings = []
        needed = self.tokens_by_source(total_rows)
        for name, tokens, epochs, held in zip(
            self.names, needed, self.epochs(total_rows), self.tokens_of_epoch(), strict=True
        ):
            if caps is not None and epochs > caps[name]:
                raise UsageError(
                    f"source {name!r} would be read {epochs:.1f} times (it has {held:,} tokens, "
                    f"its share of the run is {tokens:,}); the cap is {caps[name]:g} epochs: "
                    f"shorten the run, lower its share, raise max_epochs, or set AT_CAP"
                )
            if epochs > FREE_EPOCHS:
                warnings.append(
                    f"source {name!r} will be read {epochs:.1f} times; past {FREE_EPOCHS:g} epochs "
                    f"repeated tokens teach less than fresh ones (Muennighoff et al. 2023)"
                )
        return warnings

    def _given(self, rows: int) -> Iterator[tuple[WindowRun, np.ndarray]]:
        """Each window run with the rows of each source in it, among the first `rows` rows."""
        for run in self._runs:
            if run.end <= rows:
                yield run, run.taken
            elif run.first < rows or run.first == 0:
                yield run, self.blend.counts(int(rows)) - run.given

    def _length_of(self, indices: np.ndarray) -> int:
        """The number of the one sequence length that the rows have."""
        if len(self.sequence_lengths) == 1 or not len(indices):
            return 0
        first, last = (
            bisect.bisect_right(self.sequence_lengths, row, key=lambda phase: phase[0]) - 1
            for row in (indices.min(), indices.max())
        )
        if first != last:
            raise ValueError(
                f"rows {indices.min()} to {indices.max()} have several sequence lengths"
            )
        return first

    def _places(self, number: int, indices: np.ndarray) -> "_Places":
        """The place of each row; all rows have one sequence length."""
        block = indices // BLOCK_ROWS
        numbers = np.unique(block) if len(block) else np.zeros(1, np.int64)
        if len(numbers) == 1:
            first, places = self._block(number, int(numbers[0]))
            return places.take(indices - first)
        parts = [self._block(number, int(block_number)) for block_number in numbers]
        which = np.searchsorted(numbers, block)
        starts = np.cumsum([0] + [len(places.source) for _, places in parts[:-1]])
        firsts = np.array([first for first, _ in parts])
        together = _Places.concatenated([places for _, places in parts])
        return together.take(indices - firsts[which] + starts[which])

    def _block(self, number: int, block: int) -> tuple[int, "_Places"]:
        """The first row of a block and the places of its rows, those of the sequence length."""
        first, end = block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS
        first = max(first, self.sequence_lengths[number][0])
        found = self._resolved.get((number, block))
        if found is None:
            for begins, _ in self.sequence_lengths[number + 1 : number + 2]:
                end = min(end, begins)
            found = self._resolve(first, end)
            self._resolved[number, block] = found
            if len(self._resolved) > 4:
                self._resolved.popitem(last=False)
        return first, found

    def _resolve(self, first: int, end: int) -> "_Places":
        """The places of rows first .. end - 1, of one sequence length, by arithmetic alone."""
        source, row = self.blend.locate(first, end)
        start = np.empty(end - first, np.int64)
        run_of = np.searchsorted(self._first_rows, np.arange(first, end), side="right") - 1
        for number in np.unique(run_of).tolist():
            inside = run_of == number
            given = self._runs[number].given[source[inside]]
            start[inside] = self._starts(number, source[inside], row[inside] - given)
        length = self._runs[run_of[0]].length
        rotation = self._rotations(source, start, length) if self._document_starts else None
        return _Places(source, start, rotation)

    def _starts(self, number: int, source: np.ndarray, row: np.ndarray) -> np.ndarray:
        """int64 [n]: the first token of each row of a window run.

        Args:
          number: of the window run.
          source: int32 [n].
          row: int64 [n], rows of the source, counted from the first one in the window run.
        """
        run = self._runs[number]
        row = row - run.rest[source]
        in_rest = row < 0
        if in_rest.any():
            start = np.empty(len(row), np.int64)
            of_rest, of_others = source[in_rest], source[~in_rest]
            before = row[in_rest] + run.rest[of_rest] + run.since[of_rest]
            start[in_rest] = self._starts(number - 1, of_rest, before)
            others = row[~in_rest] + run.rest[of_others]
            start[~in_rest] = self._starts(number, of_others, others)
            return start
        in_head = row < run.head[source]
        epoch, position = np.divmod(row - run.head[source], run.windows[source])
        in_tail = (epoch == run.whole[source]) & ~in_head
        size = np.where(in_tail, run.tail[source], run.windows[source])
        size = np.where(in_head, run.head[source], size)
        position = np.where(in_head, row, position)
        epoch = run.epoch[source] + np.where(in_head, -1, epoch)
        keys = _mixed(self._keys[source] + epoch.astype(np.uint64))
        of_piece = np.where(in_head | in_tail, _mixed(keys + np.uint64(number + 1)), keys)
        offset = self._offset(epoch, source, run.leftover[source])
        start = np.where(in_head, run.head_start[source], offset)
        return start + permuted(position, size, of_piece) * run.length

    def _offset(self, epoch: np.ndarray, source: np.ndarray, leftover: np.ndarray) -> np.ndarray:
        """int64 [n]: the first token of an epoch's windows."""
        keys = _mixed(_mixed(self._keys[source] + epoch.astype(np.uint64)))
        return (keys % (leftover + 1).astype(np.uint64)).astype(np.int64)

    def _rotations(self, source: np.ndarray, start: np.ndarray, length: int) -> np.ndarray:
        """int64 [n]: the token at which each window begins: its first EOS, or its start."""
        rotation = start.copy()
        for i in np.unique(source):
            of_source = np.flatnonzero(source == i)
            first, ends = start[of_source], self._ends[i]
            # The first EOS after the window's first token, unless a document begins right there.
            begins = (first == 0) | (ends[np.searchsorted(ends, first)] == first)
            begins |= ends[np.searchsorted(ends, first + 1)] == first + 1
            eos = ends[np.searchsorted(ends, first + 1, side="right")] - 1
            rotation[of_source] = np.where(begins | (eos >= first + length), first, eos)
        return rotation


class _Places(NamedTuple):
    """Where each row is in its store.

    Attributes:
      source: int32 [n].
      start: int64 [n], the first token of the window.
      rotation: int64 [n], the token at which the rotated window begins; None: none is rotated.
    """

    source: np.ndarray
    start: np.ndarray
    rotation: np.ndarray | None

    @classmethod
    def concatenated(cls, parts: Sequence["_Places"]) -> "_Places":
        rotations = [part.rotation for part in parts if part.rotation is not None]
        return cls(
            np.concatenate([part.source for part in parts]),
            np.concatenate([part.start for part in parts]),
            np.concatenate(rotations) if rotations else None,
        )

    def take(self, index: np.ndarray) -> "_Places":
        rotation = None if self.rotation is None else self.rotation[index]
        return _Places(self.source[index], self.start[index], rotation)


def permuted(position: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Applies a keyed permutation of 0 .. size - 1 to each position, without building it.

    A Feistel network over the smallest whole number of bits that holds `size`. It is applied again
    until the result is below `size` (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains").

    Args:
      position: int64 [n], 0 <= position < size.
      size: int64 [n], at least 1.
      key: uint64 [n]; equal keys and sizes are the same permutation.

    Returns:
      int64 [n].
    """
    bits = np.maximum(np.frexp(size - 1)[1], 2).astype(np.uint64)
    low_bits = bits // np.uint64(2)
    high_bits = bits - low_bits
    result = position.astype(np.uint64)
    limit = size.astype(np.uint64)
    outside = np.arange(len(position))
    while len(outside):
        walked = _feistel(result[outside], low_bits[outside], high_bits[outside], key[outside])
        result[outside] = walked
        outside = outside[walked >= limit[outside]]
    return result.astype(np.int64)


def _feistel(
    value: np.ndarray, low_bits: np.ndarray, high_bits: np.ndarray, key: np.ndarray
) -> np.ndarray:
    """One pass of the network over `low_bits + high_bits` bits; a bijection for each key."""
    one = np.uint64(1)
    low_mask, high_mask = (one << low_bits) - one, (one << high_bits) - one
    low, high = value & low_mask, value >> low_bits
    for number in range(0, ROUNDS, 2):
        high = high ^ (_mixed(low + key + np.uint64(number)) & high_mask)
        low = low ^ (_mixed(high + key + np.uint64(number + 1)) & low_mask)
    return (high << low_bits) | low


def _mixed(value: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele et al. 2014): uint64 in, well-mixed uint64 out."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
