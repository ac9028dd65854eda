"""Batch size and learning rate: two fitted rules, and the measurement that no rule replaces.

The rules were fitted on small runs with AdamW. They are starting points: for BloombergGPT, StepLaw
gives 2.8 times and DeepSeek 6.5 times the peak of 6e-5 at which it trained.
"""

from typing import NamedTuple

from t5x_style.errors import UsageError


class BatchAndLearningRate(NamedTuple):
    """A rule's advice: the peak learning rate, and the tokens of a batch."""

    learning_rate: float
    batch_tokens: float


def deepseek(flops: float) -> BatchAndLearningRate:
    """From compute alone (DeepSeek LLM, arXiv 2401.02954, equation 1).

    Fitted from 1e17 to 2e19 FLOPs on what came within 0.25 % of the best loss.

    Args:
      flops: C = M D, M the training FLOPs per token without the embedding and its output matrix,
        attention over the sequence included (so not 6 N).
    """
    return BatchAndLearningRate(0.3118 * flops**-0.1250, 0.2920 * flops**0.3271)


def deepseek_optimal(flops: float) -> tuple[float, float]:
    """(M, D): training FLOPs per token and tokens that C = M D serves best (equation 4).

    M is as in `deepseek`.
    """
    return 0.1715 * flops**0.5243, 5.8316 * flops**0.4757


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


def gradient_noise_scale(
    small_batch: float,
    small_squared_norm: float,
    big_batch: float,
    big_squared_norm: float,
) -> float:
    """B_simple = tr(Sigma) / |G|^2, the critical batch, from gradients at two batch sizes.

    The mean gradient of B examples has an expected squared norm of |G|^2 + tr(Sigma) / B, and two
    of them give both unknowns (McCandlish et al. 2018, arXiv 1812.06162, appendix A.1).

    Args:
      small_batch, big_batch: in any one unit, which is that of the answer (tokens, sequences).
      small_squared_norm, big_squared_norm: |gradient|^2 at each, averaged over many steps: the
        ratio of two noisy estimates is biased, and a single pair may well give a negative one.

    Raises:
      UsageError: batch sizes out of order, or norms that leave no gradient or no noise.
    """
    if not 0 < small_batch < big_batch:
        raise UsageError(
            f"batches of {small_batch!r} and {big_batch!r}: must be above 0, the small one first"
        )
    squared_gradient = (big_batch * big_squared_norm - small_batch * small_squared_norm) / (
        big_batch - small_batch
    )
    noise = (small_squared_norm - big_squared_norm) / (1 / small_batch - 1 / big_batch)
    if not (squared_gradient > 0 and noise >= 0):
        raise UsageError(
            f"squared norms of {small_squared_norm!r} at {small_batch!r} and {big_squared_norm!r} "
            f"at {big_batch!r}: must fall with the batch, but by less than the batch grows; "
            "average more steps"
        )
    return noise / squared_gradient
