"""Multi-head and grouped-query attention with positions, around an exchangeable kernel.

Where the tokens of a sequence are on several devices, each gathers all keys and values (few heads
under grouped queries) and attends for its share of the queries. A causal mask gives the last
queries most of the work, so the devices trade: of 2 n pieces of the sequence, device d attends for
pieces d and 2 n - 1 - d, which together see the same number of keys on every device. The result is
traded back, so no other part of the model is concerned.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.attention_blocks import piece_owner
from t5x_style.accounting.parameter_count import attention_widths
from t5x_style.kernels import AttentionInputs, Kernel, plain_attention
from t5x_style.models.layers import Linear, Norm, alibi_slopes, rope
from t5x_style.models.logical import (
    BATCH,
    EMBED,
    HEADS,
    HEADS_ROWS,
    KV_HEADS,
    SEQUENCE,
    axis_names,
    constrain,
    per_shard,
)

# Names for the remat policies: the kernel's inputs, and the product of the output matrix.
QKV = "qkv"
OUTPUT = "attention_output"

# Keys and values [B, T, K, H] of the tokens seen so far, in slots by position.
Cache = tuple[jax.Array, jax.Array]


class Attention(nnx.Module):
    """Causal self-attention, [B, S, D] to [B, S, D].

    Weights are two-dimensional, [D, N * H]: shards then stay multiples of the TPU's tiles and
    gradients are true reduce-scatters.
    """

    def __init__(self, architecture: Architecture, *, kernel: Kernel, rngs: nnx.Rngs):
        a = architecture
        self.architecture, self.kernel = a, kernel
        query_width, key_width = attention_widths(a)
        options = {"bias": a.biases, "matmul_dtype": a.matmul_dtype, "rngs": rngs}
        read = {"std": a.matrix_std, **options}
        self.query = Linear(a.d_model, query_width, axes=(EMBED, HEADS), **read)
        self.key = Linear(a.d_model, key_width, axes=(EMBED, KV_HEADS), **read)
        self.value = Linear(a.d_model, key_width, axes=(EMBED, KV_HEADS), **read)
        self.out = Linear(
            query_width, a.d_model, axes=(HEADS_ROWS, None), std=a.residual_std, **options
        )
        norm = functools.partial(Norm, a.head_dim, kind="rms", bias=False, epsilon=a.norm_epsilon)
        self.query_norm = norm() if a.qk_norm else None
        self.key_norm = norm() if a.qk_norm else None

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        cache: Cache | None = None,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Attend.

        Args:
          x: [B, S, D]. positions: int32 [S], consecutive.
          cache: keys and values of earlier tokens; the S new ones are written at `positions`.
          segments: int32 [B, S], without a cache: a token sees those of its own segment alone.

        Returns:
          [B, S, D], and the cache with the new keys and values in it (None without a cache).
        """
        a = self.architecture
        batch, length, _ = x.shape
        q = self._split(self.query(x), a.heads, HEADS)
        k = self._split(self.key(x), a.kv_heads, KV_HEADS)
        v = self._split(self.value(x), a.kv_heads, KV_HEADS)
        v = checkpoint_name(v, QKV)
        if self.query_norm is not None and self.key_norm is not None:
            # The backward pass of a norm needs its input; that of positions needs nothing.
            q, k = checkpoint_name(q, QKV), checkpoint_name(k, QKV)
            q, k = self.query_norm(q), self.key_norm(k)
        if a.positions == "rope":
            q, k = rope(q, positions, a.rope_theta), rope(k, positions, a.rope_theta)
        if self.query_norm is None:
            q, k = checkpoint_name(q, QKV), checkpoint_name(k, QKV)
        q = q * (1 / math.sqrt(a.head_dim))
        slopes = jnp.asarray(alibi_slopes(a.heads)) if a.positions == "alibi" else None
        if cache is None:
            attended = self._attend(q, k, v, positions, slopes, segments)
        else:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), positions[0], 1)
                for old, new in zip(cache, (k, v), strict=True)
            )
            cache = (k, v)
            # A few queries against a cache: no kernel is better than the formula.
            key_positions = jnp.arange(k.shape[1], dtype=positions.dtype)
            attended = plain_attention(
                AttentionInputs(
                    q,
                    k,
                    v,
                    positions,
                    key_positions,
                    slopes,
                    window=a.window,
                    softcap=a.attention_softcap,
                )
            )
        attended = constrain(attended.reshape(batch, length, -1), BATCH, SEQUENCE, HEADS)
        return checkpoint_name(self.out(attended), OUTPUT), cache

    def _attend(self, q, k, v, positions, slopes, segments) -> jax.Array:
        """The kernel on each device's rows, heads and queries. [B, S, N, H]."""
        axes = axis_names(SEQUENCE)

        def on_shard(q, k, v, positions, slopes, segments):
            key_positions, key_segments = positions, segments
            if axes:
                k, v, key_positions = whole(k, axes), whole(v, axes), whole(positions, axes, 0)
                q, positions = balanced(q, axes), balanced(positions, axes, 0)
                if segments is not None:
                    key_segments, segments = whole(segments, axes), balanced(segments, axes)
            inputs = AttentionInputs(
                q,
                k,
                v,
                positions,
                key_positions,
                slopes,
                segments=None if segments is None else (segments, key_segments),
                window=self.architecture.window,
                softcap=self.architecture.attention_softcap,
            )
            attended = self.kernel(inputs)
            return (in_order(attended, axes) if axes else attended,)

        queries, keys = (BATCH, SEQUENCE, HEADS, None), (BATCH, SEQUENCE, KV_HEADS, None)
        in_axes = (queries, keys, keys, (SEQUENCE,), (HEADS,), (BATCH, SEQUENCE))
        per_device = per_shard(on_shard, in_axes, (queries,))
        return per_device(q, k, v, positions, slopes, segments)[0]

    def _split(self, x: jax.Array, heads: int, axis: str) -> jax.Array:
        split = x.reshape(*x.shape[:2], heads, self.architecture.head_dim)
        return constrain(split, BATCH, SEQUENCE, axis, None)


def balanced(x: jax.Array, axes: tuple[str, ...], axis: int = 1) -> jax.Array:
    """Trades the tokens on this device for those that it attends for; inside a shard_map.

    Args:
      x: the device's consecutive tokens on `axis`, an even number of them.
      axes: mesh axes over which the sequence is split.
    """
    return _trade(x, axes, axis, back=False)


def in_order(x: jax.Array, axes: tuple[str, ...], axis: int = 1) -> jax.Array:
    """The inverse of `balanced`."""
    return _trade(x, axes, axis, back=True)


def _trade(x: jax.Array, axes: tuple[str, ...], axis: int, back: bool) -> jax.Array:
    shards = jax.lax.axis_size(axes)
    if shards == 1:
        return x
    halves = []
    # Before and after, a device has one piece of even number and one of odd: two permutations.
    for odd, half in enumerate(jnp.split(x, 2, axis=axis)):
        ways = [(here, piece_owner(2 * here + odd, shards)) for here in range(shards)]
        if back:
            ways = [(there, here) for here, there in ways]
        halves.append(jax.lax.ppermute(half, axes, ways))
    return jnp.concatenate(halves, axis=axis)


def whole(x: jax.Array, axes: tuple[str, ...], axis: int = 1) -> jax.Array:
    """All tokens in order, on every device; the gradient is a reduce-scatter."""
    return jax.lax.all_gather(x, axes, axis=axis, tiled=True)
