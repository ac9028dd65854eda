"""The TPU's flash attention: JAX's splash kernel, forward and backward, on `AttentionInputs`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as splash_mask,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask_info as splash_mask_info,
)

from t5x_style.accounting.attention_blocks import (
    ALIBI_FEATURES,
    USUAL_BLOCK,
    chosen_flash_block,
    device_pieces,
)
from t5x_style.accounting.chips import chip as chip_named
from t5x_style.errors import UsageError
from t5x_style.kernels.plain import RESIDUALS, AttentionInputs

# A position is split into a multiple of 256 and a rest; bfloat16 holds both exactly up to here.
ALIBI_POSITIONS = 2**16


def flash_attention(
    inputs: AttentionInputs,
    *,
    block_size: int | None = None,
    chip: str | None = None,
    interpret: bool = False,
) -> jax.Array:
    """The same numbers as `plain_attention`, by JAX's splash kernel: memory linear in S.

    Blocks of keys that no query of a block sees are neither fetched nor multiplied. The backward
    pass is the kernel's unfused one (the fused one writes a gradient of q per block of keys).

    Args:
      inputs: slopes get no gradient; keys and values are not repeated for the queries that share
        them. The kernel's schedule is made before positions are known: those of the keys must be
        consecutive; those of the queries the same, or where T is n S the two pieces that one of n
        devices attends for (see `models.attention`).
      block_size: queries and keys of a tile, at most; None: see `chosen_flash_block`.
      chip: that it runs on, as `Topology.chip`.
      interpret: run by Pallas' interpreter, on any device and slowly: for tests.

    Returns:
      [B, S, N, H] in q's dtype.

    Raises:
      UsageError: S has no tile of 128; ALiBi with a soft-cap; ALiBi beyond 65,536 positions.
    """
    q, k, v, slopes, softcap = inputs.q, inputs.k, inputs.v, inputs.slopes, inputs.softcap
    (batch, length, heads, _), (keys, kv_heads) = q.shape, k.shape[1:3]
    shards = keys // length
    if slopes is not None:
        if softcap is not None:
            raise UsageError(
                "Topology.kernel = 'flash' adds ALiBi before the cap of Architecture."
                f"attention_softcap = {softcap}, and the formula caps first: use 'blockwise'"
            )
        if keys > ALIBI_POSITIONS:
            raise UsageError(
                f"Topology.kernel = 'flash' with ALiBi at a sequence length of {keys:,}: it is "
                f"exact up to {ALIBI_POSITIONS:,} positions; 'blockwise' has no such limit"
            )
        q, k = with_alibi_features(q, k, slopes, jnp.arange(keys))
    block = chosen_flash_block(
        block_size,
        keys,
        chip=chip,
        head_dim=v.shape[-1],
        features=q.shape[-1],
        window=inputs.window,
        shards=shards,
    )
    # Of the kernel's own grid, the compiler splits no axis of a backward pass over a chip's cores;
    # it splits axes over which the kernel is mapped. Sequences are one. Where the cores cannot
    # share them evenly, heads of keys are mapped too, then parts of the queries that share a key.
    # An axis more costs a step of the grid 1 to 6 %, and ALiBi's features copies around the kernel.
    cores = 1 if chip is None else chip_named(chip).cores
    split = [] if batch % cores == 0 else [kv_heads]
    if split and batch * kv_heads % cores and heads // kv_heads % cores == 0:
        split.append(cores)
    kernel_heads = heads // math.prod(split)
    kernel = _causal_kernel(keys, shards, kernel_heads, inputs.window, block, softcap, interpret)
    if shards > 1:
        piece = (inputs.query_positions[0] - inputs.key_positions[0]) // (length // 2)
        shard = jnp.where(piece < shards, piece, 2 * shards - 1 - piece)
        kernel = _kernel_of_shard(kernel, shard, shards)
    segments = None if inputs.segments is None else splash.SegmentIds(*inputs.segments)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    mapped: Callable[..., Any] = kernel
    if split:
        q = q.reshape(batch, *split, kernel_heads, *q.shape[2:])
        k, v = k[:, :, None], v[:, :, None]
        if len(split) > 1:
            mapped = jax.vmap(mapped, (0, None, None, None))
        mapped = jax.vmap(mapped, (0, 0, 0, None))
    out = jax.vmap(mapped)(q, k, v, segments)
    # A kernel that also returned its residuals would return a tuple.
    assert isinstance(out, jax.Array)
    return jnp.swapaxes(out.reshape(batch, heads, length, -1), 1, 2)


def with_alibi_features(
    q: jax.Array, k: jax.Array, slopes: jax.Array, key_positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """ALiBi as six more features of each query and key, for kernels that take no bias.

    Softmax ignores what is the same for all keys of a query, so slope * (j - i) may be slope * j.
    The slope is the sum of three bfloat16 numbers (24 bits, float32's own), and j = 256 a + b of
    two that bfloat16 holds exactly up to j = 65,536; the six products are exact in float32, and
    only their sum is rounded.

    Args:
      q: [B, S, N, H]. k: [B, T, K, H]. slopes: float32 [N]. key_positions: int32 [T].

    Returns:
      [B, S, N, H + 6] and [B, T, K, H + 6], in the dtypes given.
    """
    parts, rest = [], slopes.astype(jnp.float32)
    for _ in range(3):
        # Not a cast there and back, which XLA may optimise away.
        part = jax.lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part)
        rest = rest - part
    coarse, fine = key_positions // 256 * 256, key_positions % 256
    query_features = jnp.stack(2 * parts, axis=-1)
    key_features = jnp.stack(3 * [coarse] + 3 * [fine], axis=-1)
    query_features = jnp.broadcast_to(
        query_features.astype(q.dtype), (*q.shape[:3], ALIBI_FEATURES)
    )
    key_features = jnp.broadcast_to(
        key_features.astype(k.dtype)[:, None], (*k.shape[:3], ALIBI_FEATURES)
    )
    return jnp.concatenate([q, query_features], -1), jnp.concatenate([k, key_features], -1)


class _CausalMask(splash_mask.Mask):
    """Which keys a query sees, for whole blocks, from their first and last tokens.

    Splash asks only whether all, some or none of a block of S x T is seen, and computes the mask of
    'some' by `mask_function`. To answer, its own masks evaluate all S T pairs, which takes a minute
    at 131,072 tokens.
    """

    def __init__(self, length: int, shards: int, window: int | None):
        pieces = np.arange(length, dtype=np.int32).reshape(2 * shards, -1)
        order = [piece for shard in range(shards) for piece in device_pieces(shard, shards)]
        self.q_sequence = pieces[order].reshape(-1)
        self.mask_function = functools.partial(_is_seen, window=window)
        self.window = length if window is None else window

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.q_sequence), len(self.q_sequence)

    def __getitem__(self, block: tuple[slice, slice]) -> np.ndarray:
        """bool [2], whose `any` and `all` are those of the block."""
        queries, keys = block
        nearest = self.q_sequence[queries.start] - (keys.stop - 1)
        farthest = self.q_sequence[queries.stop - 1] - keys.start
        some = farthest >= 0 and nearest < self.window
        return np.array([some, some and nearest >= 0 and farthest < self.window])


def _is_seen(queries, keys, *, window: int | None):
    seen = queries >= keys
    return seen if window is None else seen & (queries - keys < window)


@functools.lru_cache
def _causal_kernel(
    length: int,
    shards: int,
    heads: int,
    window: int | None,
    block: int,
    softcap: float | None,
    interpret: bool,
) -> splash.SplashAttentionKernel:
    """Splash with its schedules as numpy arrays, so that a kernel of one trace serves in others.

    The schedules of all shards are concatenated.
    """
    mask = splash_mask.MultiHeadMask([_CausalMask(length, shards, window)] * heads)
    tile = (block, block)
    by_rows, mask_function = splash_mask_info.process_mask(mask, tile, q_seq_shards=shards)
    by_columns, _ = splash_mask_info.process_mask_dkv(mask, tile, q_seq_shards=shards)
    return splash.SplashAttentionKernel(
        by_rows,
        by_rows,
        by_columns,
        # Tokens along the 128-wide vector lanes of a TPU: a matrix product writes them so at no
        # cost. A transposition to features along the lanes is a separate copy, since
        # models/attention.py computes q, k and v as [B, S, N H]; and 192 features do not fill 256.
        block_sizes=splash.BlockSizes(
            block_q=block,
            block_kv=block,
            # The forward pass multiplies a wide block by halves: 3 to 9 % fewer cycles.
            block_kv_compute=USUAL_BLOCK if block % USUAL_BLOCK == 0 else block,
            block_q_dkv=block,
            block_kv_dkv=block,
            block_q_dq=block,
            block_kv_dq=block,
            q_layout=splash.QKVLayout.SEQ_MINOR,
            k_layout=splash.QKVLayout.SEQ_MINOR,
            v_layout=splash.QKVLayout.SEQ_MINOR,
        ),
        is_mqa=False,
        save_residuals=False,
        mask_value=splash.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=softcap,
        residual_checkpoint_name=RESIDUALS,
        mask_function=mask_function,
        interpret=interpret,
    )


def _kernel_of_shard(
    kernel: splash.SplashAttentionKernel, shard: jax.Array, shards: int
) -> splash.SplashAttentionKernel:
    """The kernel with one shard's part of its schedules: rows of blocks, [heads, rows, columns],
    and the positions of the queries, [S]."""

    def part(schedule: np.ndarray) -> jax.Array:
        axis = 0 if schedule.ndim == 1 else 1
        size = schedule.shape[axis] // shards
        return jax.lax.dynamic_slice_in_dim(jnp.asarray(schedule), shard * size, size, axis)

    return jax.tree.map(part, kernel)
