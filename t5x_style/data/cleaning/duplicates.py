"""Documents with the text of an earlier one, or nearly: the first of them is kept."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

import gin
import numpy as np

from t5x_style.data.cleaning.ngrams import ngram_hashes
from t5x_style.data.cleaning.words import MULTIPLIER, Words
from t5x_style.data.sources.normal_form import COMPARISON_VERSION, document_digest
from t5x_style.errors import UsageError
from t5x_style.ranges import PositiveInt, Range, check_ranges

# The share of pairs at just the threshold that must share a band, and so be compared.
RECALL = 0.95
# A document is compared with at most this many kept ones of a band. Without a limit, a million
# contracts from one template would be compared pair by pair.
COMPARED = 64
WHY = ("", "duplicate", "near_duplicate")
KEPT, DUPLICATE, NEAR_DUPLICATE = range(3)


class Fingerprints(NamedTuple):
    """The digests and signatures of some documents, in reading order.

    Attributes:
      digests: uint8 [documents, 16].
      signatures: uint32 [documents, permutations], which may be a memory map. None where near
        duplicates are not looked for.
    """

    digests: np.ndarray
    signatures: np.ndarray | None


class Verdicts(NamedTuple):
    """Which documents are duplicates, and of which.

    Attributes:
      why: uint8 [documents], an index into `WHY`; 0 is kept.
      repeats: int64 [documents], the document that it repeats, which is kept. They are counted
        through the earlier fingerprints and then through these. -1 where the document is kept.
    """

    why: np.ndarray
    repeats: np.ndarray


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Drops documents that repeat an earlier one.

    Attributes:
      exact: drops a document with the text of an earlier one. White space and invisible characters
        are ignored, since they depend on the file (`document_digest`). Case and punctuation count.
      near: drops a document whose set of shingles has an estimated Jaccard similarity of at least
        `threshold` to that of an earlier one. Needs the extra t5x_style[clean].
      threshold: of that similarity, above 0 and at most 1.
      shingle_words: words of a shingle, without case and punctuation. A shorter document is one
        shingle.
      permutations: values of a signature, four bytes each. The estimate of a similarity s has a
        standard deviation of sqrt(s (1 - s) / permutations): 0.035 for s = 0.8 and 128 values.
      across_sources: compares with the sources that come before, too. Otherwise documents are only
        compared within their source.
    """

    exact: bool = True
    near: bool = False
    threshold: Annotated[float, Range(above=0, most=1)] = 0.8
    shingle_words: PositiveInt = 5
    permutations: PositiveInt = 128
    across_sources: bool = True

    def __post_init__(self):
        if not (self.exact or self.near):
            raise UsageError("Duplicates.exact and .near are both False: leave Duplicates out")
        check_ranges(self)
        if self.near:
            _rensa()

    def made_from(self) -> dict[str, Any]:
        """All that fingerprints and verdicts depend on, as plain values."""
        plain = dataclasses.asdict(self) | {"comparison": COMPARISON_VERSION}
        return plain | ({"rensa": _rensa().ALGORITHM_VERSION} if self.near else {})

    def signatures(self, texts: Sequence[str], words: Words) -> np.ndarray:
        """The MinHash values of the shingles of texts (Broder 1997), uint32 [texts, permutations].

        Two texts have equal values at a place with the probability of their Jaccard similarity.

        Args:
          texts: of documents.
          words: theirs.
        """
        runs = ngram_hashes(words.hashes, self.shingle_words)
        shingles = []
        places = zip(words.begins().tolist(), words.ends.tolist(), strict=True)
        for text, (begin, end) in zip(texts, places, strict=True):
            own = runs[begin : max(end - self.shingle_words + 1, begin)]
            if begin < end < begin + self.shingle_words:
                own = ngram_hashes(words.hashes[begin:end], end - begin)
            elif begin == end:  # punctuation alone: similar to itself only
                own = np.frombuffer(document_digest(text)[:8], np.uint64)
            shingles.append(own)
        ends = np.cumsum([0, *map(len, shingles)])
        values = _rensa().digest_matrix_from_flat_token_hashes(
            np.concatenate(shingles), ends.tolist(), self.permutations, 0
        )
        return np.array(values.to_rows(), np.uint32)

    def bands(self) -> tuple[int, int]:
        """(bands, rows of a band): two documents are compared if they agree in all rows of a band.

        A pair of similarity s is compared with the probability 1 - (1 - s^rows)^bands (Leskovec,
        Rajaraman and Ullman, Mining of Massive Datasets, 3.4.2). The most rows that keep `RECALL`
        at the threshold cause the fewest comparisons of documents that differ.
        """
        for rows in range(self.permutations, 1, -1):
            count = self.permutations // rows
            if 1 - (1 - self.threshold**rows) ** count >= RECALL:
                return count, rows
        return self.permutations, 1

    def verdicts(self, these: Fingerprints, earlier: Sequence[Fingerprints] = ()) -> Verdicts:
        """Keeps the documents that repeat no earlier one that is kept.

        Args:
          these: fingerprints of the documents to judge, in reading order.
          earlier: fingerprints of documents that are kept in any case: of stores built before.

        Memory holds some 60 bytes a document. A document that shares a band with another takes its
        signature and 8 bytes a band more: 270 MB for a million documents of which a fifth are near
        duplicates.
        """
        digests = np.concatenate([part.digests for part in (*earlier, these)])
        known = len(digests) - len(these.digests)
        repeats = np.full(len(digests), -1)
        why = np.zeros(len(digests), np.uint8)
        if self.exact:
            repeats[known:] = _firsts(digests)[known:]
            why[repeats >= 0] = DUPLICATE
        if self.near:
            signatures = [
                part.signatures for part in (*earlier, these) if part.signatures is not None
            ]
            near = self._near(signatures, known, candidates=why == KEPT)
            why[near >= 0] = NEAR_DUPLICATE
            repeats = np.maximum(repeats, near)
            # An exact duplicate of a near duplicate repeats the document that is kept.
            indirect = (why == DUPLICATE) & (repeats[repeats] >= 0)
            repeats[indirect] = repeats[repeats[indirect]]
        return Verdicts(why[known:], repeats[known:])

    def _near(
        self, signatures: Sequence[np.ndarray], known: int, candidates: np.ndarray
    ) -> np.ndarray:
        """The earlier document that a document is near to, int64 [documents]; -1 for those kept.

        Args:
          signatures: uint32 [documents, permutations], parts of one sequence.
          known: the number of documents that are kept in any case.
          candidates: bool [documents]; the others are ignored.
        """
        numbers = np.flatnonzero(candidates)
        buckets = self._buckets(signatures, candidates)
        sharing = (buckets >= 0).any(axis=1)
        buckets, numbers = buckets[sharing], numbers[sharing]
        values = _rows(signatures, numbers)
        repeats = np.full(len(candidates), -1)
        # The first kept documents of every bucket, bucket after bucket in one flat array.
        sizes = np.minimum(np.bincount(buckets[buckets >= 0], minlength=1), COMPARED)
        starts = np.cumsum(sizes) - sizes
        filled = np.zeros(len(sizes), np.int64)
        kept = np.zeros(sizes.sum(), np.int32)
        for row, number in enumerate(numbers):
            mine = buckets[row][buckets[row] >= 0]
            if number >= known:
                in_buckets = [kept[starts[b] : starts[b] + filled[b]] for b in mine]
                before = np.unique(np.concatenate(in_buckets))
                alike = (values[before] == values[row]).mean(axis=1) >= self.threshold
                if alike.any():
                    repeats[number] = numbers[before[np.argmax(alike)]]
                    continue
            mine = mine[filled[mine] < sizes[mine]]
            kept[starts[mine] + filled[mine]] = row
            filled[mine] += 1
        return repeats

    def _buckets(self, signatures: Sequence[np.ndarray], candidates: np.ndarray) -> np.ndarray:
        """The bucket of a candidate in a band, int32 [candidates, bands]; -1 if it is alone."""
        bands, rows = self.bands()
        buckets = np.full((int(candidates.sum()), bands), -1, np.int32)
        count = 0
        for band in range(bands):
            columns = slice(band * rows, (band + 1) * rows)
            keys = np.concatenate([_keys(part[:, columns]) for part in signatures])[candidates]
            _, inverse, members = np.unique(keys, return_inverse=True, return_counts=True)
            shared = members > 1
            names = np.where(shared, count + np.cumsum(shared) - 1, -1)
            buckets[:, band] = names[inverse]
            count += int(shared.sum())
        return buckets


def _firsts(digests: np.ndarray) -> np.ndarray:
    """The first document with the same digest, int64 [documents]; -1 for that document itself."""
    halves = np.ascontiguousarray(digests).view(np.uint64)
    order = np.lexsort((halves[:, 0], halves[:, 1]))  # stable: equal digests keep their order
    begins = np.ones(len(order), bool)
    begins[1:] = (halves[order[1:]] != halves[order[:-1]]).any(axis=1)
    firsts = np.full(len(order), -1)
    heads = order[begins]
    firsts[order] = heads[np.cumsum(begins) - 1]
    firsts[heads] = -1
    return firsts


def _keys(values: np.ndarray) -> np.ndarray:
    """uint32 [documents, rows] as one uint64 a document. A collision costs one comparison."""
    keys = np.zeros(len(values), np.uint64)
    for column in values.T:
        keys *= np.uint64(MULTIPLIER)
        keys += column
    return keys


def _rows(parts: Sequence[np.ndarray], numbers: np.ndarray) -> np.ndarray:
    """The rows with these numbers, ascending, of `parts` taken as one array."""
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
