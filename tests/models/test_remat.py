import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.interpreters.partial_eval import dce_jaxpr

from t5x_style.accounting import Topology, training_flops_per_token
from t5x_style.kernels import attention_kernel
from t5x_style.models import REMAT_POLICIES, Decoder
from tests.jaxprs import equations, product_flops
from tests.models import reference
from tests.models.architectures import LLAMA

TOKENS = np.random.default_rng(7).integers(0, 40, (2, 9))


@functools.cache
def loss_and_gradients(policy):
    """Of the mean squared logit."""
    options = {"compute_dtype": jnp.float32, "remat": policy}
    decoder, _ = reference.with_random_parameters(
        lambda: Decoder(LLAMA, rngs=nnx.Rngs(0), **options)
    )
    definition, state = nnx.split(decoder)

    @jax.value_and_grad
    def loss(state):
        model = nnx.merge(definition, state)
        return jnp.square(model.logits(model(TOKENS)[0])).mean()

    value, gradients = jax.jit(loss)(state)
    flops = product_flops(jax.make_jaxpr(loss)(state).jaxpr)
    return value, jax.tree.leaves(gradients), flops


@pytest.mark.parametrize("policy", [other for other in REMAT_POLICIES if other != "none"])
def test_a_policy_changes_work_and_no_number(policy):
    expected, expected_gradients, flops = loss_and_gradients("none")
    loss, gradients, more_flops = loss_and_gradients(policy)
    assert more_flops > flops
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for got, right in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("policy", "window"),
    [
        # Of 'offload', which is 'save_attention' but for the place, jax leaves to the compiler to
        # drop the kernel's second run.
        *((other, None) for other in REMAT_POLICIES if other != "offload"),
        ("save_attention", 100),
    ],
)
def test_the_account_of_flash_is_what_its_kernels_multiply(policy, window):
    """Tiles counted on the mask, products on one tile and outside of the kernels by tracing.

    A policy that keeps the kernel's residuals runs it forward once, the others twice.
    """
    length, block = 384, 128
    architecture = dataclasses.replace(LLAMA, window=window, kv_heads=1)
    kernel = attention_kernel("flash", block)
    definition, state = nnx.split(
        nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0), remat=policy, kernel=kernel))
    )

    def loss(state, tokens):
        model = nnx.merge(definition, state)
        return jnp.square(model.logits(model(tokens)[0])).mean()

    tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(state, tokens).jaxpr
    # What nothing reads stands there until it is compiled, the kernel run again among it.
    jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    runs = collections.Counter()
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "pallas_call":
            runs[equation.params["name"].split("_")[2]] += times
    layers, heads, head_dim = 3, 4, 10
    again = policy == "full"
    assert runs == {"fwd": (2 if again else 1) * layers, "dkv": layers, "dq": layers}

    distance = np.subtract.outer(np.arange(length), np.arange(length))
    seen = (distance >= 0) & (distance < (window or length))
    tiles = seen.reshape(3, block, 3, block).any((1, 3)).sum()
    flops = product_flops(jaxpr, tiles=heads * tiles)
    # Splash writes a sum over the head's features, of which it needs one a query, as a product.
    sums = layers * 2 * length * heads * head_dim
    account = training_flops_per_token(
        architecture,
        length,
        "hardware",
        Topology(remat=policy, kernel="flash", attention_block=block),
    )
    assert flops - sums == account * length
