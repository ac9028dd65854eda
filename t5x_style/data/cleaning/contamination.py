"""Training documents that hold text of the validation split or of an evaluation set."""

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO, NamedTuple

import gin
import numpy as np

from t5x_style.data.cleaning.ngrams import ngram_hashes, word_hashes
from t5x_style.data.sources.source import Source
from t5x_style.errors import UsageError

HASHES_FILE = "hashes.uint64"
DOCUMENTS_FILE = "documents.uint32"
NAMES_FILE = "names.json"
# Documents with fewer words, "yes" and "see above", are in everything that was ever written.
LEAST_WORDS = 8
# n-grams that are sorted at a time, 12 bytes each.
RUN_NGRAMS = 1 << 23


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

    ngram: int = 13
    against_validation: bool = True
    evaluation_sets: Sequence[Source] = ()
    max_share: float = 0.0

    def __post_init__(self):
        if self.ngram < LEAST_WORDS:
            raise UsageError(f"Contamination.ngram = {self.ngram}: at least {LEAST_WORDS} words")
        if not 0 <= self.max_share < 1:
            raise UsageError(
                f"Contamination.max_share = {self.max_share}: at least 0 and below 1, a share"
            )
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
) -> dict[str, int]:
    """Writes the index of the n-grams of `texts` into `folder`, which must exist.

    One file holds the hashes, ascending and without repetition; one the first document of every
    hash; a third names the documents. That is 12 g bytes for g different n-grams. Memory holds
    `run_ngrams` of them at a time, whatever g is.

    Two different runs of 13 words have the same hash of 64 bits with a probability of 2^-59 at most
    (`ngrams`). So less than one text of 10^5 words in 10^4 matches one of 10^8 runs by chance.

    Returns:
      {set: documents that are too short to be looked for}, for the sets that have some.
    """
    names: list[tuple[str, str]] = []
    too_short: dict[str, int] = {}
    lengths = set()
    runs = _Runs(folder, run_ngrams)
    for text in texts:
        words = word_hashes(text.text)
        length = min(ngram, len(words))
        if length < LEAST_WORDS:
            too_short[text.evaluation_set] = too_short.get(text.evaluation_set, 0) + 1
            continue
        lengths.add(length)
        runs.add(ngram_hashes(words, length), len(names))
        names.append((text.evaluation_set, text.where))
    runs.merge()
    plain = {"lengths": sorted(lengths, reverse=True), "documents": names}
    (folder / NAMES_FILE).write_text(json.dumps(plain))
    return too_short


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
    return np.memmap(file, dtype, "r")


class Index:
    """The index that `write_index` wrote: mapped, so that the workers of a machine share it."""

    def __init__(self, folder: pathlib.Path):
        """Opens the index in `folder`."""
        plain = json.loads((folder / NAMES_FILE).read_text())
        self.lengths: list[int] = plain["lengths"]
        self.names: list[tuple[str, str]] = plain["documents"]
        self.hashes = _mapped(folder / HASHES_FILE, np.uint64)
        self.documents = _mapped(folder / DOCUMENTS_FILE, np.uint32)

    def overlap(self, text: str) -> Overlap:
        """The runs that `text` shares with the documents of the index.

        A text with fewer words than a run shares none, unless it contains a whole document.
        """
        words = word_hashes(text)
        covered = np.zeros(len(words), bool)
        found = []
        for length in self.lengths:
            hashes = ngram_hashes(words, length)
            places = np.searchsorted(self.hashes, hashes)
            places[places == len(self.hashes)] = 0
            hits = np.flatnonzero(self.hashes[places] == hashes)
            for offset in range(length):
                covered[hits + offset] = True
            found.append(self.documents[places[hits]])
        if not covered.any():
            return Overlap(0.0, "", "")
        documents, runs = np.unique(np.concatenate(found), return_counts=True)
        evaluation_set, where = self.names[documents[np.argmax(runs)]]
        return Overlap(float(covered.mean()), evaluation_set, where)
