"""A `Tokenizer` as a seqio Vocabulary, and the check that a Task has the vocabulary of the run.

The functions import seqio, and with it TensorFlow.
"""

import hashlib

from t5x_style.data.tokenizers.kinds import BYTES
from t5x_style.errors import UsageError


def vocabulary(tokenizer):
    """A `Tokenizer` as a seqio Vocabulary, with the ids of `Tokenizer.encode`.

    Returns:
      a seqio.ByteVocabulary for 'bytes', a seqio.SentencePieceVocabulary for a `.model`, and for a
      `.json` a Vocabulary of its own (seqio has none).
    """
    import seqio
    import tensorflow as tf

    if tokenizer.path == BYTES:
        return seqio.ByteVocabulary()

    class Encoding:
        """Ids from `tokenizer`.

        TensorFlow's own op for sentencepiece writes a U+2581 of the text as a space, and holds a
        lattice over the whole of a long document.
        """

        tokenizer_hash = tokenizer.hash

        def _encode(self, s):
            return tokenizer.encode(s)

        def _encode_tf(self, s):
            ids = tf.numpy_function(
                lambda text: tokenizer.encode_array(text.decode()), [s], tf.int32
            )
            ids.set_shape([None])
            return ids

    class SentencePiece(Encoding, seqio.SentencePieceVocabulary):
        pass

    class Json(Encoding, seqio.Vocabulary):
        bos_id = unk_id = None
        eos_id = tokenizer.eos_id
        _base_vocab_size = tokenizer.vocab_size

        def _decode(self, ids):
            return tokenizer.decode(ids)

        def _decode_tf(self, ids):
            return tf.numpy_function(
                lambda flat: tokenizer.decode(flat).encode(), [ids], tf.string, stateful=False
            )

        def __eq__(self, other):
            return getattr(other, "tokenizer_hash", None) == self.tokenizer_hash

    return Json() if tokenizer.path.endswith(".json") else SentencePiece(tokenizer.path)


def check_vocabulary(task: str, given, tokenizer) -> None:
    """Refuses a Task whose Vocabulary is not that of the run.

    Raises:
      UsageError: another kind, another file, or ids on top of it.
    """
    import seqio

    if tokenizer.path == BYTES:
        right_kind = same = isinstance(given, seqio.ByteVocabulary)
    elif isinstance(given, seqio.SentencePieceVocabulary):
        right_kind = tokenizer.path.endswith(".model")
        same = hashlib.sha256(given.sp_model).hexdigest() == tokenizer.hash
    else:
        right_kind = hasattr(given, "tokenizer_hash")
        same = right_kind and given.tokenizer_hash == tokenizer.hash
    if not right_kind:
        raise UsageError(
            f"seqio Task {task!r} has a {type(given).__name__}; here it must be the run's: "
            f"t5x_style.data.Tokenizer({tokenizer.path!r}).seqio_vocabulary()"
        )
    if given.extra_ids:
        raise UsageError(
            f"seqio Task {task!r} adds {given.extra_ids} ids to its vocabulary; the model knows "
            f"the {tokenizer.vocab_size} of {tokenizer.path!r}: set extra_ids=0"
        )
    if not same:
        raise UsageError(
            f"seqio Task {task!r} has another vocabulary than Tokenizer.path = {tokenizer.path!r}"
        )
