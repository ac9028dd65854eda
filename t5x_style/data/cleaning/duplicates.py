"""Documents that say what an earlier one said, word for word or nearly: the first of them stays."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import gin
import numpy as np

from t5x_style.data.cleaning.ngrams import MULTIPLIER, ngram_hashes, word_hashes
from t5x_style.errors import UsageError

DIGEST_BYTES = 16
# Of documents whose similarity is just the threshold, the share that some band must bring together.
RECALL = 0.95
# Of the documents that share a band, this many that stay are compared with each that comes after.
# Without an end, a million contracts from one template would be compared each with each.
COMPARED = 64
WHY = ("", "duplicate", "near_duplicate")
KEPT, DUPLICATE, NEAR_DUPLICATE = range(3)


class Fingerprints(NamedTuple):
    """What is known of some documents, in reading order.

    Attributes:
      digests: uint8 [documents, 16].
      signatures: uint32 [documents, permutations], read row by row, so a memory map will do; None
        where near duplicates are not looked for.
    """

    digests: np.ndarray
    signatures: np.ndarray | None


class Verdicts(NamedTuple):
    """What becomes of each document.

    Attributes:
      why: uint8 [documents], an index into `WHY`; 0 stays.
      of: int64 [documents], which document it repeats, counted through the earlier fingerprints and
        then through these; -1 where it stays. What it repeats stays itself.
    """

    why: np.ndarray
    of: np.ndarray


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Drops documents that repeat an earlier one.

    Attributes:
      exact: drops a document whose text was there before, white space aside: where lines break is
        of the file that it came from. Case and punctuation count.
      near: drops a document that is near an earlier one: the sets of their shingles have an
        estimated Jaccard similarity of at least `threshold`. Needs the extra t5x_style[clean].
      threshold: of that similarity, above 0 and at most 1.
      shingle_words: words of a shingle, which neither case nor punctuation enters. A shorter
        document is one shingle.
      permutations: numbers of a signature, four bytes each. The estimate of a similarity s has a
        standard deviation of sqrt(s (1 - s) / permutations): 0.035 at 0.8 by 128.
      across_sources: looks for documents in the sources that come before, too; otherwise only
        among those of the same source.
    """

    exact: bool = True
    near: bool = False
    threshold: float = 0.8
    shingle_words: int = 5
    permutations: int = 128
    across_sources: bool = True

    def __post_init__(self):
        if not (self.exact or self.near):
            raise UsageError("Duplicates.exact and .near are both False: leave Duplicates away")
        if not 0 < self.threshold <= 1:
            raise UsageError(f"Duplicates.threshold = {self.threshold}: above 0 and at most 1")
        for attribute in ("shingle_words", "permutations"):
            if getattr(self, attribute) < 1:
                raise UsageError(f"Duplicates.{attribute} = {getattr(self, attribute)}: at least 1")
        if self.near:
            _rensa()

    def made_from(self) -> dict[str, Any]:
        """What the fingerprints of documents and the verdicts follow from, as plain values."""
        plain = dataclasses.asdict(self)
        return plain | ({"rensa": _rensa().ALGORITHM_VERSION} if self.near else {})

    def digest(self, text: str) -> bytes:
        """16 bytes of BLAKE2b over the text, runs of white space made one space, none at the ends.

        Two of 10^9 documents share one by chance with a probability of 10^-21.
        """
        plain = " ".join(text.split())
        return hashlib.blake2b(plain.encode(), digest_size=DIGEST_BYTES).digest()

    def signature(self, text: str) -> np.ndarray:
        """The MinHash values of a text's shingles (Broder 1997), uint32 [permutations].

        Two texts have the same value at a place with the probability of their Jaccard similarity.
        """
        words = word_hashes(text)
        shingles = ngram_hashes(words, min(self.shingle_words, max(len(words), 1)))
        if not len(shingles):  # punctuation alone: like nothing but itself
            shingles = np.frombuffer(self.digest(text)[:8], np.uint64)
        values = _rensa().digest_matrix_from_flat_token_hashes(
            shingles, [0, len(shingles)], self.permutations, 0
        )
        return np.array(values.to_rows()[0], np.uint32)

    def bands(self) -> tuple[int, int]:
        """(bands, rows of a band): two documents are compared if they agree in all rows of a band.

        A pair of similarity s is, with the probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman
        and Ullman, Mining of Massive Datasets, 3.4.2). As many rows as leave `RECALL` at the
        threshold: the fewest comparisons in vain.
        """
        for rows in range(self.permutations, 1, -1):
            count = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** count >= RECALL:
                return count, rows
        return self.permutations, 1

    def verdicts(self, these: Fingerprints, earlier: Sequence[Fingerprints] = ()) -> Verdicts:
        """Which documents stay: those that repeat none before them that stays.

        Args:
          these: of the documents to judge, in reading order.
          earlier: of documents that stay, whatever is found here: of stores built before.

        Memory holds some 60 bytes a document, and for each that shares a band with another its
        signature and 8 bytes a band: 270 MB for a million of which a fifth are near duplicates.
        """
        digests = np.concatenate([each.digests for each in (*earlier, these)])
        known = len(digests) - len(these.digests)
        of = np.full(len(digests), -1)
        why = np.zeros(len(digests), np.uint8)
        if self.exact:
            of[known:] = _firsts(digests)[known:]
            why[of >= 0] = DUPLICATE
        if self.near:
            signatures = [
                part.signatures for part in (*earlier, these) if part.signatures is not None
            ]
            near_of = self._near(signatures, known, candidates=why == KEPT)
            why[near_of >= 0] = NEAR_DUPLICATE
            of = np.maximum(of, near_of)
            # An exact duplicate of one that was near another repeats that other.
            through = (why == DUPLICATE) & (of[of] >= 0)
            of[through] = of[of[through]]
        return Verdicts(why[known:], of[known:])

    def _near(
        self, signatures: Sequence[np.ndarray], known: int, candidates: np.ndarray
    ) -> np.ndarray:
        """Which earlier document each is near to, int64 [documents]; -1 for those that stay.

        Args:
          signatures: uint32 [documents, permutations], parts of one sequence.
          known: how many stay, whatever is found.
          candidates: bool [documents]; the others are left aside.
        """
        numbers = np.flatnonzero(candidates)
        buckets = self._buckets(signatures, candidates)
        sharing = (buckets >= 0).any(axis=1)
        buckets, numbers = buckets[sharing], numbers[sharing]
        values = _rows(signatures, numbers)
        of = np.full(len(candidates), -1)
        # For each bucket the first documents that stay, in a stretch of its own of one flat array.
        sizes = np.minimum(np.bincount(buckets[buckets >= 0], minlength=1), COMPARED)
        starts = np.cumsum(sizes) - sizes
        filled = np.zeros(len(sizes), np.int64)
        stay = np.zeros(sizes.sum(), np.int32)
        for row, number in enumerate(numbers):
            mine = buckets[row][buckets[row] >= 0]
            if number >= known:
                stretches = [stay[starts[b] : starts[b] + filled[b]] for b in mine]
                before = np.unique(np.concatenate(stretches))
                alike = (values[before] == values[row]).mean(axis=1) >= self.threshold
                if alike.any():
                    of[number] = numbers[before[np.argmax(alike)]]
                    continue
            mine = mine[filled[mine] < sizes[mine]]
            stay[starts[mine] + filled[mine]] = row
            filled[mine] += 1
        return of

    def _buckets(self, signatures: Sequence[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """The bucket of each candidate in each band, int32 [candidates, bands]; -1: alone in it."""
        bands, rows = self.bands()
        buckets = np.full((int(candidates.sum()), bands), -1, np.int32)
        count = 0
        for band in range(bands):
            columns = slice(band * rows, (band + 1) * rows)
            keys = np.concatenate([_keys(each[:, columns]) for each in signatures])[candidates]
            _, inverse, members = np.unique(keys, return_inverse=True, return_counts=True)
            shared = members > 1
            names = np.where(shared, count + np.cumsum(shared) - 1, -1)
            buckets[:, band] = names[inverse]
            count += int(shared.sum())
        return buckets


def _firsts(digests: np.ndarray) -> np.ndarray:
    """The first document with the same digest, int64 [documents]; -1 for the first itself."""
    halves = np.ascontiguousarray(digests).view(np.uint64)
    order = np.lexsort((halves[:, 0], halves[:, 1]))  # stable: the first of each comes first
    begins = np.ones(len(order), bool)
    begins[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    firsts = np.full(len(order), -1)
    heads = order[begins]
    firsts[order] = heads[np.cumsum(begins) - 1]
    firsts[heads] = -1
    return firsts


def _keys(values: np.ndarray) -> np.ndarray:
    """uint32 [documents, rows] as one number a document, uint64. A clash costs one comparison."""
    keys = np.zeros(len(values), np.uint64)
    for column in values.T:
        keys *= np.uint64(MULTIPLIER)
        keys += column
    return keys


def _rows(parts: Sequence[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """The rows of those numbers, ascending, of `parts` taken as one array."""
    ends = np.cumsum([len(part) for part in parts])
    cuts = np.searchsorted(numbers, ends[:-1])
    pieces = zip(parts, np.split(numbers, cuts), ends, strict=True)
    return np.concatenate([part[own - (end - len(part))] for part, own, end in pieces])


def _rensa():
    try:
        import rensa
    except ImportError:
        raise UsageError(
            "Duplicates.near = True needs the package `rensa`: install the extra t5x_style[clean]"
        ) from None
    return rensa.RMinHash
