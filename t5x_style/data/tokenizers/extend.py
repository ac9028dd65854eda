"""More pieces for a vocabulary that a model was already trained with.

Byte-pair merges continue where the base vocabulary stops (Purason et al. 2025, arXiv 2512.03989).
The pair of neighbours that is most frequent in the sample, as the base cuts it, becomes a piece,
and so on. So the text is really cut into every new piece. Appending a vocabulary that was trained
separately does not have this property. The new ids come after those of the base, which keep their
meaning.
"""

import collections
import dataclasses
import functools
import heapq
import itertools
import math
import os
import pathlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from t5x_style.data.tokenizers import made_from
from t5x_style.data.tokenizers.kinds import SPACE_MARK
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.data.tokenizers.train import sampled, units
from t5x_style.errors import UsageError
from t5x_style.files import write_whole

# How much a piece of a Unigram model scores above any other way to write it, where its frequency
# alone is too low. It is more than the rounding of float32.
MARGIN = 0.01
LEAST_COUNT = 2

Pieces = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Extension:
    """How a vocabulary extends another one.

    Attributes:
      base_hash: SHA-256 of the base's file.
      base_size: V of the base; the ids below keep their meaning.
      sub_pieces: {new id: the ids by which the base writes it}, for the ids from `base_size` on.
    """

    base_hash: str
    base_size: int
    sub_pieces: Mapping[int, Sequence[int]]

    def to_json(self) -> dict[str, Any]:
        """The entry `extension` of the JSON beside the vocabulary."""
        sub_pieces = {str(token): list(ids) for token, ids in self.sub_pieces.items()}
        return dataclasses.asdict(self) | {"sub_pieces": sub_pieces}


def read_extension(tokenizer: Tokenizer) -> Extension | None:
    """How a vocabulary extends another, from the JSON beside it. None if it does not.

    Raises:
      UsageError: the JSON is broken, or of another vocabulary.
    """
    file = pathlib.Path(tokenizer.path)
    known = made_from.read(file)
    if known is None:
        raise UsageError(
            f"{made_from.json_file(file)} is broken: `t5x-style tokenizer` with the arguments that "
            f"made {file} makes it again"
        )
    if "extension" not in known:
        return None
    if known["model"] != tokenizer.hash:
        raise UsageError(
            f"{made_from.json_file(file)} describes another vocabulary than {tokenizer.path}: its "
            f"hash is {known['model'][:12]}, that of the file is {tokenizer.hash[:12]}"
        )
    fields = known["extension"]
    sub_pieces = {int(token): tuple(ids) for token, ids in fields["sub_pieces"].items()}
    return Extension(fields["base_hash"], fields["base_size"], sub_pieces)


def extend_vocabulary(
    base: Tokenizer,
    texts: Mapping[str, Iterable[str]],
    shares: Mapping[str, float],
    *,
    vocab_size: int,
    path: str | os.PathLike,
    terms: Sequence[str] = (),
    seed: int = 0,
    sample_bytes: int = 4_000_000,
) -> Extension:
    """Adds pieces to a sentencepiece vocabulary, and writes it to `path`.

    In a BPE model the new merges come after all merges of the base. In a Unigram model the score of
    a piece is the logarithm of its share of the sample's tokens. If another way to write it scores
    higher, the piece scores a little above that.

    Args:
      base: a sentencepiece model, Unigram or BPE.
      texts, shares, seed, sample_bytes: the sample, see `train_tokenizer`.
      vocab_size: V of the result, above that of the base.
      path: the `.model` file.
      terms: words or phrases that become one piece each, as written after a space. They come before
        the pieces that are found.

    Raises:
      UsageError: a base that is not of these kinds; a size that cannot be reached; a term that
        cannot be a piece.
      Fault: a source without text.
    """
    model = _Base(base)
    if vocab_size <= model.size:
        raise UsageError(
            f"vocab_size = {vocab_size}: {base.path} has {model.size} pieces already; ask for more"
        )
    room = vocab_size - model.size
    added: dict[str, Pieces] = {}
    for term in terms:
        added |= model.term_pieces(term)
    if len(added) > room:
        raise UsageError(
            f"vocab_size = {vocab_size} has room for {room} more pieces than {base.path}; the "
            f"terms need {len(added)}"
        )
    with_terms = model.extended(model.scores(added, {}))
    documents = itertools.chain.from_iterable(
        sampled(name, texts[name], round(share * sample_bytes), seed)
        for name, share in shares.items()
    )
    words: collections.Counter[Pieces] = collections.Counter()
    for unit in itertools.chain.from_iterable(map(units, documents)):
        words.update(model.words(with_terms.encode(unit, out_type=str)))
    sample = _Sample(words, model.may_join)
    added |= _found_pieces(sample, model, added, room - len(added))
    extended = model.extended(model.scores(added, sample.uses))
    for term in terms:
        pieces = extended.encode(model.as_encoded(term), out_type=str)
        if len(pieces) > 1:
            raise UsageError(
                f"the term {term!r} would still be {len(pieces)} pieces, {' '.join(pieces)}, "
                f"because of other pieces that are made first: leave it out, or those"
            )
    write_whole(path, extended.serialized_model_proto())
    return Extension(
        base.hash,
        model.size,
        {model.size + i: model.ids(parts) for i, parts in enumerate(added.values())},
    )


def _found_pieces(
    sample: "_Sample", base: "_Base", added: Mapping[str, Pieces], wanted: int
) -> dict[str, Pieces]:
    """The `wanted` pieces to add to `added`: {piece: the pieces of the base that it is made of}.

    A BPE model needs every piece on the way to a longer one. A Unigram model does not: twice as
    many are made, and those are taken that save most tokens, uses x (parts - 1).
    """
    found: dict[str, Pieces] = {}

    def parts(piece: str) -> Pieces:
        return found.get(piece) or added.get(piece) or (piece,)

    while len(found) < (wanted if base.is_bpe else 2 * wanted):
        pair, count = sample.most_frequent()
        if count < LEAST_COUNT:
            break
        piece = "".join(pair)
        if piece not in added:
            found.setdefault(piece, parts(pair[0]) + parts(pair[1]))
        sample.join(pair)
    if len(found) < wanted:
        raise UsageError(
            f"the text has {len(found)} pieces to add, {wanted} are asked for: "
            f"vocab_size = {base.size + len(added) + len(found)} at most, or more text"
        )
    by_saving = sorted(found, key=lambda piece: -sample.uses[piece] * (len(found[piece]) - 1))
    return found if base.is_bpe else {piece: found[piece] for piece in by_saving[:wanted]}


class _Base:
    """A sentencepiece model, and the rule by which its pieces may be joined."""

    def __init__(self, tokenizer: Tokenizer):
        from sentencepiece import sentencepiece_model_pb2

        self.path = tokenizer.path
        if not self.path.endswith(".model"):
            raise UsageError(
                f"{self.path} cannot be extended: only sentencepiece's .model files can"
            )
        _ = tokenizer.vocab_size  # refuses a missing file, or one that is no vocabulary
        self.proto = sentencepiece_model_pb2.ModelProto()
        self.proto.ParseFromString(pathlib.Path(tokenizer.path).read_bytes())
        trainer = self.proto.trainer_spec
        kind = trainer.ModelType.Name(trainer.model_type)
        if kind not in ("UNIGRAM", "BPE") or trainer.treat_whitespace_as_suffix:
            how = " with spaces at the ends of words" if kind in ("UNIGRAM", "BPE") else ""
            raise UsageError(
                f"{self.path} is a {kind} model{how}: only Unigram and BPE models with spaces "
                f"before the words can be extended"
            )
        self.is_bpe = kind == "BPE"
        self.size = len(self.proto.pieces)
        self.phrases = not trainer.split_by_whitespace
        self.white_runs = trainer.allow_whitespace_only_pieces
        self.longest = trainer.max_sentencepiece_length
        self.score = {piece.piece: piece.score for piece in self.proto.pieces}
        self.id = {piece.piece: token for token, piece in enumerate(self.proto.pieces)}
        normal = sentencepiece_model_pb2.ModelProto.SentencePiece.NORMAL
        # Bytes, symbols and control ids never become part of a longer piece.
        self.closed = {piece.piece for piece in self.proto.pieces if piece.type != normal}
        self.kind = functools.cache(self._kind)

    def as_encoded(self, term: str) -> str:
        """A term with the space before it that it has within a text."""
        return term if self.proto.normalizer_spec.add_dummy_prefix else f" {term}"

    def term_pieces(self, term: str) -> dict[str, Pieces]:
        """{piece: parts} to add for a term; empty if it is one piece already."""
        parts = tuple(self.extended({}).encode(self.as_encoded(term), out_type=str))
        closed = [part for part in parts if part in self.closed]
        if not term.strip() or closed:
            what = f"has {closed[0]}, which joins nothing" if closed else "is empty"
            raise UsageError(f"the term {term!r} cannot be a piece of {self.path}: it {what}")
        shortest = 2 if self.is_bpe else len(parts)
        heads = (parts[:length] for length in range(shortest, len(parts) + 1))
        return {"".join(head): head for head in heads if "".join(head) not in self.id}

    def words(self, pieces: Iterable[str]) -> Iterator[Pieces]:
        """Cuts a text into runs of pieces. Nothing is joined across their ends."""
        word: list[str] = []
        for piece in pieces:
            if word and not self._belong(word[-1], piece):
                yield tuple(word)
                word = []
            word.append(piece)
        if word:
            yield tuple(word)

    def may_join(self, left: str, right: str) -> bool:
        """Whether two neighbours may become one new piece."""
        joined = left + right
        return len(joined) <= self.longest and joined not in self.id and self._belong(left, right)

    def _belong(self, left: str, right: str) -> bool:
        if not right.strip(SPACE_MARK):
            return self.white_runs and not left.strip(SPACE_MARK)
        kinds = self.kind(left), self.kind(right)
        if left == SPACE_MARK:
            return kinds[1] in ("letters", "signs") and not right.startswith(SPACE_MARK)
        if kinds not in (("letters", "letters"), ("signs", "signs")):
            return False
        return not right.startswith(SPACE_MARK) or (self.phrases and kinds[0] == "letters")

    def _kind(self, piece: str) -> str | None:
        """'letters', 'signs', or None for a piece that joins neither: numbers, spaces, mixtures."""
        if piece in self.closed:
            return None
        # Marks count as letters: half of an Indic word is made of them.
        kinds = {unicodedata.category(char)[0] for char in piece.replace(SPACE_MARK, "")}
        if kinds and kinds <= {"L", "M"}:
            return "letters"
        return "signs" if kinds and not kinds & {"L", "M", "N"} else None

    def scores(self, added: Mapping[str, Pieces], uses: Mapping[str, int]) -> dict[str, float]:
        """{piece: score} of the added pieces, see `extend_vocabulary`."""
        if self.is_bpe:
            lowest = min(self.score.values())
            return {piece: lowest - 1 - i for i, piece in enumerate(added)}
        total = sum(uses.values())
        scores = {
            piece: math.log(uses[piece] / total) if uses.get(piece) else -math.inf
            for piece in added
        }
        # From short to long: the shorter ones are among the ways to write a longer one.
        known = {piece: score for piece, score in self.score.items() if piece not in self.closed}
        for piece in sorted(added, key=len):
            scores[piece] = max(scores[piece], _likeliest(piece, known) + MARGIN)
            known[piece] = scores[piece]
        return scores

    def extended(self, scores: Mapping[str, float]) -> Any:
        """A SentencePieceProcessor of the base with these pieces at its end."""
        import sentencepiece

        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        for piece, score in scores.items():
            proto.pieces.add(piece=piece, score=score)
        proto.trainer_spec.vocab_size = len(proto.pieces)
        content = proto.SerializeToString(deterministic=True)
        return sentencepiece.SentencePieceProcessor(model_proto=content)

    def ids(self, parts: Pieces) -> tuple[int, ...]:
        """The ids of pieces of the base."""
        return tuple(self.id[part] for part in parts)


def _likeliest(text: str, scores: Mapping[str, float]) -> float:
    """The highest sum of scores of pieces that write `text`."""
    best = [0.0] + [-math.inf] * len(text)
    for end in range(1, len(text) + 1):
        best[end] = max(
            best[start] + scores.get(text[start:end], -math.inf) for start in range(end)
        )
    return best[-1]


class _Sample:
    """The words of a sample as runs of pieces, with counts of pairs of neighbours.

    Attributes:
      uses: {piece: how often it occurs}.
    """

    def __init__(self, words: Mapping[Pieces, int], may_join: Callable[[str, str], bool]):
        self._may_join = functools.cache(may_join)
        self._words = [list(word) for word in words]
        self._counts = list(words.values())
        self._pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        self._where: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
        self.uses: collections.Counter[str] = collections.Counter()
        for index in range(len(self._words)):
            self._count(index, 1)
        # With the count at the time of the push. It is looked up again when the pair is on top.
        self._heap = [(-count, pair) for pair, count in self._pairs.items()]
        heapq.heapify(self._heap)

    def most_frequent(self) -> tuple[tuple[str, str], int]:
        """(pair, count) of the most frequent pair; (("", ""), 0) when none is left.

        Among equals it is the first in the order of text.
        """
        while self._heap:
            count, pair = self._heap[0]
            if -count == self._pairs[pair]:
                return pair, -count
            heapq.heappop(self._heap)
        return ("", ""), 0

    def join(self, pair: tuple[str, str]) -> None:
        """Makes one piece of every occurrence of the pair, from the left."""
        changed = self._where.pop(pair)
        near: set[tuple[str, str]] = set()
        for index in changed:
            near |= self._count(index, -1)
            word = self._words[index]
            position = 0
            while position < len(word) - 1:
                if (word[position], word[position + 1]) == pair:
                    word[position : position + 2] = ["".join(pair)]
                position += 1
            near |= self._count(index, 1)
        for changed_pair in near:
            if self._pairs[changed_pair] > 0:
                heapq.heappush(self._heap, (-self._pairs[changed_pair], changed_pair))

    def _count(self, index: int, sign: int) -> set[tuple[str, str]]:
        """Adds (or subtracts) the pieces and the pairs of one word. Returns the pairs."""
        word, count = self._words[index], sign * self._counts[index]
        for piece in word:
            self.uses[piece] += count
        pairs = {pair for pair in itertools.pairwise(word) if self._may_join(*pair)}
        for pair in itertools.pairwise(word):
            if pair in pairs:
                self._pairs[pair] += count
                self._where[pair].add(index)
        return pairs
