"""The reader of compiled programs, on programs whose products can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from tests.hlo import dot_flops

MATRIX = jax.ShapeDtypeStruct((16, 16), jnp.float32)
PRODUCT = 2 * 16**3


def compiled(function, *arguments) -> str:
    return jax.jit(function).lower(*arguments).compile().as_text()


def test_a_loop_in_a_loop_and_a_fused_product():
    def inner(x, _):
        return jnp.tanh(x @ x), None

    def outer(x, _):
        x, _ = jax.lax.scan(inner, x, length=3)
        return x @ x + 1, None

    text = compiled(lambda x: jax.lax.scan(outer, x, length=5)[0], MATRIX)
    assert dot_flops(text) == 5 * (3 + 1) * PRODUCT


def test_batched_and_wide_products():
    left = jax.ShapeDtypeStruct((7, 8, 16), jnp.float32)
    right = jax.ShapeDtypeStruct((7, 16, 32), jnp.float32)
    assert dot_flops(compiled(lambda a, b: a @ b, left, right)) == 2 * 7 * 8 * 16 * 32


def test_every_branch_of_a_conditional_counts():
    def either(which, x):
        return jax.lax.cond(which, lambda x: x @ x, lambda x: (x @ x) @ x, x)

    assert dot_flops(compiled(either, jax.ShapeDtypeStruct((), bool), MATRIX)) == 3 * PRODUCT


def test_a_loop_without_a_known_end_is_refused():
    def until_small(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    with pytest.raises(ValueError, match="no number of trips"):
        dot_flops(compiled(until_small, MATRIX))


def test_a_product_that_may_hide_is_refused():
    image = jax.ShapeDtypeStruct((1, 1, 8, 8), jnp.float32)
    text = compiled(lambda x: jax.lax.conv(x, x[:, :, :3, :3], (1, 1), "VALID"), image)
    with pytest.raises(ValueError, match="a product may hide"):
        dot_flops(text)
