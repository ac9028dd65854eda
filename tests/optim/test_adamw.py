import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule

PLAN = BatchPlan.from_settings([(1, 8), (2, None)], 2, train_steps=12)
AXES = {
    "embedding": ("vocab", "embed"),
    "stacked": ("layers", "embed", "mlp"),
    "gain": ("norm",),
    "stacked_gain": ("layers", "norm"),
    "bias": ("mlp",),
    "stacked_bias": ("layers", "mlp"),
}
SHAPES = {
    "embedding": (5, 4),
    "stacked": (2, 4, 3),
    "gain": (4,),
    "stacked_gain": (2, 4),
    "bias": (3,),
    "stacked_bias": (2, 3),
}
MATRICES = ("embedding", "stacked")


def optimizer(**changes) -> AdamW:
    fields = {
        "schedule": Schedule(1e-2, warmup_tokens=8, final_fraction=0.1),
        "weight_decay": 0.3,
        "clip_norm": None,
    }
    return AdamW(**{**fields, **changes})


def random_tree(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def parameters_after(transformation, gradients) -> dict:
    """The parameters after one update for each tree of gradients."""

    @jax.jit
    def update(parameters, state, gradient):
        updates, state = transformation.update(gradient, state, parameters)
        return optax.apply_updates(parameters, updates), state

    parameters = random_tree(0)
    state = transformation.init(parameters)
    for gradient in gradients:
        parameters, state = update(parameters, state, gradient)
    return parameters


@functools.cache
def ours() -> dict:
    return parameters_after(optimizer().transformation(PLAN, AXES), GRADIENTS)


GRADIENTS = [random_tree(seed) for seed in range(1, 11)]


@pytest.mark.parametrize("decay", [True, False])
def test_against_optax_adamw_on_matrices_and_without_decay_on_the_rest(decay):
    theirs = optax.adamw(
        optimizer().learning_rate(PLAN),
        b1=0.9,
        b2=0.95,
        eps=1e-8,
        weight_decay=0.3 if decay else 0.0,
    )
    expected = parameters_after(theirs, GRADIENTS)
    for name in SHAPES:
        if (name in MATRICES) == decay:
            np.testing.assert_allclose(ours()[name], expected[name], rtol=1e-5, atol=1e-7)
        else:
            assert np.abs(ours()[name] - expected[name]).max() > 1e-4


def test_one_step_written_out():
    """The first update is -rate * (sign(gradient) + decay * parameter), decay on matrices alone."""
    got = parameters_after(optimizer().transformation(PLAN, AXES), GRADIENTS[:1])
    rate = 1e-2 * 2 / 8  # the first step's two tokens of a warm-up of eight
    for name, start in random_tree(0).items():
        decay = 0.3 * start if name in MATRICES else 0
        expected = start - rate * (np.sign(GRADIENTS[0][name]) + decay)
        np.testing.assert_allclose(got[name], expected, rtol=1e-5, atol=1e-6)


def test_epsilon_is_beside_the_root_of_the_second_moment():
    """So a gradient of 1e-8, as large as epsilon, moves a parameter by half of the rate."""
    (first, *_) = GRADIENTS
    tiny = {name: np.float32(1e-8) * np.sign(gradient) for name, gradient in first.items()}
    adam = optimizer(weight_decay=0.0).transformation(PLAN, AXES)
    zeros = jax.tree.map(np.zeros_like, tiny)
    updates, _ = jax.jit(adam.update)(tiny, adam.init(zeros), zeros)
    for name, gradient in tiny.items():
        np.testing.assert_allclose(
            updates[name], -1e-2 * 2 / 8 * np.sign(gradient) / 2, rtol=1e-5, atol=0
        )


def test_what_is_not_set_is_as_llms_are_trained():
    """The betas, the decay and the clipping of GPT-3 (Brown et al. 2020, appendix B)."""
    plain = AdamW(Schedule(1e-2))
    assert (plain.b1, plain.b2, plain.epsilon) == (0.9, 0.95, 1e-8)
    assert (plain.weight_decay, plain.clip_norm) == (0.1, 1.0)


def test_the_bounds_of_what_can_be_set():
    assert (optimizer(b1=0, b2=0, clip_norm=1e-9).b1, optimizer(b2=0.9999).b2) == (0, 0.9999)


def test_the_learning_rate_counts_the_tokens_of_the_step_itself():
    rates = jax.jit(jax.vmap(optimizer().learning_rate(PLAN)))(jnp.arange(12))
    tokens = np.cumsum([2] * 4 + [4] * 8, dtype=np.float32)  # phases of 1 and of 2 rows of 2
    assert tokens[-1] == PLAN.tokens
    np.testing.assert_allclose(
        rates, optimizer().schedule.learning_rate(tokens, PLAN.tokens), rtol=1e-6
    )
    assert rates[0] > 0
    assert float(rates[-1]) == pytest.approx(1e-3)


@pytest.mark.parametrize("scale", [10.0, 1e-3])
def test_clipping_scales_to_the_norm_and_leaves_small_gradients(scale):
    gradient = jax.tree.map(lambda leaf: np.float32(scale) * leaf, random_tree(1))
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in gradient.values()))
    transformation = optimizer(clip_norm=0.5).transformation(PLAN, AXES)
    _, state = jax.jit(transformation.update)(
        gradient, jax.jit(transformation.init)(gradient), random_tree(0)
    )
    (adam,) = [part for part in state if isinstance(part, optax.ScaleByAdamState)]
    factor = min(1.0, 0.5 / norm)
    assert (factor < 1) == (scale == 10.0)
    for name, leaf in gradient.items():
        # Adam's first mean is a tenth of the gradient that reaches it.
        np.testing.assert_allclose(adam.mu[name], 0.1 * factor * leaf, rtol=1e-5)


@pytest.mark.parametrize(
    "fields",
    [{"b1": 1.0}, {"b1": -0.1}, {"b2": 1.0}, {"b2": -0.1}, {"clip_norm": 0.0}, {"clip_norm": -1.0}],
)
def test_refusals(fields):
    (name,) = fields
    with pytest.raises(UsageError, match=f"AdamW.{name}"):
        optimizer(**fields)
