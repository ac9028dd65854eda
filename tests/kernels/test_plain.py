import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.kernels import AttentionInputs, plain_attention
from tests.kernels.formula import attention, random_qkv

SLOPES = np.array([0.5, 0.25, 1.5, 0.0625], np.float32)


def compiled(q, k, v, **where):
    return jax.jit(plain_attention)(AttentionInputs(q, k, v, **where))


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_against_jax_nn(kv_heads):
    q, k, v = random_qkv(kv_heads=kv_heads)
    positions = jnp.arange(6)
    ours = compiled(q, k, v, query_positions=positions, key_positions=positions)
    theirs = jax.jit(functools.partial(jax.nn.dot_product_attention, is_causal=True, scale=1.0))
    np.testing.assert_allclose(ours, theirs(q, k, v), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_alibi_against_the_formula(kv_heads):
    q, k, v = random_qkv(kv_heads=kv_heads)
    positions = np.arange(6)
    where = {"query_positions": positions, "key_positions": positions, "slopes": SLOPES}
    ours = compiled(q, k, v, **where)
    np.testing.assert_allclose(ours, attention(q, k, v, **where), rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["none", "alibi"])
def test_queries_in_the_middle_of_a_cache(slopes):
    """Three queries at 4, 5, 6 against ten slots, of which the last three are still empty."""
    q, k, v = random_qkv(queries=3, keys=10)
    where = {"query_positions": np.arange(4, 7), "key_positions": np.arange(10), "slopes": slopes}
    expected = attention(q, k, v, **where)
    k[:, 7:] = v[:, 7:] = 1e4
    np.testing.assert_allclose(compiled(q, k, v, **where), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("window", [1, 2, 3, 5])
@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["none", "alibi"])
def test_a_window_against_the_formula(window, slopes):
    q, k, v = random_qkv()
    where = {"query_positions": np.arange(6), "key_positions": np.arange(6), "slopes": slopes}
    expected = attention(q, k, v, **where, window=window)
    np.testing.assert_allclose(
        compiled(q, k, v, **where, window=window), expected, rtol=2e-5, atol=2e-6
    )


def test_a_window_of_keys_against_jax_nn():
    """Whose window counts the keys to the left of the query, without the query itself."""
    q, k, v = random_qkv()
    positions = jnp.arange(6)
    ours = compiled(q, k, v, query_positions=positions, key_positions=positions, window=3)
    theirs = jax.jit(
        functools.partial(
            jax.nn.dot_product_attention, is_causal=True, scale=1.0, local_window_size=(2, 0)
        )
    )
    np.testing.assert_allclose(ours, theirs(q, k, v), rtol=2e-5, atol=2e-6)


def test_a_window_in_the_middle_of_a_cache():
    """Queries at 4, 5 and 6 see three slots each: what lies in 0, 1 and from 7 on is no matter."""
    q, k, v = random_qkv(queries=3, keys=10)
    where = {"query_positions": np.arange(4, 7), "key_positions": np.arange(10), "slopes": SLOPES}
    expected = attention(q, k, v, **where, window=3)
    for unseen in (slice(0, 2), slice(7, 10)):
        k[:, unseen] = v[:, unseen] = 1e4
    np.testing.assert_allclose(compiled(q, k, v, **where, window=3), expected, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("window", [6, 7, 2**31 - 1])
def test_a_window_as_long_as_the_sequence_is_none_to_the_bit(window):
    q, k, v = random_qkv()
    where = {"query_positions": np.arange(6), "key_positions": np.arange(6), "slopes": SLOPES}
    np.testing.assert_array_equal(
        compiled(q, k, v, **where, window=window), compiled(q, k, v, **where)
    )


def test_scores_and_softmax_are_float32_under_bfloat16():
    """All scores lie near 256, where bfloat16 has steps of 2: rounded, they would be one score."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in random_qkv(heads=2, kv_heads=2))
    q, k = q.at[..., 0].set(16), k.at[..., 0].set(16)
    positions = np.arange(6)
    where = {"query_positions": positions, "key_positions": positions}
    ours = compiled(q, k, v, **where)
    assert ours.dtype == jnp.bfloat16
    expected = attention(q, k, v, **where)
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, atol=0.03)


def test_a_query_before_every_key_gives_numbers():
    q, k, v = random_qkv()
    out = compiled(
        q, k, v, query_positions=np.zeros(6, int), key_positions=np.arange(1, 7), slopes=SLOPES
    )
    assert np.isfinite(out).all()


# Three segments and one, of a query each and of many; numbers may come back, and in any order.
SEGMENTS = np.array([[5, 5, 2, 2, 2, 5], [0, 1, 1, 1, 1, 1]], np.int32)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("slopes", [None, SLOPES], ids=["none", "alibi"])
def test_segments_against_the_formula(slopes, window):
    q, k, v = random_qkv()
    where = {
        "query_positions": np.arange(6),
        "key_positions": np.arange(6),
        "slopes": slopes,
        "segments": (SEGMENTS, SEGMENTS),
    }
    expected = attention(q, k, v, **where, window=window)
    got = compiled(q, k, v, **where, window=window)
    np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_segments_against_jax_nn():
    q, k, v = random_qkv()
    positions = jnp.arange(6)
    ours = compiled(
        q, k, v, query_positions=positions, key_positions=positions, segments=(SEGMENTS, SEGMENTS)
    )
    same = SEGMENTS[:, None, :, None] == SEGMENTS[:, None, None, :]
    theirs = jax.jit(functools.partial(jax.nn.dot_product_attention, is_causal=True, scale=1.0))
    np.testing.assert_allclose(ours, theirs(q, k, v, mask=same), rtol=2e-5, atol=2e-6)


def test_one_segment_is_none_to_the_bit():
    q, k, v = random_qkv()
    where = {"query_positions": np.arange(6), "key_positions": np.arange(6), "slopes": SLOPES}
    one = np.full((2, 6), 7, np.int32)
    np.testing.assert_array_equal(
        compiled(q, k, v, **where, segments=(one, one)), compiled(q, k, v, **where)
    )
