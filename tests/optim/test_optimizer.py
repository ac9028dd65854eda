"""The seams of optimizer and schedule: AdamW and Schedule fulfil them, and so does a user's own."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, LearningRateSchedule, Optimizer, Schedule
from t5x_style.plugins import check_fulfils
from tests.my_team import Lion, Staircase

PLAN = BatchPlan.from_settings(2, 4, train_steps=16)
PARAMETERS = {"matrix": np.ones((3, 2), np.float32), "gain": np.ones(3, np.float32)}
AXES = {"matrix": ("embed", "mlp"), "gain": ("norm",)}
OPTIMIZERS = {
    "AdamW": AdamW(Schedule(1e-2, warmup_tokens=8)),
    "AdamW by a user's schedule": AdamW(Staircase(1e-2)),
    "a user's own": Lion(1e-2),
}


@pytest.mark.parametrize(
    ("kind", "seam"),
    [
        (AdamW, Optimizer),
        (Lion, Optimizer),
        (Schedule, LearningRateSchedule),
        (Staircase, LearningRateSchedule),
    ],
)
def test_all_that_a_seam_asks_for_is_there_by_the_same_names(kind, seam):
    for name, asked in inspect.getmembers(seam, inspect.isfunction):
        if not name.startswith("_"):
            given = inspect.signature(getattr(kind, name))
            assert list(given.parameters) == list(inspect.signature(asked).parameters)
    if seam is Optimizer:
        assert kind.state_bytes_per_parameter in (4, 8)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_state_has_the_bytes_that_are_accounted(name):
    optimizer = OPTIMIZERS[name]
    state = jax.eval_shape(optimizer.transformation(PLAN, AXES).init, PARAMETERS)
    arrays = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state) if leaf.shape)
    parameters = sum(leaf.size for leaf in PARAMETERS.values())
    assert arrays == optimizer.state_bytes_per_parameter * parameters


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_traced_and_descends(name):
    optimizer = OPTIMIZERS[name]
    transformation = optimizer.transformation(PLAN, AXES)

    @jax.jit
    def update(parameters, state, step):
        value, gradients = jax.value_and_grad(
            lambda parameters: sum((leaf**2).sum() for leaf in jax.tree.leaves(parameters))
        )(parameters)
        updates, state = transformation.update(gradients, state, parameters)
        rate = optimizer.learning_rate(PLAN)(step)
        return optax.apply_updates(parameters, updates), state, value, rate

    parameters, values = PARAMETERS, []
    state = transformation.init(parameters)
    for step in range(PLAN.steps):
        parameters, state, value, rate = update(parameters, state, jnp.int32(step))
        values.append(float(value))
        assert (rate.shape, rate.dtype) == ((), jnp.float32)
    assert values[-1] < values[1] < values[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_its_fields_are_json(name):
    fields = dataclasses.asdict(OPTIMIZERS[name])
    assert json.loads(json.dumps(fields)) == fields
    assert "state_bytes_per_parameter" not in fields


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_too_short_is_refused(name):
    OPTIMIZERS[name].check(PLAN.tokens)
    with pytest.raises(UsageError):
        OPTIMIZERS[name].check(3)


def test_a_users_schedule_is_followed_by_tokens():
    rates = jax.vmap(AdamW(Staircase(0.8)).learning_rate(PLAN))(jnp.arange(PLAN.steps))
    # Step s ends at (s + 1) / 16 of the tokens.
    quarters = np.minimum(np.arange(1, 17) // 4, 3)
    np.testing.assert_allclose(rates, 0.8 * 0.5**quarters, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "lacks"),
    [
        (Schedule(1e-3), "it lacks state_bytes_per_parameter, transformation"),
        (optax.sgd(1e-3), "learning_rate, transformation, the fields of a dataclass"),
        ("AdamW", "the fields of a dataclass"),
    ],
)
def test_what_is_no_optimizer_is_refused(value, lacks):
    for optimizer in OPTIMIZERS.values():
        check_fulfils("train.optimizer", optimizer, Optimizer)
    with pytest.raises(UsageError, match=f"train.optimizer = .* is no Optimizer: .*{lacks}"):
        check_fulfils("train.optimizer", value, Optimizer)


def test_what_is_no_schedule_is_refused():
    with pytest.raises(UsageError, match=r"AdamW.schedule = 0.001 is no .* lacks check, learning"):
        AdamW(1e-3)
