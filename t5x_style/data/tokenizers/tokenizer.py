"""Text to token ids and back, without TensorFlow."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import gin
import numpy as np

from t5x_style.data.formats.file_kinds import HEAD_BYTES, foreign_kind
from t5x_style.data.tokenizers import made_from
from t5x_style.data.tokenizers.kinds import BYTES, Bytes, Json, SentencePiece
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import absolute, local_path, write_whole

PAD_ID = 0
# A run's own copy of its vocabulary.
VOCABULARY_FILES = ("vocabulary.model", "vocabulary.json")


def absolute_unless_bytes(path: str, others: Mapping[str, Any]) -> str:
    """`files.absolute`; the word 'bytes' is no path."""
    return path if path == BYTES else absolute(path, others)


@dataclasses.dataclass(frozen=True)
class TextBytes:
    """How the ids of a text stand for its bytes.

    Attributes:
      size: bytes of the text.
      extra: (place among the ids, how many bytes of the text more) of ids that stand for more
        bytes than `Tokenizer.token_bytes` has, or for fewer. The place after the last id is that of
        EOS: it has the bytes at the end of the text that no id stands for.
      lost: bytes of the text that decoding does not give back, and those that it gives instead. 0
        if the ids decode to the text.
    """

    size: int
    extra: tuple[tuple[int, int], ...] = ()
    lost: int = 0


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A vocabulary: a sentencepiece model, a tokenizer.json, or the bytes themselves.

    The file is read at first use: a run file may name a vocabulary that is not trained yet.

    Attributes:
      path: a sentencepiece `.model` file; a `.json` file of the library `tokenizers` (byte-level
        BPE or Metaspace), as Hugging Face models carry it; or the word 'bytes': the ids of ByT5
        (0 pad, 1 EOS, 2 unknown, byte b is b + 3), with no file.
      eos: the added token of a `.json` file that ends each document. None for the one named `</s>`,
        `<eos>`, `<|endoftext|>` or `<|end_of_text|>`.
    """

    path: Annotated[str, absolute_unless_bytes]
    eos: str | None = None

    def __post_init__(self):
        local_path(self.path, "Tokenizer.path")
        suffix = pathlib.PurePath(self.path).suffix
        if self.path != BYTES and suffix not in (".model", ".json"):
            raise UsageError(
                f"Tokenizer.path = {self.path!r} is neither a sentencepiece '.model', nor a "
                f"tokenizers '.json', nor the word 'bytes'{did_you_mean(self.path, [BYTES])}"
            )
        if self.eos is not None and suffix != ".json":
            raise UsageError(
                f"Tokenizer.eos = {self.eos!r}: only a '.json' has a choice of EOS; {self.path!r} "
                f"has its own"
            )

    @property
    def name_in_run(self) -> str:
        """The name of a run's own copy, one of VOCABULARY_FILES; or 'bytes'."""
        return BYTES if self.path == BYTES else f"vocabulary{pathlib.PurePath(self.path).suffix}"

    def write_copy(self, model_dir: str) -> None:
        """Copies the file into the folder of a run, and the JSON beside it, unless it is there."""
        if self.path == BYTES:
            return
        copy = pathlib.Path(model_dir) / self.name_in_run
        beside = made_from.json_file(pathlib.Path(self.path))
        # A vocabulary that extends another is of use as a start only with its sub-pieces.
        if beside.is_file() and beside != made_from.json_file(copy):
            write_whole(made_from.json_file(copy), beside.read_bytes())
        if not (copy.is_file() and copy.read_bytes() == self._content):
            write_whole(copy, self._content)

    def __reduce__(self):
        # Without the cached library object: pickled, it forgets that special tokens are text.
        return Tokenizer, (self.path, self.eos)

    @functools.cached_property
    def _content(self) -> bytes:
        if self.path == BYTES:
            return self.path.encode()
        file = pathlib.Path(self.path)
        if not file.is_file():
            raise UsageError(
                f"Tokenizer.path = {self.path!r}: no such file; train one with "
                f"`t5x-style tokenizer --gin_file=RUN.gin`, or name an existing vocabulary"
            )
        content = file.read_bytes()
        if not content:
            raise UsageError(f"Tokenizer.path = {self.path!r} is empty")
        if found := foreign_kind(content[:HEAD_BYTES]):
            raise UsageError(f"Tokenizer.path = {self.path!r} is {found[0]}, not a vocabulary")
        return content

    @functools.cached_property
    def _kind(self) -> SentencePiece | Json | Bytes:
        if self.path == BYTES:
            return Bytes()
        if self.path.endswith(".json"):
            return Json(self.path, self._content, self.eos)
        return SentencePiece(self.path, self._content)

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""
        return self._kind.vocab_size

    @property
    def eos_id(self) -> int:
        """The id that ends each document."""
        return self._kind.eos_id

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the file, and of `eos` if it is set. A token store is bound to it."""
        chosen = b"" if self.eos is None else b"\0" + self.eos.encode()
        return hashlib.sha256(self._content + chosen).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without EOS. Vocabularies trained here decode them to `text` again.

        Raises:
          UsageError: half a surrogate pair, as a byte of a command line that is not UTF-8 becomes.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{text!r} is not UTF-8 at character {error.start}") from None
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """`encode` as int32 [tokens]: a tenth of the memory of a list.

        The result has no control ids, whatever the text spells.
        """
        return self._kind.encode_array(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`. Control ids are left out; broken UTF-8 becomes U+FFFD."""
        return self._kind.decode([int(token) for token in ids])

    def piece(self, token: int) -> str:
        """An id as its vocabulary writes it: `▁the`, `Ġthe`, `<0x0A>`, `</s>`.

        Raises:
          UsageError: no such id.
        """
        if not 0 <= token < self.vocab_size:
            raise UsageError(f"{self.path!r} has the ids 0 to {self.vocab_size - 1}, not {token}")
        return self._kind.piece(int(token))

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: bytes of UTF-8 of each id, 0 for control and unknown ids."""
        return self._token_bytes

    @functools.cached_property
    def _token_bytes(self) -> np.ndarray:
        sizes = np.array([len(piece) for piece in self._pieces], np.int32)
        sizes.flags.writeable = False
        return sizes

    @functools.cached_property
    def _pieces(self) -> list[bytes]:
        return self._kind.pieces()

    @functools.cached_property
    def _drops_first_space(self) -> bool:
        """Whether `decode` leaves out the space that `encode` puts before a text."""
        spaces = (token for token, piece in enumerate(self._pieces) if piece.startswith(b" "))
        return any(not self.decode([token]).startswith(" ") for token in spaces)

    def text_bytes(self, text: str, ids: np.ndarray) -> TextBytes:
        """Which bytes of a text its ids stand for, and how many come back otherwise.

        Args:
          text: a text.
          ids: `encode_array(text)`.
        """
        content = text.encode()
        if self._kind.verbatim and self._token_bytes.take(ids).sum() == len(content):
            return TextBytes(len(content))
        pieces = [self._pieces[token] for token in ids.tolist()]
        is_lossless = self.decode(ids.tolist()) == text
        if is_lossless and pieces and pieces[0][1:] + b"".join(pieces[1:]) == content:
            return TextBytes(len(content), ((0, -1),))
        extra: list[tuple[int, int]] = []
        lost = start = first = 0
        # EOS has what no id stands for: white space at the end that the vocabulary drops.
        pieces.append(b"")
        ends = [*self._kind.text_ends(text).tolist(), len(content)]
        for last, end in enumerate(ends):
            if end == start and last < len(ids):
                continue
            # The ids of one character, or of several that became others, belong together.
            part, held = content[start:end], b"".join(pieces[first : last + 1])
            if part != held:
                extra += [(i, -len(pieces[i])) for i in range(first, last)]
                extra.append((last, len(part) - len(pieces[last])))
                is_first_space = start == 0 and self._drops_first_space
                lost += _differing(part, held[is_first_space:])
            start, first = end, last + 1
        extra = [(place, more) for place, more in extra if more]
        return TextBytes(len(content), tuple(extra), 0 if is_lossless else max(lost, 1))

    def id_bytes(self, ids: np.ndarray) -> TextBytes:
        """As `text_bytes`, of ids whose text is not known: they stand for what they decode to."""
        size = int(self._token_bytes.take(ids).sum())
        if self._pieces[ids[0]].startswith(b" ") and self._drops_first_space:
            return TextBytes(size - 1, ((0, -1),))
        return TextBytes(size)

    def seqio_vocabulary(self):
        """This vocabulary for a seqio Task, with the ids of `encode`.

        It imports seqio, and with it TensorFlow: call it in the process that builds stores.
        """
        from t5x_style.data.tokenizers.seqio_vocabulary import vocabulary

        return vocabulary(self)


def _differing(part: bytes, piece: bytes) -> int:
    """The bytes to take out of `part` and to put in, to make `piece`; in one stretch."""
    most = min(len(part), len(piece))
    before = next((n for n in range(most) if part[n] != piece[n]), most)
    after = next((n for n in range(most - before) if part[-1 - n] != piece[-1 - n]), most - before)
    return len(part) + len(piece) - 2 * (before + after)
