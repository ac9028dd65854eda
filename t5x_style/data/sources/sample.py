"""Texts chosen at random over the whole of a split, at a bounded cost.

Corpora are sorted: by year, by language, by kind. So the first documents of a split are no sample
of it.
"""

import bisect
import collections
import dataclasses
import heapq
import itertools
import random
from collections.abc import Iterator, Sequence

from t5x_style.data.formats.format import Part
from t5x_style.data.sources.documents import document_in, is_chosen, parts, records
from t5x_style.data.sources.filters import filtered
from t5x_style.data.sources.normal_form import document_digest
from t5x_style.data.sources.source import Source
from t5x_style.quantities import byte_count

# A split of up to so many bytes on disk is read through. Of a larger one so many are read, at
# PLACES over all of its files.
READ_BYTES = 1 << 28
PLACES = 256
# A longer document counts as several texts, or one book would be the whole sample.
TEXT_CHARACTERS = 1 << 16
# One text in so many is held out. Its digest decides, so any seed and size hold out the same ones.
HELD_OUT = 20


# Parts, and how many bytes of each to read; None for all of it.
Places = Sequence[tuple[Part, int | None]]


@dataclasses.dataclass(frozen=True)
class Sample:
    """Texts of a split, in random order, and how much of the split they were chosen from.

    Attributes:
      texts: whole documents, or pieces of long ones, after the filters of the source.
      held_out: texts that are never among `texts`, of any sample of this split.
      places: the pieces of the split that were looked at.
      read, size: bytes on disk that were looked at, and those of the split.
    """

    texts: Sequence[str]
    held_out: Sequence[str]
    places: int
    read: int
    size: int

    def __str__(self) -> str:
        """For people: 1.9 MiB of text sampled over 93 MiB on disk in 4 parts."""
        chosen = sum(len(text.encode()) for text in self.texts)
        parts_of_it = f"{self.places:,} part{'' if self.places == 1 else 's'}"
        looked = f", {byte_count(self.read)} of them looked at" if self.read < self.size else ""
        return (
            f"{byte_count(chosen)} of text sampled over {byte_count(self.size)} on disk in "
            f"{parts_of_it}{looked}"
        )


def sample(
    source: Source, split: str, wanted_bytes: int, *, seed: int = 0, held_out_bytes: int = 0
) -> Sample:
    """Chooses texts over the whole of a split.

    Files that cannot be entered in the middle, such as compressed ones, are read from their
    beginning: to the end, unless the split is larger than READ_BYTES.

    Args:
      source: the source.
      split: 'train' or 'validation'.
      wanted_bytes: of UTF-8 in `texts`, 1 or more. Exceeded by less than one text; fewer if there
        are no more.
      seed: of the choice, any integer.
      held_out_bytes: of UTF-8 in `held_out`. If 0, nothing is held out.

    Raises:
      UsageError: there is no file.
      Fault: a bad record, unless the source skips them; a file that cannot be read.
    """
    every = parts(source, split)
    size = sum(part.size for part in every)
    ways: list[Places] = [[(part, None) for part in every]]
    if size > READ_BYTES:
        ways.insert(0, _places(source, split, size, seed))
    for places in ways:
        chosen, held_out = _Lowest(wanted_bytes), _Lowest(held_out_bytes)
        read = _look(source, split, places, seed, chosen, held_out)
        if chosen.heap or held_out.heap:
            break
        # The documents of this split, or those that a filter keeps, are rare: all is read.
    texts, apart = chosen.texts(), held_out.texts()
    if not texts:
        texts, apart = apart, []
    if held_out_bytes and not apart and len(set(texts)) > 1:
        # A split of a few documents: the one of the lowest digest is held out.
        apart = [min(texts, key=_digest)]
        texts = [text for text in texts if text != apart[0]]
    return Sample(texts, apart, len(places), read, size)


def stretches(text: str, characters: int) -> Iterator[str]:
    """Cuts a text, before a newline or a space if it can, into pieces of so many characters."""
    start = 0
    while start < len(text):
        end = start + characters
        if end < len(text):
            cut = max(text.rfind("\n", start + 1, end), 0) or text.rfind(" ", start + 1, end)
            end = cut if cut > start else end
        yield text[start:end]
        start = end


def _places(source: Source, split: str, size: int, seed: int) -> Places:
    """Parts at PLACES that are spread over the bytes of the split, and bytes to read of each."""
    found = parts(source, split, size // PLACES)
    ends = list(itertools.accumulate(part.size for part in found))
    choice = random.Random(f"places {seed}")
    hits = collections.Counter(
        bisect.bisect_right(ends, int((n + choice.random()) * ends[-1] / PLACES))
        for n in range(PLACES)
    )
    allowances = [(found[i], count * READ_BYTES // PLACES) for i, count in sorted(hits.items())]
    return [(part, most if most < part.size else None) for part, most in allowances]


def _look(
    source: Source, split: str, places: Places, seed: int, chosen: "_Lowest", held_out: "_Lowest"
) -> int:
    """Offers the texts at the places to the two. Returns the bytes on disk that were looked at."""
    total = 0
    for number, (part, allowance) in enumerate(places):
        choice = random.Random(f"{number} {seed}")
        looked = characters = 0

        def on_read(count: int) -> None:
            nonlocal looked
            looked += count

        for record in records(source, split, part, on_read):
            document = document_in(source, split, record)
            if document is not None:
                _offer(source, split, document.text, choice, chosen, held_out)
                characters += len(document.text)
            # Some formats tell at the end of a part only what they have read.
            if allowance is not None and max(looked, characters) >= allowance:
                break
        total += min(part.size, max(looked, characters) if allowance else part.size)
    return total


def _offer(
    source: Source,
    split: str,
    text: str,
    choice: random.Random,
    chosen: "_Lowest",
    held_out: "_Lowest",
) -> None:
    """Adds the pieces of a text to one of the two, if their keys are low enough.

    Most are not. A digest is made, and a filter is asked, only of a text that may be chosen.
    """
    keys = [choice.random() for _ in range(0, len(text), TEXT_CHARACTERS)]
    if not any(chosen.takes(key) or held_out.takes(key) for key in keys):
        return
    digest = _digest(text) if held_out.wanted else 0
    goes_to = [
        held_out if held_out.wanted and _is_held_out(digest, i) else chosen
        for i in range(len(keys))
    ]
    if not any(place.takes(key) for place, key in zip(goes_to, keys, strict=True)):
        return
    kept, _ = filtered(source.filters, text)
    if kept is None or not kept.strip() or not is_chosen(source, split, kept):
        return
    pieces = stretches(kept, TEXT_CHARACTERS)
    # A filter may have made more pieces of it: those have no keys.
    for place, key, piece in zip(goes_to, keys, pieces, strict=False):
        if place.takes(key):
            place.add(key, piece)


def _is_held_out(digest: int, piece: int) -> bool:
    # The bits of the golden ratio spread the pieces of a long text: every twentieth or so.
    return (digest + piece * 0x9E3779B97F4A7C15) % 2**64 < 2**64 // HELD_OUT


def _digest(text: str) -> int:
    return int.from_bytes(document_digest(text)[:8])


class _Lowest:
    """The texts of the lowest keys, as many as have the wanted bytes.

    With random keys this is a random choice, whose memory does not grow with what is offered.
    """

    def __init__(self, wanted: int):
        self.wanted = wanted
        self.size = 0
        self.heap: list[tuple[float, int, str]] = []

    def takes(self, key: float) -> bool:
        return self.size < self.wanted or (self.wanted > 0 and key < -self.heap[0][0])

    def add(self, key: float, text: str) -> None:
        size = len(text.encode())
        heapq.heappush(self.heap, (-key, size, text))
        self.size += size
        while self.size - self.heap[0][1] >= self.wanted:
            self.size -= heapq.heappop(self.heap)[1]

    def texts(self) -> list[str]:
        """In the order of their keys."""
        return [text for *_, text in sorted(self.heap, reverse=True)]
