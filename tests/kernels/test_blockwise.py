import functools

import jax
import numpy as np
import pytest

from t5x_style.kernels import AttentionInputs, blockwise_attention, plain_attention
from tests.jaxprs import product_flops, shapes
from tests.kernels.formula import random_qkv

SLOPES = np.array([0.5, 0.25, 1.5, 0.0625], np.float32)


@functools.partial(jax.jit, static_argnums=(0, 6))
def value_and_gradients(kernel, q, k, v, direction, where, window=None):
    """Output, and the gradients of a random projection of it."""

    def projected(q, k, v):
        out = kernel(AttentionInputs(q, k, v, **where, window=window))
        return (out * direction).sum(), out

    (_, out), gradients = jax.value_and_grad(projected, (0, 1, 2), has_aux=True)(q, k, v)
    return out, gradients


@pytest.mark.parametrize(
    ("queries", "keys", "block", "first_query", "slopes"),
    [
        (12, 12, 4, 0, SLOPES),  # even blocks
        (12, 12, 5, 0, None),  # 5 does not divide 12: blocks of 4
        (7, 7, 3, 0, SLOPES),  # a prime length: three blocks of 3, two tokens of them none
        (5, 13, 4, 8, SLOPES),  # queries in a cache, both with blocks that are not full
        (4, 12, 3, 5, None),  # queries in a cache, blocks of two sizes
        (8, 8, 64, 0, SLOPES),  # one block
    ],
)
def test_values_and_gradients_of_plain_attention(queries, keys, block, first_query, slopes):
    q, k, v = random_qkv(queries=queries, keys=keys)
    where = {
        "query_positions": np.arange(first_query, first_query + queries),
        "key_positions": np.arange(keys),
        "slopes": slopes,
    }
    same_values_and_gradients(q, k, v, block, where)


@pytest.mark.parametrize("window", [None, 3, 6])
def test_segments_of_plain_attention(window):
    """Segments that begin inside of a block of four, at its edge, and behind whole blocks."""
    q, k, v = random_qkv(queries=12, keys=12)
    begins = np.zeros((2, 12), np.int32)
    begins[0, [1, 4, 11]] = begins[1, [6, 7, 8]] = 1
    segments = begins.cumsum(1, dtype=np.int32)
    where = {
        "query_positions": np.arange(12),
        "key_positions": np.arange(12),
        "slopes": SLOPES,
        "segments": (segments, segments),
    }
    same_values_and_gradients(q, k, v, 4, where, window)


def test_segments_of_other_queries_than_keys():
    """Four queries at the end of twelve keys, in blocks of two sizes."""
    q, k, v = random_qkv(queries=4, keys=12)
    segments = np.repeat(np.array([[0, 1, 2], [0, 0, 1]], np.int32), 4, axis=1)
    segments[0, 9] = 1
    where = {
        "query_positions": np.arange(8, 12),
        "key_positions": np.arange(12),
        "segments": (segments[:, 8:], segments),
    }
    same_values_and_gradients(q, k, v, 3, where)


def same_values_and_gradients(q, k, v, block, where, window=None):
    direction = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    blockwise = functools.partial(blockwise_attention, block_size=block)
    ours = value_and_gradients(blockwise, q, k, v, direction, where, window)
    theirs = value_and_gradients(plain_attention, q, k, v, direction, where, window)
    for got, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("window", [1, 3, 4, 6])
@pytest.mark.parametrize(("queries", "first_query"), [(12, 0), (4, 7)], ids=["all", "cache"])
def test_a_window_of_plain_attention(window, queries, first_query):
    """Windows shorter than a block of four, as long, and longer; whole blocks before the window."""
    q, k, v = random_qkv(queries=queries, keys=12)
    where = {
        "query_positions": np.arange(first_query, first_query + queries),
        "key_positions": np.arange(12),
        "slopes": SLOPES,
    }
    same_values_and_gradients(q, k, v, 4, where, window)


@pytest.mark.parametrize("window", [12, 13])
def test_a_window_as_long_as_the_sequence_is_none_to_the_bit(window):
    q, k, v = random_qkv(queries=12, keys=12)
    where = {"query_positions": np.arange(12), "key_positions": np.arange(12), "slopes": SLOPES}
    kernel = functools.partial(blockwise_attention, block_size=4)
    with_window, without = (
        value_and_gradients(kernel, q, k, v, q, where, width) for width in (window, None)
    )
    jax.tree.map(np.testing.assert_array_equal, with_window, without)


def test_a_first_block_without_any_allowed_key_leaves_no_trace():
    q, k, v = random_qkv(queries=4, keys=8)
    inputs = AttentionInputs(q, k, v, np.arange(4, 8), np.arange(8)[::-1].copy())
    np.testing.assert_allclose(
        jax.jit(functools.partial(blockwise_attention, block_size=2))(inputs),
        jax.jit(plain_attention)(inputs),
        rtol=2e-5,
        atol=2e-6,
    )


def test_scores_far_below_zero():
    """The running maximum starts below them all: from zero, each exponential would vanish."""
    q, k, v = random_qkv(queries=8, keys=8)
    q[..., 0], k[..., 0] = -20, 20
    inputs = AttentionInputs(q, k, v, np.arange(8), np.arange(8))
    np.testing.assert_allclose(
        jax.jit(functools.partial(blockwise_attention, block_size=4))(inputs),
        jax.jit(plain_attention)(inputs),
        rtol=1e-3,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("length", "window", "pairs"),
    [
        (16, None, 10),  # of 16 pairs of blocks of four: the diagonal and what is before it
        (14, None, 10),  # the last block not full
        (16, 6, 9),  # query 8 sees 3 and up: a key of the block before the last
        (16, 5, 7),  # it sees 4 and up: the block before its own
        (16, 1, 4),  # the diagonal
    ],
)
def test_blocks_that_no_query_sees_are_not_multiplied(length, window, pairs):
    q, k, v = random_qkv(queries=length, keys=length)
    positions = np.arange(length)

    def kernel(q, k, v):
        inputs = AttentionInputs(q, k, v, positions, positions, window=window)
        return blockwise_attention(inputs, block_size=4)

    one_product = 2 * 2 * 4 * 4 * 4 * 8  # batch, heads, queries, keys, head size
    assert product_flops(jax.make_jaxpr(kernel)(q, k, v).jaxpr) == pairs * 2 * one_product
    both = jax.make_jaxpr(jax.grad(lambda *width: kernel(*width).sum(), (0, 1, 2)))(q, k, v)
    assert product_flops(both.jaxpr) == pairs * (2 + 5) * one_product


def test_the_scores_are_never_whole_neither_forward_nor_backward():
    q, k, v = random_qkv(batch=1, queries=64, keys=64)
    where = {"query_positions": np.arange(64), "key_positions": np.arange(64), "slopes": SLOPES}

    def largest(kernel):
        traced = jax.make_jaxpr(value_and_gradients, static_argnums=0)(kernel, q, k, v, q, where)
        return max(int(np.prod(shape)) for shape in shapes(traced.jaxpr))

    assert largest(plain_attention) == 4 * 64 * 64
    assert largest(functools.partial(blockwise_attention, block_size=8)) < 4 * 64 * 64 / 2
