"""Text to token ids and back, through a sentencepiece model and without TensorFlow."""

import dataclasses
import functools
import hashlib
import pathlib
from collections.abc import Iterable, Iterator

import gin
import numpy as np

from t5x_style.errors import UsageError

PAD_ID = 0
# sentencepiece writes a space as this character, so one in the text itself would come back as a
# space; it is spelt out in bytes instead.
SPACE_MARK = "\u2581"
# The lattice of one call needs some 30 bytes for each byte of text: a document of 100 MB goes
# through in pieces of this many characters.
SEGMENT_CHARACTERS = 1 << 20


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A sentencepiece vocabulary.

    The file is read at first use, so that a run file may name one that is yet to be trained.

    Attributes:
      path: the sentencepiece `.model` file.
    """

    path: str

    @functools.cached_property
    def _model(self) -> bytes:
        file = pathlib.Path(self.path)
        if not file.is_file():
            raise UsageError(
                f"Tokenizer.path = {self.path!r}: no such file; train one with "
                f"`t5x-style tokenizer --gin_file=RUN.gin`, or name an existing sentencepiece model"
            )
        return file.read_bytes()

    @functools.cached_property
    def _processor(self):
        import sentencepiece

        try:
            processor = sentencepiece.SentencePieceProcessor(model_proto=self._model)
        except RuntimeError as error:
            raise UsageError(
                f"Tokenizer.path = {self.path!r} is not a sentencepiece model: {error}"
            ) from None
        if processor.eos_id() < 0:
            raise UsageError(
                f"Tokenizer.path = {self.path!r} has no end-of-sentence id, which ends each "
                f"document here: train it with eos_id=1"
            )
        return processor

    @property
    def vocab_size(self) -> int:
        """V, the number of ids."""
        return self._processor.vocab_size()

    @property
    def eos_id(self) -> int:
        """The id that ends each document."""
        return self._processor.eos_id()

    @functools.cached_property
    def hash(self) -> str:
        """SHA-256 of the model file: what a token store is bound to."""
        return hashlib.sha256(self._model).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without EOS. Our own vocabularies decode them to `text` again."""
        return self.encode_array(text).tolist()

    def encode_array(self, text: str) -> np.ndarray:
        """What `encode` gives, as int32 [tokens]: a tenth of the memory of a list."""
        parts = []
        for segment in _segments(text):
            for position, part in enumerate(segment.split(SPACE_MARK)):
                if position:
                    parts.append(self._space_mark_ids)
                parts.append(np.array(self._processor.encode(part), np.int32))
        return np.concatenate(parts) if parts else np.zeros(0, np.int32)

    @functools.cached_property
    def _space_mark_ids(self) -> np.ndarray:
        bytes_of_mark = [f"<0x{byte:02X}>" for byte in SPACE_MARK.encode()]
        return np.array([self._processor.piece_to_id(piece) for piece in bytes_of_mark], np.int32)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; control ids are left out, broken UTF-8 becomes U+FFFD."""
        return self._processor.decode([int(token) for token in ids])

    def token_bytes(self) -> np.ndarray:
        """int32 [V]: how many bytes of UTF-8 each id stands for, 0 for control and unknown ids."""
        return self._token_bytes

    @functools.cached_property
    def _token_bytes(self) -> np.ndarray:
        processor = self._processor
        sizes = np.zeros(self.vocab_size, np.int32)
        for token in range(self.vocab_size):
            if processor.is_byte(token):
                sizes[token] = 1
            elif not (processor.is_control(token) or processor.is_unknown(token)):
                sizes[token] = len(processor.id_to_piece(token).replace(SPACE_MARK, " ").encode())
        sizes.flags.writeable = False
        return sizes

    def seqio_vocabulary(self):
        """This vocabulary for a seqio Task, giving the ids that `encode` gives.

        Imports seqio, and with it TensorFlow: only for the process that builds a store.
        """
        from t5x_style.data.tasks import vocabulary

        return vocabulary(self)


def _segments(text: str) -> Iterator[str]:
    """Cuts a long text after a newline, or a space, near the end of each segment."""
    start = 0
    while start < len(text):
        end = start + SEGMENT_CHARACTERS
        if end < len(text):
            cut = max(text.rfind("\n", start, end), -1)
            if cut < 0:
                cut = text.rfind(" ", start + 1, end) - 1
            end = cut + 1 if cut >= start else end
        yield text[start:end]
        start = end
