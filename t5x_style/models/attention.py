"""Multi-head and grouped-query attention with positions, around an exchangeable kernel."""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from t5x_style.kernels import Kernel, plain_attention
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
from t5x_style.models.remat import OUTPUT, QKV
from t5x_style.models.sequence import balanced, in_order, whole

# Keys and values [B, T, K, H] of the tokens seen so far, in slots by position.
Cache = tuple[jax.Array, jax.Array]


class Attention(nnx.Module):
    """Causal self-attention, [B, S, D] to [B, S, D].

    Weights are two-dimensional, [D, N * H]: shards then stay multiples of the TPU's tiles and
    gradients are true reduce-scatters.
    """

    def __init__(
        self,
        *,
        d_model: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        positions: str,
        rope_theta: float,
        window: int | None,
        qk_norm: bool,
        softcap: float | None,
        norm_epsilon: float,
        biases: bool,
        matmul_dtype: str | None,
        std: float,
        residual_std: float,
        kernel: Kernel,
        rngs: nnx.Rngs,
    ):
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.positions, self.rope_theta = positions, rope_theta
        self.window, self.softcap, self.kernel = window, softcap, kernel
        options = {"bias": biases, "matmul_dtype": matmul_dtype, "rngs": rngs}
        read = {"std": std, **options}
        self.query = Linear(d_model, heads * head_dim, axes=(EMBED, HEADS), **read)
        self.key = Linear(d_model, kv_heads * head_dim, axes=(EMBED, KV_HEADS), **read)
        self.value = Linear(d_model, kv_heads * head_dim, axes=(EMBED, KV_HEADS), **read)
        self.out = Linear(
            heads * head_dim, d_model, axes=(HEADS_ROWS, None), std=residual_std, **options
        )
        norm = functools.partial(Norm, head_dim, kind="rms", bias=False, epsilon=norm_epsilon)
        self.query_norm = norm() if qk_norm else None
        self.key_norm = norm() if qk_norm else None

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
        batch, length, _ = x.shape
        q = self._split(self.query(x), self.heads, HEADS)
        k = self._split(self.key(x), self.kv_heads, KV_HEADS)
        v = self._split(self.value(x), self.kv_heads, KV_HEADS)
        v = checkpoint_name(v, QKV)
        if self.query_norm is not None and self.key_norm is not None:
            # A norm goes back through what it read; positions need nothing.
            q, k = (checkpoint_name(each, QKV) for each in (q, k))
            q, k = self.query_norm(q), self.key_norm(k)
        if self.positions == "rope":
            q, k = (rope(each, positions, self.rope_theta) for each in (q, k))
        if self.query_norm is None:
            q, k = (checkpoint_name(each, QKV) for each in (q, k))
        q = q * (1 / math.sqrt(self.head_dim))
        slopes = jnp.asarray(alibi_slopes(self.heads)) if self.positions == "alibi" else None
        if cache is None:
            attended = self._attend(q, k, v, positions, slopes, segments)
        else:
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), positions[0], 1)
                for old, new in zip(cache, (k, v), strict=True)
            )
            cache = (k, v)
            # A few queries against a cache: no kernel is better than the formula.
            attended = plain_attention(
                q,
                k,
                v,
                query_positions=positions,
                key_positions=jnp.arange(k.shape[1], dtype=positions.dtype),
                slopes=slopes,
                window=self.window,
                softcap=self.softcap,
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
            attended = self.kernel(
                q,
                k,
                v,
                query_positions=positions,
                key_positions=key_positions,
                slopes=slopes,
                window=self.window,
                segments=None if segments is None else (segments, key_segments),
                softcap=self.softcap,
            )
            return (in_order(attended, axes) if axes else attended,)

        queries, keys = (BATCH, SEQUENCE, HEADS, None), (BATCH, SEQUENCE, KV_HEADS, None)
        in_axes = (queries, keys, keys, (SEQUENCE,), (HEADS,), (BATCH, SEQUENCE))
        per_device = per_shard(on_shard, in_axes, (queries,))
        return per_device(q, k, v, positions, slopes, segments)[0]

    def _split(self, x: jax.Array, heads: int, axis: str) -> jax.Array:
        split = x.reshape(*x.shape[:2], heads, self.head_dim)
        return constrain(split, BATCH, SEQUENCE, axis, None)
