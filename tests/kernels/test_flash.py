"""The flash kernel's own choices: how it is mapped for a chip's cores, and its grid."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.accounting.attention_blocks import grid_width, touched_keys_per_query
from t5x_style.kernels import AttentionInputs, flash_attention, plain_attention
from t5x_style.kernels.flash import _causal_kernel
from tests.kernels.formula import random_qkv

LENGTH = 256


def values_and_gradients(inputs, chip, **options):
    flash = functools.partial(flash_attention, block_size=128, interpret=True, chip=chip)

    @jax.jit
    def run(q, k, v):
        def loss(q, k, v):
            return (flash(AttentionInputs(q, k, v, **options)).astype(jnp.float32) ** 2).sum()

        out = flash(AttentionInputs(q, k, v, **options))
        return out, jax.grad(loss, (0, 1, 2))(q, k, v)

    return jax.tree.leaves(run(*inputs))


def options(length=LENGTH, sequences=1, segments=False, window=None):
    positions = np.arange(length)
    documents = np.repeat(np.arange(length // 64), 64)[None].repeat(sequences, 0).astype(np.int32)
    return {
        "query_positions": positions,
        "key_positions": positions,
        "segments": (documents, documents) if segments else None,
        "window": window,
    }


@pytest.mark.parametrize(
    ("sequences", "heads", "kv_heads", "more"),
    [
        (1, 4, 2, {}),
        (1, 4, 4, {"segments": True}),
        (3, 2, 2, {"window": 100}),
        (2, 2, 1, {"segments": True}),
    ],
)
def test_cores_share_heads_with_the_same_bits(sequences, heads, kv_heads, more):
    inputs = random_qkv(
        batch=sequences, queries=LENGTH, keys=LENGTH, heads=heads, kv_heads=kv_heads
    )
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    where = options(sequences=sequences, **more)
    alone, shared = (values_and_gradients(inputs, chip, **where) for chip in ("v5e", "v5p"))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(one, other)


def test_cores_share_the_queries_of_one_key():
    """The parts' gradients of k and v are then added outside of the kernel, rounded before."""
    inputs = random_qkv(batch=1, queries=LENGTH, keys=LENGTH, heads=4, kv_heads=1)
    where = options(segments=True)
    alone, shared = (values_and_gradients(inputs, chip, **where) for chip in ("v5e", "v5p"))
    for one, other in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [None, 1, 128, 129, 300])
@pytest.mark.parametrize(("length", "block"), [(512, 128), (768, 256), (1024, 1024)])
def test_steps_of_the_grid_are_those_of_its_schedule(length, block, window):
    """Of the queries' passes, and transposed of the keys'."""
    kernel = _causal_kernel(length, 1, 2, window, block, None, False)
    blocks, width = length // block, grid_width(length, window, block)
    touched = touched_keys_per_query(length, window, block) * length / block**2
    for schedule, shape in (
        (kernel.fwd_mask_info, (blocks, width)),
        (kernel.dkv_mask_info, (width, blocks)),
    ):
        assert schedule.block_mask.shape[-2:] == shape
        assert np.count_nonzero(schedule.block_mask[0]) == touched


def test_a_wide_block_is_multiplied_by_halves_to_the_same_values():
    """Where a window hides all of one half, of some queries of a block."""
    inputs = random_qkv(batch=1, queries=1024, keys=1024, heads=1, kv_heads=1)
    where = options(length=1024, window=300)
    wide, narrow, plain = (
        run(AttentionInputs(*inputs, **where))
        for run in (
            jax.jit(functools.partial(flash_attention, block_size=1024, interpret=True)),
            jax.jit(functools.partial(flash_attention, block_size=512, interpret=True)),
            jax.jit(plain_attention),
        )
    )
    np.testing.assert_allclose(wide, plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(wide, narrow, rtol=1e-5, atol=1e-6)
