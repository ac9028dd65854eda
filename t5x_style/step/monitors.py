"""Signs of a slow divergence, from numbers that a step has at hand.

BloombergGPT's first run got worse over days before its loss showed it, and its authors found the
cause in the gains of the first layer (Wu et al. 2023, section 4).
"""

import jax
import jax.numpy as jnp

PREFIX = "monitor/"
# Metrics of a step, float32 []: the root mean square of the embedding, that of the gains of the
# first layer's norms, the largest over the layers of |update| / |weights|, and the largest logit.
EMBEDDING_RMS = PREFIX + "embedding_rms"
FIRST_GAIN_RMS = PREFIX + "first_gain_rms"
UPDATE_RATIO = PREFIX + "update_ratio"
LARGEST_LOGIT = PREFIX + "largest_logit"
MONITORS = (EMBEDDING_RMS, FIRST_GAIN_RMS, UPDATE_RATIO, LARGEST_LOGIT)
# Of a step of microbatches besides; see `noise_estimates`.
SIGNAL, VARIANCE = "noise/signal", "noise/variance"
NOISE = (SIGNAL, VARIANCE)


def rms_monitors(parameters: dict) -> dict[str, jax.Array]:
    """EMBEDDING_RMS and FIRST_GAIN_RMS of a decoder's parameters."""
    gains = [
        leaf[0]
        for path, leaf in jax.tree.leaves_with_path(parameters["blocks"])
        if path[-1].key == "gain"
    ]
    first = jnp.concatenate([gain.ravel() for gain in gains])
    found = {EMBEDDING_RMS: parameters["embedding"], FIRST_GAIN_RMS: first}
    return {name: jnp.sqrt(jnp.mean(jnp.square(array))) for name, array in found.items()}


def update_ratio(updates: dict, parameters: dict) -> jax.Array:
    """The largest over the layers of |update| / |weights|, float32 []."""

    def squares(tree: dict) -> jax.Array:
        leaves = jax.tree.leaves(tree["blocks"])
        by_leaf = [jnp.square(leaf).sum(range(1, leaf.ndim)) for leaf in leaves]
        return jnp.sum(jnp.stack(by_leaf), axis=0)

    return jnp.sqrt(jnp.max(squares(updates) / squares(parameters)))


def noise_estimates(grad_norm: jax.Array, squares: jax.Array, tokens: int) -> dict[str, jax.Array]:
    """What a step of microbatches says of the gradient's noise (McCandlish et al. 2018, A.1).

    Both estimates have no bias where the tokens learnt from are spread evenly, and much variance:
    the mean of the second over many steps, divided by that of the first, is the gradient noise
    scale in tokens.

    Args:
      grad_norm: |G|, of the whole batch.
      squares: float32 [k], |G_i|^2 of the parts that add up to G.
      tokens: of the whole batch.

    Returns:
      NOISE, float32 []: the square of the true gradient's norm, and the trace of the covariance of
      one token's gradient.
    """
    k = len(squares)
    # The mean gradient of a part is k G_i.
    of_part, of_batch = k * squares.sum(), jnp.square(grad_norm)
    variance = (of_part - of_batch) * tokens / (k - 1)
    return {SIGNAL: (of_batch - of_part / k) * k / (k - 1), VARIANCE: variance}
