"""Learning rate as a function of tokens."""

import dataclasses
from typing import Annotated

import gin
import jax.numpy as jnp

from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.ranges import NonNegativeInt, Range, Share, check_ranges

SHAPES = ("cosine", "linear", "wsd", "constant")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Schedule:
    """Linear warm-up from zero to the peak, then one of four shapes down to the end of the run.

    Tokens are the unit, so a schedule means the same under any batch size and batch warm-up.

    Attributes:
      shape: 'cosine' (half a period over the rest of the run: Chinchilla asks that the cycle is
        the run), 'linear', 'wsd' (constant, then 1 - sqrt cooldown over the last `decay_fraction`
        of the run: Hagele et al. 2024) or 'constant'.
      peak_learning_rate: reached at the end of the warm-up.
      warmup_tokens: length of the warm-up.
      final_fraction: learning rate at the horizon, as a fraction of the peak; not read by
        'constant'.
      decay_fraction: share of the run that the cooldown of 'wsd' takes; no other shape reads it.
    """

    peak_learning_rate: Annotated[float, Range(least=0, most=10)]
    shape: str = "cosine"
    warmup_tokens: NonNegativeInt = 0
    final_fraction: Share = 0.1
    decay_fraction: Share = 0.2

    def __post_init__(self):
        if self.shape not in SHAPES:
            raise UsageError(
                f"Schedule.shape = {self.shape!r} is not one of {', '.join(SHAPES)}"
                f"{did_you_mean(self.shape, SHAPES)}"
            )
        check_ranges(self)

    def check(self, horizon_tokens: int) -> None:
        """Refuse a run that is too short for the schedule.

        Raises:
          UsageError: the warm-up (and for 'wsd' the cooldown) does not fit into the run.
        """
        cooldown = self.decay_fraction * horizon_tokens if self.shape == "wsd" else 0
        if self.warmup_tokens + cooldown > horizon_tokens:
            raise UsageError(
                f"Schedule.warmup_tokens = {self.warmup_tokens:,} and a cooldown of "
                f"{int(cooldown):,} tokens do not fit into a run of {horizon_tokens:,} tokens: "
                f"at most {int(horizon_tokens - cooldown):,} are left for the warm-up"
            )

    def learning_rate(self, tokens, horizon_tokens: int):
        """The learning rate when `tokens` tokens have been seen.

        Args:
          tokens: float array of any shape (numpy or jax). horizon_tokens: length of the run.

        Returns:
          float32 array of the same shape.
        """
        # JAX converts a Python integer to int32, which ends at 2.1 billion tokens.
        warmup, horizon = float(self.warmup_tokens), float(horizon_tokens)
        rest = jnp.clip((tokens - warmup) / max(horizon - warmup, 1), 0.0, 1.0)
        floor = self.final_fraction
        if self.shape == "cosine":
            shape = floor + (1 - floor) * 0.5 * (1 + jnp.cos(jnp.pi * rest))
        elif self.shape == "linear":
            shape = 1 - (1 - floor) * rest
        elif self.shape == "wsd":
            start = (1 - self.decay_fraction) * horizon
            cooldown = jnp.clip((tokens - start) / max(self.decay_fraction * horizon, 1), 0.0, 1.0)
            shape = floor + (1 - floor) * (1 - jnp.sqrt(cooldown))
        else:
            shape = jnp.ones_like(rest)
        rising = jnp.minimum(tokens / warmup, 1.0) if warmup else 1.0
        return self.peak_learning_rate * rising * shape


def traced_tokens_before(plan: BatchPlan, step):
    """`plan.tokens_before(step)` for a traced step: float32, with a relative error of 1e-7."""
    borders = plan.borders
    first_steps = jnp.asarray(borders.first_steps, jnp.int32)
    phase = jnp.searchsorted(first_steps, step, side="right") - 1
    # The whole part of each phase is exact on the host; only the rest is computed in float32.
    within = (step - first_steps[phase]).astype(jnp.float32)
    first_tokens = jnp.asarray(borders.first_tokens, jnp.float32)[phase]
    per_step = jnp.asarray(borders.sizes * borders.lengths, jnp.float32)[phase]
    return first_tokens + within * per_step
