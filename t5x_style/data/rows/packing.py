"""How documents share a row: where a row begins, what attends to what, what is learnt from."""

import dataclasses

import gin

from t5x_style.errors import UsageError, did_you_mean

CONCATENATED = "concatenated"
DOCUMENT_STARTS = "document_starts"
WINDOWS = (CONCATENATED, DOCUMENT_STARTS)


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Packing:
    """What becomes of documents in training rows. No row is padded and no token left out by it.

    Attributes:
      windows: 'concatenated': a row is a window of the store as it lies there (GPT-3,
        BloombergGPT), 'document_starts': the same window, turned so that it begins at the first
        document that starts in it; what came before that stands at the row's end. Every
        prediction of the window is made in both.
      attend_across_documents: whether a token sees the earlier documents of its row; without, it
        sees its own alone (Llama 3, section 3.2), in training and evaluation.
      loss_from_context: tokens of its own document in the row that a prediction must see, the EOS
        before the document among them, to be learnt from; up to 1 all are.
    """

    windows: str = CONCATENATED
    attend_across_documents: bool = True
    loss_from_context: int = 0

    def __post_init__(self):
        if self.windows not in WINDOWS:
            raise UsageError(
                f"Packing.windows = {self.windows!r} is not one of "
                f"{', '.join(map(repr, WINDOWS))}{did_you_mean(str(self.windows), WINDOWS)}"
            )
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
        """Whether windows are turned to begin at a document's start."""
        return self.windows == DOCUMENT_STARTS
