import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_style.models import REMAT_POLICIES, Decoder
from tests.jaxprs import product_flops
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


@pytest.mark.parametrize("policy", [each for each in REMAT_POLICIES if each != "none"])
def test_a_policy_changes_work_and_no_number(policy):
    expected, expected_gradients, flops = loss_and_gradients("none")
    loss, gradients, more_flops = loss_and_gradients(policy)
    assert more_flops > flops
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for got, right in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(got, right, rtol=1e-4, atol=1e-7)
