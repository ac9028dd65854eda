import dataclasses
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_style.errors import UsageError
from t5x_style.models import Decoder, low_precision
from t5x_style.models.low_precision import available_int8_product, int8_product
from tests.compiling.tpu import SLICES, array, compiled_text, mesh
from tests.jaxprs import equations
from tests.models.architectures import LLAMA


def arrays(*shapes):
    rng = np.random.default_rng(3)
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def in_eight_bits(array, axis):
    """The formula, in float64: multiples of a 127th of the largest along the axis."""
    step = np.abs(array.astype(np.float64)).max(axis, keepdims=True) / 127
    return np.rint(array / step) * step


def test_a_product_and_its_gradients_are_those_of_rounded_operands():
    x, weight, cotangent = arrays((2, 5, 64), (64, 48), (2, 5, 48))
    y, backward = jax.vjp(int8_product, x, weight)
    np.testing.assert_allclose(
        y, in_eight_bits(x, -1) @ in_eight_bits(weight, 0), rtol=1e-5, atol=1e-5
    )
    x_gradient, weight_gradient = backward(jnp.asarray(cotangent))
    expected = in_eight_bits(cotangent, -1) @ in_eight_bits(weight, 1).T
    np.testing.assert_allclose(x_gradient, expected, rtol=1e-5, atol=1e-5)
    expected = np.einsum("bsi,bso->io", x, cotangent)
    np.testing.assert_allclose(weight_gradient, expected, rtol=1e-5, atol=1e-5)
    # 128 steps from 0 to the largest, and errors that cancel: some 1 % of what is added up.
    exact = x @ weight
    assert 1e-3 < np.linalg.norm(y - exact) / np.linalg.norm(exact) < 2e-2


def test_an_outlier_costs_its_own_token_alone():
    x, weight = arrays((8, 64), (64, 48))
    among_others = x.copy()
    among_others[3, 7] = 1e4
    same = np.arange(8) != 3
    np.testing.assert_array_equal(
        int8_product(among_others, weight)[same], int8_product(x, weight)[same]
    )


@pytest.mark.parametrize("axes", [("x", None), (None, "x")])
def test_a_scale_is_that_of_the_whole_row_however_the_weight_is_split(axes):
    """Sums of integers are exact, so every bit is the same."""
    x, weight, cotangent = arrays((16, 64), (64, 48), (16, 48))

    @jax.jit
    def results(weight):
        y, backward = jax.vjp(int8_product, x, weight)
        return y, backward(cotangent)[0]

    split = jax.device_put(weight, NamedSharding(jax.make_mesh((8,), ("x",)), P(*axes)))
    for got, expected in zip(results(split), results(weight), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("zero", ["x", "weight"])
def test_nothing_is_divided_by_nothing(zero):
    x, weight = arrays((4, 8), (8, 6))
    operands = {"x": x, "weight": weight} | {zero: np.zeros_like({"x": x, "weight": weight}[zero])}
    y, backward = jax.vjp(int8_product, operands["x"], operands["weight"])
    np.testing.assert_array_equal(y, 0)
    assert all(np.isfinite(item).all() for item in backward(jnp.zeros_like(y)))


def test_of_a_bfloat16_product_only_the_result_is_rounded():
    """Scales or quotients in bfloat16 would add errors of their own."""
    x, weight = arrays((64, 256), (256, 64))
    # Half of a row's largest entry is a tie, so it is one that no entry is half of.
    x[:, 0] = weight[1] = 16.125
    x, weight = (jnp.asarray(item, jnp.bfloat16) for item in (x, weight))
    y = int8_product(x, weight)
    expected = in_eight_bits(np.asarray(x), -1) @ in_eight_bits(np.asarray(weight), 0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, jnp.asarray(expected, jnp.float32).astype(jnp.bfloat16))


@pytest.mark.parametrize(("remat", "again"), [("none", 0), ("save_dots", 0), ("full", 5)])
def test_all_matrices_of_the_blocks_and_no_other(remat, again):
    """Seven a layer, forwards and for the gradient of what each reads; with 'save_dots' no sum in
    int32 is made again."""
    architecture = dataclasses.replace(LLAMA, matmul_dtype="int8")
    definition, state = nnx.split(
        nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0), remat=remat))
    )

    def loss(state, tokens):
        model = nnx.merge(definition, state)
        return jnp.square(model.logits(model(tokens)[0])).mean()

    tokens = jax.ShapeDtypeStruct((1, 9), jnp.int32)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(state, tokens).jaxpr
    products = 0
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "dot_general" and equation.outvars[0].aval.dtype == jnp.int32:
            assert {item.aval.dtype for item in equation.invars} == {jnp.dtype("int8")}
            products += times
    # The two that write to the residual stream are not needed again.
    assert products == LLAMA.layers * (7 + again + 7)


def test_without_qwix_the_model_is_refused(monkeypatch):
    low_precision._qwix.cache_clear()
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(UsageError, match=r"needs the package `qwix`: .* t5x_style\[int8\]"):
        available_int8_product()


@pytest.mark.parametrize("chip", SLICES)
def test_a_tpu_multiplies_in_eight_bits_and_gathers_them(chip):
    fsdp = mesh(SLICES[chip], fsdp=4)
    x = array(fsdp, (512, 256), jnp.bfloat16, "fsdp")
    weight = array(fsdp, (256, 512), jnp.bfloat16, "fsdp")

    def step(x, weight):
        return jax.grad(lambda *operands: jnp.tanh(int8_product(*operands)).sum(), (0, 1))(
            x, weight
        )

    text = compiled_text(step, x, weight, out_shardings=(x.sharding, weight.sharding))
    products = re.findall(r"= (\w+)\[\S* convolution\(", text)
    assert sorted(products) == ["bf16", "s32", "s32"]
    gathered = re.findall(r"= (\w+)\[256,512\]\S* all-gather\(", text)
    assert set(gathered) == {"s8"}
