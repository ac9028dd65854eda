"""Batch size and learning rate: two fitted rules.

The rules were fitted on small runs with AdamW. They are starting points: for BloombergGPT, StepLaw
gives 2.8 times and DeepSeek 6.5 times the peak of 6e-5 at which it trained.
"""

from typing import NamedTuple


class BatchAndLearningRate(NamedTuple):
    """The peak learning rate and the tokens of a batch, by one rule."""

    learning_rate: float
    batch_tokens: float


def deepseek(flops: float) -> BatchAndLearningRate:
    """From compute alone (DeepSeek LLM, arXiv 2401.02954, equation 1).

    Fitted from 1e17 to 2e19 FLOPs, on settings within 0.25 % of the best loss.

    Args:
      flops: C = M D, M the training FLOPs per token without the embedding and its output matrix,
        attention over the sequence included (so not 6 N).
    """
    return BatchAndLearningRate(0.3118 * flops**-0.1250, 0.2920 * flops**0.3271)


def step_law(non_embedding_params: float, tokens: float) -> BatchAndLearningRate:
    """From model and data (StepLaw, Li et al. 2025, arXiv 2503.04715).

    The final rate is 1e-5 whatever the peak.

    Args:
      non_embedding_params: N, without embedding and output matrix.
      tokens: D.
    """
    return BatchAndLearningRate(
        1.79 * non_embedding_params**-0.713 * tokens**0.307, 0.58 * tokens**0.571
    )
