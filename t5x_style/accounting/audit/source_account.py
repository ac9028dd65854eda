"""What some rows of a run read of one source."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class SourceAccount:
    """The tokens of a source up to some row.

    Attributes:
      unique_tokens: in the source's store.
      tokens: that were read.
      share: of the tokens of all sources.
      epochs: how often the source was read.
      effective_tokens: fresh tokens that teach as much as those learnt from.
      skipped: of the tokens read, those that nothing was learnt from: of steps that were passed
        over, and of updates that were not applied.
    """

    unique_tokens: int
    tokens: int
    share: float
    epochs: float
    effective_tokens: float
    skipped: int = 0
