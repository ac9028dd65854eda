"""Attention as its formula reads: the reference that every other kernel is tested against."""

import jax
import jax.numpy as jnp

# Finite, so that a row without any allowed key gives numbers instead of NaN.
MASKED = -1e30


def position_bias(
    query_positions: jax.Array,
    key_positions: jax.Array,
    slopes: jax.Array | None,
    window: int | None,
) -> jax.Array:
    """Causal mask, sliding window and ALiBi as one additive term.

    Args:
      query_positions: int32 [S], key_positions: int32 [T].
      slopes: float32 [N], ALiBi's slope per head (Press et al. 2022), or None.
      window: keys that a query sees, itself included, or None for all.

    Returns:
      float32 [N, S, T] with slopes, [1, S, T] without: slope * (key - query) where the key is not
      later than the query and less than `window` before it, MASKED elsewhere.
    """
    distance = key_positions[None, :] - query_positions[:, None]
    seen = distance <= 0
    if window is not None:
        seen &= distance > -window
    bias = 0.0 if slopes is None else slopes[:, None, None] * distance.astype(jnp.float32)
    return jnp.where(seen[None], bias, MASKED)


def plain_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    query_positions: jax.Array,
    key_positions: jax.Array,
    slopes: jax.Array | None = None,
    window: int | None = None,
) -> jax.Array:
    """Causal softmax attention that holds all scores: O(S T) memory.

    Args:
      q: [B, S, N, H], already scaled. k, v: [B, T, K, H]; K divides N, and query head n reads
        key-value head n // (N / K).
      query_positions: int32 [S]. key_positions: int32 [T]. A key is seen where its position is
        not later than the query's, so a cache's empty tail is hidden by its positions alone.
      slopes: float32 [N] for ALiBi, or None.
      window: keys that a query sees, itself included, or None for all; see `position_bias`.

    Returns:
      [B, S, N, H] in q's dtype. Scores and softmax are float32.
    """
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    groups = heads // kv_heads
    grouped = q.reshape(batch, length, kv_heads, groups, head_dim)
    scores = jnp.einsum("bskgh,btkh->bkgst", grouped, k, preferred_element_type=jnp.float32)
    bias = position_bias(query_positions, key_positions, slopes, window)
    if slopes is None:
        scores = scores + bias
    else:
        scores = scores + bias.reshape(kv_heads, groups, length, -1)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bkgst,btkh->bskgh", weights, v).reshape(q.shape)
