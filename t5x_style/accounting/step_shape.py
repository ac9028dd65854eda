"""WHAT one step computes, as plain numbers for the accounts."""

import dataclasses

from t5x_style.accounting.architecture import Architecture
from t5x_style.errors import one_of

# Bytes of an activation, and of a weight when it is multiplied.
COMPUTE_BYTES = {"bfloat16": 2, "float32": 4}
# AdamW keeps two float32 moments of each parameter.
ADAMW_BYTES = 8


@dataclasses.dataclass(frozen=True)
class StepShape:
    """One step, wherever it runs (see `Topology` for that).

    Attributes:
      architecture: of the model.
      sequences: rows of the global batch.
      sequence_length: S, tokens of a row.
      compute_dtype: of activations and multiplied weights, one of COMPUTE_BYTES.
      optimizer_bytes: of the optimizer's state for each parameter.
    """

    architecture: Architecture
    sequences: int
    sequence_length: int
    compute_dtype: str = "bfloat16"
    optimizer_bytes: int = ADAMW_BYTES

    def __post_init__(self):
        one_of("compute_dtype", self.compute_dtype, COMPUTE_BYTES)

    @property
    def tokens(self) -> int:
        """Tokens of the step, all devices together."""
        return self.sequences * self.sequence_length

    @property
    def compute_bytes(self) -> int:
        """Bytes of an activation."""
        return COMPUTE_BYTES[self.compute_dtype]
