"""The shape of a decoder as plain numbers, for the model and for the accounts.

It is in the lowest room because both the model (which has jax) and the accounts (which must not)
read it. So the accounts always count the model that trains.
"""

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.accounting.feed_forward import FeedForwardKind, feed_forward_kind
from t5x_style.errors import UsageError, did_you_mean, one_of
from t5x_style.ranges import PositiveFloat, PositiveInt, check_ranges

POSITIONS = ("alibi", "rope", "learned", "none")
NORMS = ("layer", "rms")
MATMUL_DTYPES = ("int8",)

# A width that may be given as None: __post_init__ then derives it, so that readers have an int.
if TYPE_CHECKING:
    DerivedInt = int
else:
    DerivedInt = PositiveInt | None
_DERIVED: Any = None


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Architecture:
    """A pre-norm decoder. Letters are those of the scaling book.

    Attributes:
      vocab_size: V, rows of the embedding.
      layers: L.
      d_model: D, the width of the residual stream.
      d_ff: F, the inner width of the feed-forward.
      heads: N, query heads.
      kv_heads: K, key and value heads; None means N. Must divide N.
      head_dim: H; None means D / N.
      positions: 'alibi' (Press et al. 2022), 'rope' (Su et al. 2021), 'learned' (a table of
        max_length rows) or 'none'.
      max_length: rows of the learned position table; only with positions='learned'.
      rope_theta: base of the rotary frequencies; only read with positions='rope'.
      window: W, the keys that a query sees, itself and the W - 1 before it, in every layer (the
        sliding window of Beltagy et al. 2020); None means all that came before.
      norm: 'layer' (gain, and bias where `biases`) or 'rms' (gain).
      norm_epsilon: added to the variance.
      feed_forward: 'gelu' (tanh form, two matrices), 'swiglu' (three matrices), 'relu2' (squared
        ReLU, two matrices), or the dotted path of a FeedForwardKind of your own, 'my_team.GEGLU'.
      biases: biases on every matrix but the head, and on layer norms.
      tied_head: the output head is the transposed embedding.
      embedding_norm: a norm right after the embedding (BLOOM, BloombergGPT).
      qk_norm: an RMS norm with gain [H] over each head of the queries and the keys.
      parallel_block: attention and feed-forward both read the same norm of the same input (GPT-J,
        PaLM); the second norm of the block does not exist.
      attention_softcap: c in c * tanh(scores / c) of attention's scaled scores, before bias and
        masks (Gemma 2); None leaves the scores alone.
      logit_softcap: c in c * tanh(logits / c); None leaves the logits alone.
      matmul_dtype: 'int8': the blocks' weight matrices are multiplied in eight bits, forwards and
        for the gradient of their input (models/low_precision.py; the extra t5x_style[int8]). Their
        own gradients, attention and the head are not. None: all in the compute dtype.
      init_std: standard deviation of the matrices at the start; None means 1 / sqrt(3 D)
        (BloombergGPT, appendix A). The two matrices that write to the residual stream start at
        init_std / sqrt(2 L) (GPT-2, Megatron).
    """

    vocab_size: PositiveInt
    layers: PositiveInt
    d_model: PositiveInt
    d_ff: PositiveInt
    heads: PositiveInt
    kv_heads: DerivedInt = _DERIVED
    head_dim: DerivedInt = _DERIVED
    positions: str = "rope"
    max_length: PositiveInt | None = None
    rope_theta: PositiveFloat = 10_000.0
    window: PositiveInt | None = None
    norm: str = "rms"
    norm_epsilon: PositiveFloat = 1e-5
    feed_forward: str = "swiglu"
    biases: bool = False
    tied_head: bool = True
    embedding_norm: bool = False
    qk_norm: bool = False
    parallel_block: bool = False
    attention_softcap: PositiveFloat | None = None
    logit_softcap: PositiveFloat | None = None
    matmul_dtype: str | None = None
    init_std: PositiveFloat | None = None

    def __post_init__(self):
        check_ranges(self)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.heads % self.kv_heads:
            raise UsageError(
                f"Architecture.kv_heads = {self.kv_heads} does not divide heads = {self.heads}"
            )
        if self.head_dim is None:
            if self.d_model % self.heads:
                raise UsageError(
                    f"Architecture.d_model = {self.d_model} is not a multiple of heads = "
                    f"{self.heads}: set head_dim, or a width that {self.heads} divides"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.heads)
        one_of("Architecture.positions", self.positions, POSITIONS)
        one_of("Architecture.norm", self.norm, NORMS)
        feed_forward_kind(self.feed_forward)
        if self.matmul_dtype is not None and self.matmul_dtype not in MATMUL_DTYPES:
            raise UsageError(
                f"Architecture.matmul_dtype = {self.matmul_dtype!r} is not one of "
                f"{', '.join(map(repr, MATMUL_DTYPES))}, nor None for the compute dtype"
                f"{did_you_mean(str(self.matmul_dtype), MATMUL_DTYPES)}"
            )
        if self.positions == "learned" and self.max_length is None:
            raise UsageError("Architecture.positions = 'learned' needs max_length (its rows)")
        if self.positions == "rope" and self.head_dim % 2:
            raise UsageError(
                f"Architecture.head_dim = {self.head_dim} is odd: rope rotates pairs of features"
            )

    def check_length(self, sequence_length: int) -> None:
        """Refuse sequences that are longer than the position table.

        Args:
          sequence_length: tokens of the longest.

        Raises:
          UsageError: they are.
        """
        if self.max_length is not None and self.max_length < sequence_length:
            raise UsageError(
                f"Architecture.max_length = {self.max_length} is shorter than the sequences of "
                f"TASK_FEATURE_LENGTHS = {sequence_length}"
            )

    @property
    def feed_forward_kind(self) -> FeedForwardKind:
        """The kind that `feed_forward` names."""
        return feed_forward_kind(self.feed_forward)

    @property
    def position_rows(self) -> int:
        """Rows of the learned position table; 0 without one."""
        return (self.max_length or 0) if self.positions == "learned" else 0

    @property
    def matrix_std(self) -> float:
        """Standard deviation of a fresh matrix."""
        return self.init_std if self.init_std is not None else 1 / math.sqrt(3 * self.d_model)

    @property
    def residual_std(self) -> float:
        """Standard deviation of a fresh matrix whose output is added to the residual stream."""
        return self.matrix_std / math.sqrt(2 * self.layers)
