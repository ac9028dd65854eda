"""The rows on which a source is evaluated: every token predicted once."""

import dataclasses

import numpy as np

from t5x_style.data.stores.token_store import TokenStore
from t5x_style.data.tokenizers.tokenizer import PAD_ID, Tokenizer


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Rows in reading order, the last one padded.

    Attributes:
      tokens: int32 [n, S + 1]; row i predicts tokens[i, 1:] from tokens[i, :-1].
      weights: float32 [n, S]; 1 where a token is predicted, 0 on padding.
      bytes: UTF-8 bytes of the original text that the predicted tokens stand for. Those of whole
        documents are the bytes of the documents, whatever the vocabulary does to a text. Bits per
        byte are the summed loss in nats / (bytes * ln 2); EOS tokens add to the loss, and have no
        bytes but those of white space that a vocabulary drops at the end of a document.
    """

    tokens: np.ndarray
    weights: np.ndarray
    bytes: int


def evaluation_set(
    store: TokenStore,
    tokenizer: Tokenizer,
    sequence_length: int,
    max_tokens: int | None = None,
) -> EvaluationSet:
    """Cuts the store into windows whose predictions do not overlap.

    An EOS is put first, so that the first token is predicted too. A token's context is the part of
    its own window before it.

    Args:
      store: of a validation split.
      tokenizer: of the store.
      sequence_length: S.
      max_tokens: predict only this many tokens, the first ones; None: all.

    Raises:
      StoreChanged: an id that the vocabulary does not have.
    """
    bytes_of = tokenizer.token_bytes()
    store.check_ids(0, len(store.tokens[:max_tokens]), len(bytes_of))
    predicted = store.tokens[:max_tokens].astype(np.int32)
    rows = -(-len(predicted) // sequence_length)
    stream = np.full(rows * sequence_length + 1, PAD_ID, np.int32)
    stream[0] = tokenizer.eos_id
    stream[1 : len(predicted) + 1] = predicted
    starts = np.arange(rows)[:, None] * sequence_length
    weights = np.zeros(rows * sequence_length, np.float32)
    weights[: len(predicted)] = 1
    places, extra = store.extra_bytes().T
    text_bytes = bytes_of[predicted].sum(dtype=np.int64)
    return EvaluationSet(
        tokens=stream[starts + np.arange(sequence_length + 1)],
        weights=weights.reshape(rows, sequence_length),
        bytes=int(text_bytes + extra[places < len(predicted)].sum()),
    )
