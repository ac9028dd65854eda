"""Rows of tokens by index: what row n holds follows from the stores, the blend and the seed."""

import bisect
import collections
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from t5x_style.data.blend.blend import Blend
from t5x_style.data.rows.windows import Stretch, laid_out
from t5x_style.data.stores.token_store import TokenStore
from t5x_style.errors import UsageError

# Data-constrained scaling (Muennighoff et al. 2023): up to 4 epochs are nearly as good as fresh
# tokens, beyond 40 they are worth nothing.
FREE_EPOCHS = 4
WORTHLESS_EPOCHS = 40
# Rows whose place is worked out at once: some 2 ms of index arithmetic for 4,096 rows, so that a
# batch of a few rows costs a look-up and a copy.
BLOCK_ROWS = 4096
ROUNDS = 6


class Rows(NamedTuple):
    """Rows of tokens.

    Attributes:
      tokens: int32 [n, S + 1]; row i predicts tokens[i, 1:] from tokens[i, :-1]. Of windows that
        respect document starts int32 [n, S + 2], see `join`.
      source: int32 [n] into the reader's names.
      join: None, or int32 [n]: a window is cut in two at its first EOS and the second part, which
        begins with that EOS, comes first. With z its S + 2 ids and J its join, the inputs at
        positions p < J are z[p] and those behind are z[p + 1]; what they predict comes one later.
        Of a window that is not cut, J = S, and the last id means nothing.
    """

    tokens: np.ndarray
    source: np.ndarray
    join: np.ndarray | None


class BatchReader:
    """Reads training rows; holds no position, so there is nothing to save or to restore.

    A source of T tokens has W = (T - 1) // S windows of S + 1 tokens at stride S: each token is
    predicted once an epoch but for fewer than S, which another offset in the next epoch brings in.
    Each epoch goes through the windows in a permutation of its own.

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
    ):
        """Lays out the windows of every source.

        Args:
          blend: of the sources.
          stores: {source: its train store}.
          sequence_lengths: (first row, S), in order, from row 0: from that row on a row predicts S
            tokens.
          seed: of the permutations of windows.
          document_starts: whether each window begins where a document does, if one begins in it;
            see `Rows.join`.

        Raises:
          UsageError: a source with fewer than S + 1 tokens.
        """
        self.blend = blend
        self.names = blend.names
        self.sequence_lengths = tuple(sequence_lengths)
        self._document_starts = document_starts
        # A plain view: slicing an np.memmap costs three times the copy of a row.
        self._tokens = [stores[name].tokens.view(np.ndarray) for name in self.names]
        self._ends = [stores[name].document_ends.view(np.ndarray) for name in self.names]
        self._sizes = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self._keys = np.array([_key(seed, name) for name in self.names], np.uint64)
        self._stretches = laid_out(blend, self._sizes, self.sequence_lengths, self._offset)
        self._first_rows = [stretch.first for stretch in self._stretches]
        self._resolved: collections.OrderedDict[tuple[int, int], _Places] = (
            collections.OrderedDict()
        )

    def rows(self, indices: np.ndarray) -> Rows:
        """The rows at `indices`, any rows in any order, all of one sequence length.

        Args:
          indices: int64 [n], global rows counted from 0: batch b of B rows is b B to b B + B - 1.

        Raises:
          ValueError: rows of several sequence lengths.
        """
        indices = np.asarray(indices, np.int64)
        number = self._length_of(indices)
        length = self.sequence_lengths[number][1]
        source, start, turn = self._places(number, indices)
        if turn is None:
            width = length + 1
            batch = np.empty((len(indices), width), np.int32)
            tokens = self._tokens
            for row, (i, first) in enumerate(zip(source.tolist(), start.tolist(), strict=True)):
                batch[row] = tokens[i][first : first + width]
            return Rows(batch, source, None)
        batch = np.zeros((len(indices), length + 2), np.int32)
        places = zip(source.tolist(), start.tolist(), turn.tolist(), strict=True)
        for row, (i, first, at) in enumerate(places):
            ids, end = self._tokens[i], first + length + 1
            batch[row, : end - at] = ids[at:end]
            if at > first:
                batch[row, end - at :] = ids[first : at + 1]
        join = np.where(turn > start, start + length - turn, length).astype(np.int32)
        return Rows(batch, source, join)

    def tokens_by_source(self, rows: int) -> np.ndarray:
        """int64 [sources]: tokens that the first `rows` rows predict."""
        return np.sum([given * each.length for each, given in self._given(rows)], axis=0)

    def epochs(self, rows: int) -> np.ndarray:
        """float64 [sources]: how often the first `rows` rows go through each source."""
        return np.sum([given / each.windows for each, given in self._given(rows)], axis=0)

    def tokens_of_epoch(self) -> np.ndarray:
        """int64 [sources]: tokens that one time through each source predicts at the least."""
        return np.min([each.windows * each.length for each in self._stretches], axis=0)

    def check_horizon(self, total_rows: int, caps: Mapping[str, float] | None) -> list[str]:
        """What is to be said of a run of `total_rows` rows: a warning for each repeated source.

        Args:
          total_rows: of the run.
          caps: {source: epochs} that are refused when they are exceeded; None: none are.

        Raises:
          UsageError: a source would be gone through more often than its cap.
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
                    f"shorten the run, lower its share, raise max_epochs, or choose by AT_CAP what "
                    f"happens then"
                )
            if epochs > FREE_EPOCHS:
                warnings.append(
                    f"source {name!r} will be read {epochs:.1f} times; past {FREE_EPOCHS} epochs "
                    f"repeated tokens are worth less than fresh ones (Muennighoff et al. 2023)"
                )
        return warnings

    def _given(self, rows: int) -> Iterator[tuple[Stretch, np.ndarray]]:
        """Of each stretch, the rows that each source gives among the first `rows`."""
        for stretch in self._stretches:
            if stretch.end <= rows:
                yield stretch, stretch.taken
            elif stretch.first < rows or stretch.first == 0:
                yield stretch, self.blend.counts(int(rows)) - stretch.given

    def _length_of(self, indices: np.ndarray) -> int:
        """Number of the sequence length of rows."""
        if len(self.sequence_lengths) == 1 or not len(indices):
            return 0
        first, last = (
            bisect.bisect_right(self.sequence_lengths, row, key=lambda each: each[0]) - 1
            for row in (indices.min(), indices.max())
        )
        if first != last:
            raise ValueError(
                f"rows {indices.min()} to {indices.max()} have several sequence lengths"
            )
        return first

    def _places(self, number: int, indices: np.ndarray) -> "_Places":
        """Source, first token and turn of each row, of one sequence length."""
        block = indices // BLOCK_ROWS
        numbers = np.unique(block) if len(block) else np.zeros(1, np.int64)
        if len(numbers) == 1:
            first, resolved = self._block(number, int(numbers[0]))
            return resolved.at(indices - first)
        parts = [self._block(number, int(each)) for each in numbers]
        which = np.searchsorted(numbers, block)
        starts = np.cumsum([0] + [len(resolved.source) for _, resolved in parts[:-1]])
        firsts = np.array([first for first, _ in parts])
        together = _Places(
            *(
                None if columns[0] is None else np.concatenate(columns)
                for columns in zip(*(resolved for _, resolved in parts), strict=True)
            )
        )
        return together.at(indices - firsts[which] + starts[which])

    def _block(self, number: int, block: int) -> tuple[int, "_Places"]:
        """The first row of a block, as far as it has the sequence length, and its rows' places."""
        first, end = block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS
        first = max(first, self.sequence_lengths[number][0])
        found = self._resolved.get((number, block))
        if found is None:
            for begins, _ in self.sequence_lengths[number + 1 : number + 2]:
                end = min(end, begins)
            found = self._resolve(np.arange(first, end, dtype=np.int64))
            self._resolved[number, block] = found
            if len(self._resolved) > 4:
                self._resolved.popitem(last=False)
        return first, found

    def _resolve(self, rows: np.ndarray) -> "_Places":
        """Where rows of one sequence length lie, from nothing but arithmetic."""
        source, row = self.blend.locate(rows)
        start = np.empty(len(rows), np.int64)
        stretch_of = np.searchsorted(self._first_rows, rows, side="right") - 1
        for number in np.unique(stretch_of).tolist():
            inside = stretch_of == number
            given = self._stretches[number].given[source[inside]]
            start[inside] = self._starts(number, source[inside], row[inside] - given)
        length = self._stretches[stretch_of[0]].length
        turn = self._turns(source, start, length) if self._document_starts else None
        return _Places(source, start, turn)

    def _starts(self, number: int, source: np.ndarray, row: np.ndarray) -> np.ndarray:
        """int64 [n]: the first token of rows of a stretch, counted by source from its first row."""
        stretch = self._stretches[number]
        row = row - stretch.rest[source]
        in_rest = row < 0
        if in_rest.any():
            start = np.empty(len(row), np.int64)
            of_rest, of_others = source[in_rest], source[~in_rest]
            before = row[in_rest] + stretch.rest[of_rest] + stretch.since[of_rest]
            start[in_rest] = self._starts(number - 1, of_rest, before)
            others = row[~in_rest] + stretch.rest[of_others]
            start[~in_rest] = self._starts(number, of_others, others)
            return start
        in_head = row < stretch.head[source]
        epoch, position = np.divmod(row - stretch.head[source], stretch.windows[source])
        in_tail = (epoch == stretch.whole[source]) & ~in_head
        size = np.where(in_tail, stretch.tail[source], stretch.windows[source])
        size = np.where(in_head, stretch.head[source], size)
        position = np.where(in_head, row, position)
        epoch = stretch.epoch[source] + np.where(in_head, -1, epoch)
        keys = _mixed(self._keys[source] + epoch.astype(np.uint64))
        of_piece = np.where(in_head | in_tail, _mixed(keys + np.uint64(number + 1)), keys)
        offset = self._offset(epoch, source, stretch.leftover[source])
        start = np.where(in_head, stretch.head_start[source], offset)
        return start + permuted(position, size, of_piece) * stretch.length

    def _offset(self, epoch: np.ndarray, source: np.ndarray, leftover: np.ndarray) -> np.ndarray:
        """int64 [n]: the first token of an epoch's windows."""
        keys = _mixed(_mixed(self._keys[source] + epoch.astype(np.uint64)))
        return (keys % (leftover + 1).astype(np.uint64)).astype(np.int64)

    def _turns(self, source: np.ndarray, start: np.ndarray, length: int) -> np.ndarray:
        """int64 [n]: the token at which each window is to begin, its first EOS or its start."""
        turn = start.copy()
        for i in np.unique(source):
            of_source = np.flatnonzero(source == i)
            first, ends = start[of_source], self._ends[i]
            # The first EOS behind the window's first token, unless a document begins right there.
            begins = (first == 0) | (ends[np.searchsorted(ends, first)] == first)
            begins |= ends[np.searchsorted(ends, first + 1)] == first + 1
            eos = ends[np.searchsorted(ends, first + 1, side="right")] - 1
            turn[of_source] = np.where(begins | (eos >= first + length), first, eos)
        return turn


class _Places(NamedTuple):
    """Where rows lie: source int32 [n], first token int64 [n], turn int64 [n] or None."""

    source: np.ndarray
    start: np.ndarray
    turn: np.ndarray | None

    def at(self, index: np.ndarray) -> "_Places":
        return _Places(*(None if each is None else each[index] for each in self))


def permuted(position: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Where a keyed permutation of 0 .. size - 1 sends each position, in the time of one.

    A Feistel network over the smallest whole number of bits that holds `size`, walked along its
    cycle until it lands inside (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").

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
