import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_style.accounting import Architecture, Topology
from t5x_style.accounting.feed_forward import FEED_FORWARDS
from t5x_style.compiling import described_devices
from t5x_style.models.layers import _ACTIVATIONS, FeedForward, Norm, alibi_slopes, product, rope
from tests.models.reference import turned


def test_alibi_40():
    """BloombergGPT's 40 heads: past the 32 of a power of two, the odd steps of the 64."""
    slopes = alibi_slopes(40)
    assert slopes.dtype == np.float32
    assert len(slopes) == 40
    for head, slope in ((1, 0.840896), (32, 2.0**-8), (33, 0.917004), (40, 0.272627)):
        assert slopes[head - 1] == pytest.approx(slope, abs=1e-6)


def test_alibi_slopes_of_a_power_of_two_are_powers_of_two():
    np.testing.assert_array_equal(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_array_equal(alibi_slopes(1), [2.0**-8])


def test_rope_turns_complex_numbers():
    x = np.random.default_rng(0).normal(size=(2, 5, 3, 8)).astype(np.float32)
    positions = np.array([0, 1, 2, 700, 5000], np.int32)
    ours = jax.jit(rope, static_argnums=2)(x, positions, 1e4)
    for b, n in np.ndindex(2, 3):
        expected = turned(x[b, :, n].astype(np.float64), positions, 1e4)
        # float32 angles near 5,000 are right to 5,000 * 2^-24.
        np.testing.assert_allclose(ours[b, :, n], expected, atol=2e-3)
        np.testing.assert_allclose(ours[b, :3, n], expected[:3], atol=2e-6)


def test_rope_makes_products_depend_on_the_distance_alone():
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 16))

    @jax.jit
    def score(query_position, key_position):
        at = [jnp.asarray([position]) for position in (query_position, key_position)]
        return (rope(q, at[0], 1e4) * rope(k, at[1], 1e4)).sum()

    assert abs(score(9, 4) - score(105, 100)) < 1e-4
    assert abs(score(9, 4) - score(9, 5)) > 1e-2


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_norms_against_flax(kind, dtype):
    rng = np.random.default_rng(0)
    # A mean of 40 over a deviation of 1: in bfloat16 arithmetic the variance would be lost.
    x = jnp.asarray(40 + rng.normal(size=(3, 64)), dtype)
    gain, bias = rng.normal(size=(2, 64)).astype(np.float32)
    ours = Norm(64, kind=kind, bias=True, epsilon=1e-3)
    options = {"epsilon": 1e-3, "rngs": nnx.Rngs(0), "dtype": jnp.float32}
    if kind == "layer":
        theirs = nnx.LayerNorm(64, use_fast_variance=False, **options)
        theirs.bias[...] = ours.bias[...] = bias
    else:
        theirs = nnx.RMSNorm(64, **options)
        assert ours.bias is None
    theirs.scale[...] = ours.gain[...] = gain
    got = ours(x)
    assert got.dtype == dtype
    tolerance = 1e-5 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(
        np.asarray(got, np.float32), theirs(x), rtol=tolerance, atol=tolerance
    )


def test_a_layer_norm_without_biases_has_none():
    assert Norm(4, kind="layer", bias=False, epsilon=1e-5).bias is None


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 7), (7, 3), (5, 5)])
def test_the_gradients_of_a_product(inputs, outputs):
    """Of <x W, c> they are c W^T and x^T c, whichever of x and c is narrower."""
    rng = np.random.default_rng(0)
    shapes = (2, 4, inputs), (inputs, outputs), (2, 4, outputs)
    x, weight, cotangent = (rng.normal(size=shape).astype(np.float32) for shape in shapes)
    out, backward = jax.vjp(product, x, weight)
    np.testing.assert_allclose(out, np.einsum("bsi,io->bso", x, weight), rtol=1e-5, atol=1e-6)
    x_gradient, weight_gradient = backward(jnp.asarray(cotangent))
    expected = np.einsum("bso,io->bsi", cotangent, weight)
    np.testing.assert_allclose(x_gradient, expected, rtol=1e-5, atol=1e-6)
    expected = np.einsum("bsi,bso->io", x, cotangent)
    np.testing.assert_allclose(weight_gradient, expected, rtol=1e-5, atol=1e-6)


def test_a_tpu_makes_a_gradient_of_swiglu_once_and_not_inside_of_each_product():
    device = described_devices(Topology(chip="v5e", slice="2x2"))[0]

    def gradients(x, up, gate, down, cotangent):
        def block(x, up, gate, down):
            return product(jax.nn.silu(product(2 * x, gate)) * product(2 * x, up), down)

        return jax.vjp(block, x, up, gate, down)[1](cotangent)

    shapes = [(512, 256), (256, 1024), (256, 1024), (1024, 256), (512, 256)]
    sharding = jax.sharding.SingleDeviceSharding(device)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding) for shape in shapes]
    text = jax.jit(gradients).lower(*arguments).compile().as_text()
    # Once forwards, once for the gradients of both; five where the products make it themselves.
    assert text.count(" exponential(") == 2


def test_every_built_in_kind_has_its_function():
    assert _ACTIVATIONS.keys() == FEED_FORWARDS.keys()
    assert all(kind.activation is None for kind in FEED_FORWARDS.values())


@pytest.mark.parametrize("biases", [False, True])
def test_a_users_feed_forward_against_its_plain_reading(biases):
    """GeGLU of a module outside the package: values, and gradients by jax.grad."""
    architecture = Architecture(40, 2, 24, 48, 4, feed_forward="tests.my_team.GEGLU", biases=biases)
    layer = FeedForward(architecture, rngs=nnx.Rngs(0))
    definition, state = nnx.split(layer)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 24)).astype(np.float32)
    direction = rng.normal(size=x.shape).astype(np.float32)
    plain_state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        nnx.to_pure_dict(state),
    )
    nnx.replace_by_pure_dict(state, plain_state)

    def ours(state, x):
        return (nnx.merge(definition, state)(x) * direction).sum()

    def plain(p, x):
        def linear(name, x):
            y = jnp.einsum("bsi,io->bso", x, p[name]["weight"])
            return y + p[name]["bias"] if biases else y

        gate = linear("gate", x)
        cube = gate + 0.044715 * gate**3
        gelu = 0.5 * gate * (1 + jnp.tanh(np.sqrt(2 / np.pi) * cube))
        return (linear("down", gelu * linear("up", x)) * direction).sum()

    got, (state_gradient, x_gradient) = jax.jit(jax.value_and_grad(ours, (0, 1)))(state, x)
    expected, expected_gradients = jax.jit(jax.value_and_grad(plain, (0, 1)))(plain_state, x)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    got_gradients = (nnx.to_pure_dict(state_gradient), x_gradient)
    assert jax.tree.structure(got_gradients) == jax.tree.structure(expected_gradients)
    for one, other in zip(
        jax.tree.leaves(got_gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-4)
