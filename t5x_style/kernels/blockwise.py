"""Attention by blocks, in plain JAX: memory linear in S on any device, and tiles that stay in a
CPU's cache.

The forward pass is online softmax (Milakov and Gimelshein 2018; Rabe and Staats 2021). The backward
pass is the second algorithm of FlashAttention-2 (Dao 2023): it keeps the output and one log-sum-exp
per query, and recomputes the scores of a block.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from t5x_style.accounting.attention_blocks import USUAL_BLOCK, blocks_before, even_block
from t5x_style.kernels.plain import (
    MASKED,
    RESIDUALS,
    AttentionInputs,
    position_bias,
    segment_bias,
    softcapped,
)

# After every token, so that no query sees a key that only fills its block.
_NEVER = np.iinfo(np.int32).max


def blockwise_attention(inputs: AttentionInputs, *, block_size: int = USUAL_BLOCK) -> jax.Array:
    """The same numbers as `plain_attention`, one query block against one key block at a time.

    Args:
      inputs: slopes get no gradient. Where T is S, the positions of queries and keys must be the
        same and consecutive, as for `flash_attention`: blocks wholly in the future or before the
        window are then left out. Otherwise they may be any, and all blocks are multiplied and
        masked.
      block_size: queries and keys of a block, at most; see `even_block`.

    Returns:
      [B, S, N, H] in q's dtype.
    """
    q, k, v, slopes, window = inputs.q, inputs.k, inputs.v, inputs.slopes, inputs.window
    batch, length, heads, head_dim = q.shape
    keys, kv_heads = k.shape[1], k.shape[2]
    query_block, key_block = even_block(length, block_size), even_block(keys, block_size)
    where = {
        "query_positions": _split_into_blocks(inputs.query_positions, query_block, 0, _NEVER),
        "key_positions": _split_into_blocks(inputs.key_positions, key_block, 0, _NEVER),
    }
    if slopes is not None:
        where["slopes"] = jnp.asarray(slopes)
    if inputs.segments is not None:
        queries, others = inputs.segments
        where["query_segments"] = _split_into_blocks(queries, query_block, 1).swapaxes(0, 1)
        where["key_segments"] = _split_into_blocks(others, key_block, 1).swapaxes(0, 1)
    # Heads before tokens, so that a block's products are of contiguous matrices.
    k_blocks, v_blocks = (
        _split_into_blocks(x, key_block, 1).transpose(1, 0, 3, 2, 4) for x in (k, v)
    )
    q_blocks = _split_into_blocks(q, query_block, 1)
    grouped = (*q_blocks.shape[:3], kv_heads, heads // kv_heads, head_dim)
    q_blocks = q_blocks.reshape(grouped).transpose(1, 0, 3, 4, 2, 5)
    touched = np.ones((len(q_blocks), len(k_blocks)), bool)
    if length == keys:
        touched = np.tri(len(q_blocks), dtype=bool)
        if window is not None:
            touched &= ~np.tri(len(q_blocks), k=-1 - blocks_before(window, key_block), dtype=bool)
    pairs = jnp.asarray(np.argwhere(touched), jnp.int32)
    out = _attend(q_blocks, k_blocks, v_blocks, where, pairs, window, inputs.softcap)
    out = out.transpose(1, 0, 4, 2, 3, 5)
    return out.reshape(batch, -1, heads, head_dim)[:, :length]


def _split_into_blocks(x: jax.Array, block: int, axis: int, value: int = 0) -> jax.Array:
    """x with its tokens on `axis` as [blocks, block], the last one filled with `value`."""
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % block)
    filled = jnp.pad(x, widths, constant_values=value)
    return filled.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _attend(q, k, v, where, pairs, window, softcap) -> jax.Array:
    """Attention of blocked arrays.

    Args:
      q: [I, B, K, G, s, H]: I blocks of s queries, G query heads for each of K key-value heads.
      k, v: [J, B, K, t, H]. where: positions [I, s] and [J, t], and as they apply slopes [N] and
        segments [I, B, s] and [J, B, t]. pairs: int32 [P, 2], the blocks i and j to multiply,
        rising in i.

    Returns:
      [I, B, K, G, s, H].
    """
    return _attend_forward(q, k, v, where, pairs, window, softcap)[0]


def _attend_forward(q, k, v, where, pairs, window, softcap):
    def one_pair(carry, pair):
        out, log_sums, *running = carry
        i, j, first = pair
        maximum, total, weighted = (
            jnp.where(first, start, carried)
            for start, carried in zip((MASKED, 0.0, 0.0), running, strict=True)
        )
        scores = softcapped(_product("bkgsh,bkth->bkgst", q[i], k[j]), softcap)
        scores = scores + _bias(where, i, j, window, q.shape)
        new_maximum = jnp.maximum(maximum, scores.max(-1))
        shrink = jnp.exp(maximum - new_maximum)
        exponentials = jnp.exp(scores - new_maximum[..., None])
        total = total * shrink + exponentials.sum(-1)
        weighted = weighted * shrink[..., None] + _product(
            "bkgst,bkth->bkgsh", exponentials.astype(v.dtype), v[j]
        )
        # Written at every pair of a query block; the last write, over all of its keys, remains.
        out = out.at[i].set((weighted / total[..., None]).astype(out.dtype))
        log_sums = log_sums.at[i].set(new_maximum + jnp.log(total))
        return (out, log_sums, new_maximum, total, weighted), None

    rows = jnp.zeros(q.shape[1:-1], jnp.float32)
    start = (
        jnp.zeros_like(q),
        jnp.zeros(q.shape[:-1], jnp.float32),
        rows,
        rows,
        jnp.zeros(q.shape[1:], jnp.float32),
    )
    i, j = pairs.T
    first = jnp.diff(i, prepend=-1) != 0
    (out, log_sums, *_), _ = jax.lax.scan(one_pair, start, (i, j, first))
    out, log_sums = checkpoint_name(out, RESIDUALS), checkpoint_name(log_sums, RESIDUALS)
    return out, (q, k, v, where, pairs, out, log_sums)


def _attend_backward(window, softcap, residuals, cotangent):
    q, k, v, where, pairs, out, log_sums = residuals
    # The softmax subtracts this from every gradient of a row: sum over t of weight * its gradient.
    shares = (cotangent.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)

    # Keys before queries, [B, K, t, G, s]: no product then needs transposed scores, which a CPU
    # transposes in memory. The queries' gradient, [B, K, H, G, s], is transposed once at the end.
    def one_pair(gradients, pair):
        q_gradient, k_gradient, v_gradient = gradients
        i, j = pair
        scores = softcapped(_product("bkth,bkgsh->bktgs", k[j], q[i]), softcap)
        bias = jnp.moveaxis(_bias(where, i, j, window, q.shape), -1, -3)
        weights = jnp.exp(scores + bias - log_sums[i][:, :, None])
        weight_gradient = _product("bkth,bkgsh->bktgs", v[j], cotangent[i])
        score_gradient = weights * (weight_gradient - shares[i][:, :, None])
        if softcap is not None:
            score_gradient = score_gradient * (1 - jnp.square(scores / softcap))
        score_gradient, weights = score_gradient.astype(q.dtype), weights.astype(q.dtype)
        return (
            q_gradient.at[i].add(_product("bkth,bktgs->bkhgs", k[j], score_gradient)),
            k_gradient.at[j].add(_product("bktgs,bkgsh->bkth", score_gradient, q[i])),
            v_gradient.at[j].add(_product("bktgs,bkgsh->bkth", weights, cotangent[i])),
        ), None

    blocks, batch, kv_heads, group, size, head_dim = q.shape
    shapes = ((blocks, batch, kv_heads, head_dim, group, size), k.shape, v.shape)
    zeros = tuple(jnp.zeros(shape, jnp.float32) for shape in shapes)
    (q_gradient, *others), _ = jax.lax.scan(one_pair, zeros, tuple(pairs.T))
    gradients = (q_gradient.transpose(0, 1, 2, 4, 5, 3), *others)
    dtypes = (q.dtype, k.dtype, v.dtype)
    return *(x.astype(dtype) for x, dtype in zip(gradients, dtypes, strict=True)), None, None


_attend.defvjp(_attend_forward, _attend_backward)


def _bias(where: dict, i: jax.Array, j: jax.Array, window: int | None, shape) -> jax.Array:
    """The sum of biases and masks of block i against block j: broadcasts to [B, K, G, s, t]."""
    slopes = where.get("slopes")
    positions = where["query_positions"][i], where["key_positions"][j]
    bias = position_bias(*positions, slopes, window)
    if slopes is not None:
        bias = bias.reshape(*shape[2:4], *bias.shape[1:])
    if "query_segments" in where:
        bias = bias + segment_bias(where["query_segments"][i], where["key_segments"][j])
    return bias


def _product(formula: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.einsum(formula, x, y, preferred_element_type=jnp.float32)
