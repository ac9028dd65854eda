"""Attention as its formula reads: the reference that every other kernel is tested against."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

# A name for the remat policies: arrays that a kernel keeps for its backward pass, inputs apart.
RESIDUALS = "attention_residuals"

# Finite, so that a row without any allowed key gives numbers instead of NaN.
MASKED = -1e30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionInputs:
    """The inputs of every kernel on one device, as a pytree.

    Attributes:
      q: [B, S, N, H], already scaled. k, v: [B, T, K, H]; K divides N, and query head n reads
        key-value head n // (N / K).
      query_positions: int32 [S]. key_positions: int32 [T]. A key is seen where its position is
        not later than the query's, so a cache's empty tail is hidden by its positions alone.
      slopes: float32 [N] for ALiBi, or None.
      segments: int32 [B, S] of the queries and int32 [B, T] of the keys: of the keys above, a query
        sees those of its own segment; or None.
      window: keys that a query sees, itself included, or None for all; see `position_bias`.
      softcap: c of c * tanh(scores / c), before bias and masks (Gemma 2), or None.
    """

    q: jax.Array
    k: jax.Array
    v: jax.Array
    query_positions: jax.Array
    key_positions: jax.Array
    slopes: jax.Array | None = None
    segments: tuple[jax.Array, jax.Array] | None = None
    window: int | None = dataclasses.field(default=None, metadata={"static": True})
    softcap: float | None = dataclasses.field(default=None, metadata={"static": True})


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


def segment_bias(query_segments: jax.Array, key_segments: jax.Array) -> jax.Array:
    """The mask between documents of one row as an additive term.

    An added term keeps nothing for the backward pass, unlike a `where` on the scores.

    Args:
      query_segments: int32 [B, S], key_segments: int32 [B, T].

    Returns:
      float32 [B, 1, 1, S, T]: 0 where the segments are equal, MASKED elsewhere.
    """
    same = query_segments[:, :, None] == key_segments[:, None, :]
    return jnp.where(same, 0.0, MASKED)[:, None, None]


def softcapped(scores: jax.Array, cap: float | None) -> jax.Array:
    """cap * tanh(scores / cap) (Gemma 2), or the scores themselves without a cap."""
    return scores if cap is None else cap * jnp.tanh(scores / cap)


def plain_attention(inputs: AttentionInputs) -> jax.Array:
    """Causal softmax attention that holds all scores: O(S T) memory.

    Returns:
      [B, S, N, H] in q's dtype. Scores and softmax are float32.
    """
    q, k, v, slopes = inputs.q, inputs.k, inputs.v, inputs.slopes
    batch, length, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    groups = heads // kv_heads
    grouped = q.reshape(batch, length, kv_heads, groups, head_dim)
    scores = jnp.einsum("bskgh,btkh->bkgst", grouped, k, preferred_element_type=jnp.float32)
    scores = softcapped(scores, inputs.softcap)
    bias = position_bias(inputs.query_positions, inputs.key_positions, slopes, inputs.window)
    if slopes is None:
        scores = scores + bias
    else:
        scores = scores + bias.reshape(kv_heads, groups, length, -1)
    if inputs.segments is not None:
        scores = scores + segment_bias(*inputs.segments)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    out = jnp.einsum("bkgst,btkh->bskgh", weights, v).reshape(q.shape)
    return checkpoint_name(out, RESIDUALS)
