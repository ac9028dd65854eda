import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.kernels import plain_attention
from tests.kernels.formula import attention, random_qkv

compiled = jax.jit(plain_attention)
SLOPES = np.array([0.5, 0.25, 1.5, 0.0625], np.float32)


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


def test_scores_and_softmax_are_float32_under_bfloat16():
    """All scores lie near 256, where bfloat16 has steps of 2: rounded, they would be one score."""
    q, k, v = (jnp.asarray(each, jnp.bfloat16) for each in random_qkv(heads=2, kv_heads=2))
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
