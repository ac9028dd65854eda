"""How documents share a row: where it begins, its attention, and which predictions are learnt."""

import dataclasses

import gin

from t5x_style.errors import UsageError, one_of
from t5x_style.ranges import NonNegativeInt

CONCATENATED = "concatenated"
DOCUMENT_STARTS = "document_starts"
WINDOWS = (CONCATENATED, DOCUMENT_STARTS)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Packing:
    """How documents fill training rows. No row is padded, and no token is dropped.

    Attributes:
      windows: 'concatenated': a row is a window of the store as stored (GPT-3, BloombergGPT).
        'document_starts': the same window, rotated to begin where the first document in it begins;
        the tokens before that move to the row's end. Both make the same predictions.
      attend_across_documents: whether a token sees the earlier documents of its row. If not, it
        sees only its own (Llama 3, section 3.2), in training and evaluation.
      loss_from_context: a prediction is learnt from if it sees this many tokens of its own document
        in the row, the EOS before the document included. With 0 or 1, all are learnt from.
    """

    windows: str = CONCATENATED
    attend_across_documents: bool = True
    loss_from_context: NonNegativeInt = 0

    def __post_init__(self):
        one_of("Packing.windows", self.windows, WINDOWS)
        if not isinstance(self.attend_across_documents, bool):
            raise UsageError(
                f"Packing.attend_across_documents = {self.attend_across_documents!r}: "
                f"write True or False"
            )
        context = self.loss_from_context
        if not isinstance(context, int) or isinstance(context, bool) or context < 0:
            raise UsageError(
                f"Packing.loss_from_context = {context!r}: write a number of tokens, 0 or more"
            )

    @property
    def document_starts(self) -> bool:
        """Whether windows are rotated to begin at a document's start."""
        return self.windows == DOCUMENT_STARTS
