"""Rows of tokens by index: what row n holds follows from the stores, the blend and the seed."""

import collections
import hashlib
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from t5x_style.data.blend import Blend
from t5x_style.data.store import TokenStore
from t5x_style.errors import UsageError

# Data-constrained scaling (Muennighoff et al. 2023): up to 4 epochs are nearly as good as fresh
# tokens, beyond 40 they are worth nothing.
FREE_EPOCHS = 4
WORTHLESS_EPOCHS = 40
# Rows whose place is worked out at once: some 2 ms of index arithmetic for 4,096 rows, so that a
# batch of a few rows costs a look-up and a copy.
BLOCK_ROWS = 4096
ROUNDS = 6


class ReadableStores(Protocol):
    """What a reader needs of `Stores`."""

    @property
    def shares(self) -> Mapping[str, float]:
        """{source: share of tokens}."""

    @property
    def train(self) -> Mapping[str, TokenStore]:
        """{source: its train store}."""


class BatchReader:
    """Reads training rows; holds no position, so there is nothing to save or to restore.

    A source of T tokens has W = (T - 1) // S windows of S + 1 tokens at stride S: each token is
    predicted once an epoch but for fewer than S, which another offset in the next epoch brings in.
    Each epoch goes through the windows in a permutation of its own.

    Attributes:
      names: the sources, in the order in which `rows` numbers them.
      blend: the order of rows over sources.
      windows: int64 [sources], W of each.
    """

    def __init__(
        self,
        stores: ReadableStores,
        *,
        sequence_length: int,
        seed: int,
        max_epochs: float | Mapping[str, float] = WORTHLESS_EPOCHS,
    ):
        """Lays out the windows of every source.

        Args:
          stores: shares and train stores by source.
          sequence_length: S, tokens that a row predicts.
          seed: of the permutations of windows.
          max_epochs: `check_horizon` refuses a run that goes through a source more often; one
            number, or {source: number} (sources left out keep the default of 40).

        Raises:
          UsageError: a source with fewer than S + 1 tokens, a share or a cap without a source.
        """
        self.blend = Blend(stores.shares)
        self.names = self.blend.names
        self.sequence_length = sequence_length
        self.seed = seed
        if isinstance(max_epochs, Mapping):
            unknown = sorted(set(max_epochs) - set(self.names))
            if unknown:
                raise UsageError(f"max_epochs names {unknown}: the sources are {list(self.names)}")
            self._caps = [float(max_epochs.get(name, WORTHLESS_EPOCHS)) for name in self.names]
        else:
            self._caps = [float(max_epochs)] * len(self.names)
        # A plain view: slicing an np.memmap costs three times the copy of a row.
        self._tokens = [stores.train[name].tokens.view(np.ndarray) for name in self.names]
        sizes = np.array([len(tokens) for tokens in self._tokens], np.int64)
        self.windows = (sizes - 1) // sequence_length
        for name, tokens, windows in zip(self.names, sizes, self.windows, strict=True):
            if windows < 1:
                raise UsageError(
                    f"source {name!r} has {tokens} tokens: a row of sequence length "
                    f"{sequence_length} needs {sequence_length + 1}"
                )
        self._leftover = sizes - 1 - self.windows * sequence_length
        self._keys = np.array([_key(seed, name) for name in self.names], np.uint64)
        self._resolved: collections.OrderedDict[int, tuple[np.ndarray, np.ndarray]] = (
            collections.OrderedDict()
        )

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows at `indices`, any rows in any order.

        Args:
          indices: int64 [n], global rows counted from 0: batch b of B rows is b B to b B + B - 1.

        Returns:
          tokens int32 [n, S + 1], source int32 [n] into `names`.
        """
        indices = np.asarray(indices, np.int64)
        source, start = self._places(indices)
        width = self.sequence_length + 1
        batch = np.empty((len(indices), width), np.int32)
        tokens = self._tokens
        for row, (i, first) in enumerate(zip(source.tolist(), start.tolist(), strict=True)):
            batch[row] = tokens[i][first : first + width]
        return batch, source

    def tokens_by_source(self, rows: int) -> np.ndarray:
        """int64 [sources]: tokens that the first `rows` rows predict."""
        return self.blend.counts(rows) * self.sequence_length

    def epochs(self, rows: int) -> np.ndarray:
        """float64 [sources]: how often the first `rows` rows go through each source."""
        return self.blend.counts(rows) / self.windows

    def check_horizon(self, total_rows: int) -> list[str]:
        """What is to be said of a run of `total_rows` rows: a warning for each repeated source.

        Raises:
          UsageError: a source would be gone through more often than its cap.
        """
        warnings = []
        needed = self.blend.counts(total_rows)
        for name, rows, epochs, windows, cap in zip(
            self.names, needed, self.epochs(total_rows), self.windows, self._caps, strict=True
        ):
            held = windows * self.sequence_length
            if epochs > cap:
                raise UsageError(
                    f"source {name!r} would be read {epochs:.1f} times (it has {held:,} tokens, "
                    f"its share of the run is {rows * self.sequence_length:,}); the cap "
                    f"is {cap:g} epochs: shorten the run, lower its share, or raise max_epochs"
                )
            if epochs > FREE_EPOCHS:
                warnings.append(
                    f"source {name!r} will be read {epochs:.1f} times; past {FREE_EPOCHS} epochs "
                    f"repeated tokens are worth less than fresh ones (Muennighoff et al. 2023)"
                )
        return warnings

    def _places(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source int32 [n] and first token int64 [n] of each row."""
        block = indices // BLOCK_ROWS
        first = int(block[0]) if len(block) else 0
        if not len(block) or (block == first).all():
            source, start = self._block(first)
            inside = indices - first * BLOCK_ROWS
            return source[inside], start[inside]
        source = np.empty(len(indices), np.int32)
        start = np.empty(len(indices), np.int64)
        for number in np.unique(block):
            of_block = block == number
            inside = indices[of_block] - number * BLOCK_ROWS
            block_source, block_start = self._block(int(number))
            source[of_block], start[of_block] = block_source[inside], block_start[inside]
        return source, start

    def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        found = self._resolved.get(number)
        if found is None:
            rows = np.arange(number * BLOCK_ROWS, (number + 1) * BLOCK_ROWS, dtype=np.int64)
            found = self._resolved[number] = self._resolve(rows)
            if len(self._resolved) > 4:
                self._resolved.popitem(last=False)
        return found

    def _resolve(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source and first token of each row, from nothing but arithmetic."""
        source, source_row = self.blend.locate(rows)
        windows = self.windows[source]
        epoch, position = np.divmod(source_row, windows)
        keys = _mixed(self._keys[source] + epoch.astype(np.uint64))
        window = permuted(position, windows, keys)
        offset = (_mixed(keys) % (self._leftover[source] + 1).astype(np.uint64)).astype(np.int64)
        return source, window * self.sequence_length + offset


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
