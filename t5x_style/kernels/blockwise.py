"""Attention by blocks with a running softmax, in plain JAX: linear memory on any device."""

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5x_style.kernels.plain import (
    MASKED,
    RESIDUALS,
    position_bias,
    segment_bias,
    softcapped,
)


def blockwise_attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    query_positions: jax.Array,
    key_positions: jax.Array,
    slopes: jax.Array | None = None,
    window: int | None = None,
    segments: tuple[jax.Array, jax.Array] | None = None,
    softcap: float | None = None,
    block_size: int = 512,
) -> jax.Array:
    """The same numbers as `plain_attention`, one query block against one key block at a time.

    The running maximum and sum are those of online softmax (Milakov and Gimelshein 2018;
    Rabe and Staats 2021). Each query block is recomputed in the backward pass, so memory grows
    with S, not with S * T. Blocks wholly in the future or before the window are computed and
    masked: positions are data here, so they cannot be skipped.

    Args and returns: as `plain_attention`. `block_size` is lowered to the greatest divisor of S
    (and of T) that it admits.
    """
    batch, length, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    groups = heads // kv_heads
    query_block, key_block = _divisor(length, block_size), _divisor(keys, block_size)
    k_blocks = k.reshape(batch, -1, key_block, kv_heads, head_dim).swapaxes(0, 1)
    v_blocks = v.reshape(batch, -1, key_block, kv_heads, head_dim).swapaxes(0, 1)
    key_position_blocks = key_positions.reshape(-1, key_block)
    query_segment_blocks = key_segment_blocks = None
    if segments is not None:
        query_segment_blocks = segments[0].reshape(batch, -1, query_block).swapaxes(0, 1)
        key_segment_blocks = segments[1].reshape(batch, -1, key_block).swapaxes(0, 1)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_query_block(
        q_block: jax.Array, positions: jax.Array, q_segments: jax.Array | None
    ) -> jax.Array:
        grouped = q_block.reshape(batch, query_block, kv_heads, groups, head_dim)

        def one_key_block(carry, block):
            total, maximum, weighted = carry
            k_block, v_block, k_positions, k_segments = block
            scores = jnp.einsum(
                "bskgh,btkh->bkgst", grouped, k_block, preferred_element_type=jnp.float32
            )
            scores = softcapped(scores, softcap)
            bias = position_bias(positions, k_positions, slopes, window)
            if slopes is not None:
                bias = bias.reshape(kv_heads, groups, query_block, key_block)
            scores = scores + bias
            if q_segments is not None:
                scores = scores + segment_bias(q_segments, k_segments)
            # The result does not depend on it. A gradient would ask which score it is, and scores
            # that are computed again may not be the same to the last bit.
            new_maximum = jax.lax.stop_gradient(jnp.maximum(maximum, scores.max(-1)))
            shrink = jnp.exp(maximum - new_maximum)
            exponentials = jnp.exp(scores - new_maximum[..., None])
            values = jnp.einsum(
                "bkgst,btkh->bkgsh",
                exponentials.astype(v.dtype),
                v_block,
                preferred_element_type=jnp.float32,
            )
            return (
                total * shrink + exponentials.sum(-1),
                new_maximum,
                weighted * shrink[..., None] + values,
            ), None

        shape = (batch, kv_heads, groups, query_block)
        start = (
            jnp.zeros(shape, jnp.float32),
            jnp.full(shape, MASKED, jnp.float32),
            jnp.zeros((*shape, head_dim), jnp.float32),
        )
        (total, _, weighted), _ = jax.lax.scan(
            one_key_block, start, (k_blocks, v_blocks, key_position_blocks, key_segment_blocks)
        )
        out = (weighted / total[..., None]).astype(q.dtype)
        return jnp.moveaxis(out, 3, 1).reshape(batch, query_block, heads, head_dim)

    q_blocks = q.reshape(batch, -1, query_block, heads, head_dim).swapaxes(0, 1)
    out = jax.lax.map(
        lambda block: one_query_block(*block),
        (q_blocks, query_positions.reshape(-1, query_block), query_segment_blocks),
    )
    return checkpoint_name(out.swapaxes(0, 1).reshape(q.shape), RESIDUALS)


def _divisor(length: int, at_most: int) -> int:
    return max(size for size in range(1, min(length, at_most) + 1) if length % size == 0)
