"""Training documents that hold text of the validation split or of an evaluation set."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, BinaryIO, NamedTuple

import gin
import numpy as np

from t5x_style.data.cleaning.ngrams import ngram_hashes
from t5x_style.data.cleaning.words import MULTIPLIER, Words, word_hashes
from t5x_style.data.sources.source import Source
from t5x_style.errors import UsageError
from t5x_style.files import read_cached
from t5x_style.ranges import Range, check_ranges

HASHES_FILE = "hashes.uint64"
DOCUMENTS_FILE = "documents.uint32"
FILTER_FILE = "filter.uint8"
NAMES_FILE = "names.json"
_ARRAYS = (HASHES_FILE, DOCUMENTS_FILE, FILTER_FILE)
# Documents with fewer words, "yes" and "see above", are in everything that was ever written.
LEAST_WORDS = 8
# n-grams that are sorted at a time, 12 bytes each.
RUN_NGRAMS = 1 << 23
# Bits of the filter for each n-gram, at least; at most twice as many. So at most an eighth of the
# n-grams that are not in the index are looked for in it.
FILTER_BITS = 8


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Contamination:
    """Drops training documents that share runs of words with evaluation documents.

    Attributes:
      ngram: words of a run, at least 8; 13 as in GPT-3 (Brown et al. 2020, appendix C). Case and
        punctuation are ignored. A shorter evaluation document is looked for as a whole if it has 8
        words, as there, and not at all otherwise.
      against_validation: looks for the validation splits of all sources of the corpus.
      evaluation_sets: other sources to look for, with all their splits.
      max_share: of a document's words that may be in such runs (Llama 2, Touvron et al. 2023,
        A.6); 0 drops it for a single run. Formulaic text shares runs that reveal nothing: 73 % of
        the embedded licences share one with a validation split, and 30 % half of their words.
    """

    ngram: Annotated[int, Range(least=LEAST_WORDS)] = 13
    against_validation: bool = True
    evaluation_sets: Sequence[Source] = ()
    max_share: Annotated[float, Range(least=0, below=1)] = 0.0

    def __post_init__(self):
        check_ranges(self)
        if not (self.against_validation or self.evaluation_sets):
            raise UsageError(
                "Contamination.against_validation is False and there are no evaluation_sets: leave "
                "Contamination out"
            )
        names = [source.name for source in self.evaluation_sets]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"Contamination.evaluation_sets: {name!r} is there twice")


class EvaluationText(NamedTuple):
    """A document that training documents are compared with.

    Attributes:
      evaluation_set: the name of the set.
      where: the document within the set.
      text: of the document.
    """

    evaluation_set: str
    where: str
    text: str


class Unseen(NamedTuple):
    """The documents of an evaluation set that cannot be looked for.

    Attributes:
      documents: of the set.
      too_short: those of fewer than `LEAST_WORDS` words.
      wordless: those among them that have none: signs alone.
    """

    documents: int
    too_short: int
    wordless: int


class Overlap(NamedTuple):
    """The runs of words that a text shares with evaluation sets.

    Attributes:
      share: of the text's words that are in such runs.
      evaluation_set, where: the document with most of those runs; "" if there is none.
    """

    share: float
    evaluation_set: str
    where: str


def write_index(
    folder: pathlib.Path, ngram: int, texts: Iterable[EvaluationText], run_ngrams: int = RUN_NGRAMS
) -> dict[str, Unseen]:
    """Writes the index of the n-grams of `texts` into `folder`, which must exist.

    One file holds the hashes, ascending and without repetition; one the first document of every
    hash; a third names the documents. A bit of the filter is set if the index has a hash that
    begins with the number of the bit. That is some 14 g bytes for g different n-grams. Memory holds
    `run_ngrams` of them at a time, whatever g is.

    Two different runs of 13 words have the same hash of 64 bits with a probability of 2^-59 at most
    (`ngrams`). So less than one text of 10^5 words in 10^4 matches one of 10^8 runs by chance.

    Returns:
      {set: its documents that cannot be looked for}, of all sets.
    """
    names: list[tuple[str, str]] = []
    unseen: dict[str, Unseen] = {}
    lengths = set()
    short: list[np.ndarray] = []
    runs = _Runs(folder, run_ngrams)
    for text in texts:
        words = word_hashes(text.text)
        length = min(ngram, len(words))
        before = unseen.get(text.evaluation_set, Unseen(0, 0, 0))
        unseen[text.evaluation_set] = Unseen(
            before.documents + 1,
            before.too_short + (length < LEAST_WORDS),
            before.wordless + (length == 0),
        )
        if length < LEAST_WORDS:
            continue
        if length < ngram:
            short.append(ngram_hashes(words[:LEAST_WORDS], LEAST_WORDS))
        lengths.add(length)
        runs.add(ngram_hashes(words, length), len(names))
        names.append((text.evaluation_set, text.where))
    runs.merge()
    hashes = _mapped(folder / HASHES_FILE, np.uint64)
    bits = (FILTER_BITS * (len(hashes) + len(short))).bit_length()
    _write_filter(folder / FILTER_FILE, max(bits, 3), [hashes, *short], run_ngrams)
    plain = {
        "lengths": sorted(lengths, reverse=True),
        "documents": names,
        "sizes": {name: (folder / name).stat().st_size for name in _ARRAYS},
    }
    (folder / NAMES_FILE).write_text(json.dumps(plain))
    return unseen


def is_whole(folder: pathlib.Path) -> bool:
    """Whether an index has all that `write_index` wrote: a cut one would miss text in silence."""
    plain = read_cached(folder / NAMES_FILE, lambda value: isinstance(value, dict)) or {}
    files = [folder / name for name in _ARRAYS]
    found = {file.name: file.stat().st_size for file in files if file.is_file()}
    return plain.get("sizes") == found


def _write_filter(file: pathlib.Path, bits: int, hashes: Iterable[np.ndarray], block: int) -> None:
    """Writes 2**bits bits, and sets those whose numbers are the first `bits` bits of a hash."""
    held = np.lib.format.open_memmap(file, "w+", np.uint8, (2**bits // 8,))
    for whole in hashes:
        for first in range(0, len(whole), block):
            numbers = whole[first : first + block] >> np.uint64(64 - bits)
            for bit in range(8):
                held[numbers[numbers % 8 == bit] // 8] |= np.uint8(1 << bit)
    held.flush()


class _Runs:
    """An external sort of n-grams: sorted in memory a run at a time, then merged."""

    def __init__(self, folder: pathlib.Path, run_ngrams: int):
        self.folder = folder
        self.run_ngrams = run_ngrams
        self.held: list[tuple[np.ndarray, np.ndarray]] = []
        self.count = 0
        self.files: list[tuple[pathlib.Path, pathlib.Path]] = []

    def add(self, hashes: np.ndarray, document: int) -> None:
        self.held.append((hashes, np.full(len(hashes), document, np.uint32)))
        self.count += len(hashes)
        if self.count >= self.run_ngrams:
            self._spill()

    def _spill(self) -> None:
        name = f"run-{len(self.files)}"
        self.files.append((self.folder / f"{name}.hashes", self.folder / f"{name}.documents"))
        with open(self.files[-1][0], "wb") as hashes, open(self.files[-1][1], "wb") as documents:
            _write_sorted(self.held, hashes, documents)
        self.held, self.count = [], 0

    def merge(self) -> None:
        """Writes the files of the index, and removes those of the runs."""
        if self.held:
            self._spill()
        runs = [(_mapped(h, np.uint64), _mapped(d, np.uint32)) for h, d in self.files]
        with (
            open(self.folder / HASHES_FILE, "wb") as hashes,
            open(self.folder / DOCUMENTS_FILE, "wb") as documents,
        ):
            for pieces in _ranges(runs):
                _write_sorted(pieces, hashes, documents)
        for file in (file for pair in self.files for file in pair):
            file.unlink()


def _ranges(
    runs: Sequence[tuple[np.ndarray, np.ndarray]],
) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """The pieces of all runs with hashes in one range, range after range.

    There are as many ranges as runs. Hashes are uniform, so a range holds about one run.
    """
    edges = [(2**64 // len(runs)) * i for i in range(1, len(runs))] if runs else []
    cuts = [
        [0, *np.searchsorted(hashes, np.array(edges, np.uint64)), len(hashes)] for hashes, _ in runs
    ]
    for i in range(len(runs)):
        yield [
            (hashes[cut[i] : cut[i + 1]], documents[cut[i] : cut[i + 1]])
            for (hashes, documents), cut in zip(runs, cuts, strict=True)
        ]


def _write_sorted(
    pieces: Sequence[tuple[np.ndarray, np.ndarray]], hashes: BinaryIO, documents: BinaryIO
) -> None:
    """Writes the distinct hashes of `pieces`, ascending, with the document that comes first."""
    unique, first = np.unique(np.concatenate([piece for piece, _ in pieces]), return_index=True)
    hashes.write(unique.data)
    documents.write(np.concatenate([piece for _, piece in pieces])[first].data)


def _mapped(file: pathlib.Path, dtype: type) -> np.ndarray:
    if not file.stat().st_size:
        return np.zeros(0, dtype)
    return np.asarray(np.memmap(file, dtype, "r"))  # a plain array is indexed faster


class Index:
    """The index that `write_index` wrote: mapped, so that the workers of a machine share it."""

    def __init__(self, folder: pathlib.Path):
        """Opens the index in `folder`."""
        plain = json.loads((folder / NAMES_FILE).read_text())
        self.lengths: list[int] = plain["lengths"]
        self.names: list[tuple[str, str]] = plain["documents"]
        self.hashes = _mapped(folder / HASHES_FILE, np.uint64)
        self.documents = _mapped(folder / DOCUMENTS_FILE, np.uint32)
        self.filter = np.asarray(np.load(folder / FILTER_FILE, mmap_mode="r"))
        self.shift = np.uint64(65 - (8 * len(self.filter)).bit_length())

    def overlaps(self, words: Words) -> list[Overlap]:
        """The runs that each of some texts shares with the documents of the index.

        A text with fewer words than a run shares none, unless it contains a whole document.
        """
        # Runs that begin before a word and have not ended, one word after the other.
        edges = np.zeros(len(words.hashes) + 1, np.int32)
        texts, documents = [np.zeros(0, np.int64)], [np.zeros(0, np.uint32)]
        for length, places, runs in self._candidates(words.hashes):
            rows = np.searchsorted(self.hashes, runs)
            rows[rows == len(self.hashes)] = 0
            hits = self.hashes[rows] == runs
            rows, places = rows[hits], places[hits]
            own = np.searchsorted(words.ends, places, "right")
            whole = places + length <= words.ends[own]  # not of two texts
            places = places[whole]
            edges[places] += 1
            edges[places + length] -= 1
            texts.append(own[whole])
            documents.append(self.documents[rows[whole]])
        overlaps = [Overlap(0.0, "", "")] * len(words.ends)
        covered = np.concatenate([[0], np.cumsum(np.cumsum(edges[:-1]) > 0)])
        shared = covered[words.ends] - covered[words.begins()]
        sizes = words.ends - words.begins()
        for text, document in _most_frequent(np.concatenate(texts), np.concatenate(documents)):
            overlaps[text] = Overlap(float(shared[text] / sizes[text]), *self.names[document])
        return overlaps

    def _candidates(self, words: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """(length, places, hashes) of the runs that pass the filter, over the ends of texts, too.

        The filter has the first words of the documents that are shorter than a run, too. So there
        are two passes over a text, however many lengths such documents have.
        """
        if not self.lengths:
            return
        longest, *shorter = self.lengths
        runs = ngram_hashes(words, longest)
        places = self._passing(runs)
        if len(places):
            yield longest, places, runs[places]
        if not shorter:
            return
        begins = ngram_hashes(words, LEAST_WORDS)
        passing = self._passing(begins)
        for length in shorter:
            places = passing[passing <= len(words) - length]
            if len(places):
                runs = begins[places]
                for offset in range(LEAST_WORDS, length):
                    runs = runs * np.uint64(MULTIPLIER) + words[places + offset]
                yield length, places, runs

    def _passing(self, hashes: np.ndarray) -> np.ndarray:
        numbers = hashes >> self.shift
        held = self.filter[(numbers >> np.uint64(3)).astype(np.intp)]
        return np.flatnonzero((held >> (numbers & np.uint64(7)).astype(np.uint8)) & 1)


def _most_frequent(texts: np.ndarray, documents: np.ndarray) -> Iterator[tuple[int, int]]:
    """(text, its most frequent document), of pairs; among equals the document that comes first."""
    pairs, counts = np.unique(texts * 2**32 + documents, return_counts=True)
    order = np.lexsort((pairs, -counts, pairs >> 32))
    pairs = pairs[order]
    is_first = np.ones(len(pairs), bool)
    is_first[1:] = pairs[1:] >> 32 != pairs[:-1] >> 32
    firsts = pairs[is_first]
    yield from zip((firsts >> 32).tolist(), (firsts & (2**32 - 1)).tolist(), strict=True)
