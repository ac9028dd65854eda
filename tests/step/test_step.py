import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5x_style.accounting import Topology
from t5x_style.data import Rows
from t5x_style.partitioning import batch_sharding, in_force, make_mesh
from t5x_style.step.model_state import abstract_state, bind_model, fresh_state
from t5x_style.step.step import NO_LIMITS, make_evaluation_step, make_train_step, packed_batch
from tests.training.runs import ARCHITECTURE, EOS, SEQUENCE, VOCABULARY

ARCH = dataclasses.replace(ARCHITECTURE, d_model=32, head_dim=4, d_ff=48, logit_softcap=5.0)
BATCH = 8
# Rows of source 1 alone in one quarter, none of source 2.
SOURCE = np.array([0, 1, 0, 0, 1, 1, 1, 0], np.int32)
RATE = 0.5
# What the steps before have summed: nats, z terms and tokens of three sources.
BEFORE = np.array([[1.5, 0, 64], [0.25, 0, 8], [16, 0, 32]], np.float32)
Z_LOSS = 1e-2


@functools.cache
def tokens() -> np.ndarray:
    rng = np.random.default_rng(3)
    return rng.integers(0, VOCABULARY, (BATCH, SEQUENCE + 1)).astype(np.int32)


@functools.cache
def after_a_step(microbatches: int = 1, fsdp: int = 1, tensor: int = 1):
    """(first parameters, state, metrics, sums) of one step of gradient descent on a mesh."""
    topology = Topology(fsdp=fsdp, tensor=tensor)
    mesh = make_mesh(topology)
    optimizer = optax.sgd(RATE)
    with in_force(topology, mesh):
        model = bind_model(ARCH, topology, mesh, "float32")
        state = fresh_state(model, optimizer, abstract_state(model, optimizer, mesh), 0)
        step = make_train_step(
            model,
            optimizer,
            lambda at: 0.25 * (at + 1),
            sources=3,
            microbatches=microbatches,
            z_loss=Z_LOSS,
            loss_chunk_tokens=24,
            eos_id=EOS,
        )
        batch = packed_batch(Rows(tokens(), SOURCE, None))
        batch = jax.device_put(batch, batch_sharding(mesh))
        new, metrics, sums = jax.jit(step)(state, batch, BEFORE, NO_LIMITS)
    return jax.device_get((state["parameters"], new, metrics, sums))


@functools.cache
def expected():
    """Row losses [B], z terms [B] and gradients, from the logits as a whole and by optax."""
    topology = Topology()
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        model = bind_model(ARCH, topology, mesh, "float32")

        def loss(parameters):
            decoder = model(parameters)
            logits = decoder.logits(decoder(tokens()[:, :-1])[0])
            nll = optax.softmax_cross_entropy_with_integer_labels(logits, tokens()[:, 1:])
            z = Z_LOSS * jax.nn.logsumexp(logits, -1) ** 2
            return (nll + z).mean(), (nll.mean(1), z.mean(1))

        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, rows), gradients = gradient(after_a_step()[0])
    return *jax.device_get(rows), jax.device_get(gradients)


def assert_trees_close(got, right, tolerance):
    """Leaf by leaf, within the tolerance of the leaf's largest entry."""
    paths = jax.tree_util.tree_flatten_with_path(right)[0]
    for one, (path, other) in zip(jax.tree.leaves(got), paths, strict=True):
        limit = tolerance * np.abs(other).max()
        np.testing.assert_allclose(
            one, other, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path)
        )


def gradients_of(outcome):
    return jax.tree.map(lambda new, old: (old - new) / RATE, outcome[1]["parameters"], outcome[0])


def test_loss_and_gradients_are_those_of_the_mean_over_all_tokens():
    nll, _, gradients = expected()
    metrics = after_a_step()[2]
    assert metrics["loss"] == pytest.approx(nll.mean(), rel=1e-6)
    assert_trees_close(gradients_of(after_a_step()), gradients, 1e-4)
    norm = np.sqrt(sum((leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(gradients)))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-5)


def test_the_nats_and_the_tokens_of_each_source_are_added_to_those_before():
    nll, z, _ = expected()
    added = after_a_step()[3].astype(np.float64) - BEFORE
    rows = np.array([np.sum(source == SOURCE) for source in range(3)])
    assert rows.tolist() == [4, 4, 0]
    assert added[2].tolist() == (SEQUENCE * rows).tolist()
    for found, losses in ((added[0], nll), (added[1], z)):
        by_source = [SEQUENCE * losses[source == SOURCE].sum() for source in range(3)]
        assert abs(by_source[0] - by_source[1]) > 1e-3
        np.testing.assert_allclose(found, by_source, rtol=1e-5, atol=1e-5)


def test_the_rest_of_the_metrics_and_of_the_state():
    _, new, metrics, sums = after_a_step()
    squares = sum(
        (leaf.astype(np.float64) ** 2).sum() for leaf in jax.tree.leaves(new["parameters"])
    )
    assert metrics["param_norm"] == pytest.approx(np.sqrt(squares), rel=1e-5)
    assert metrics["learning_rate"] == 0.25  # of the step taken, which was step 0
    assert new["step"] == 1
    assert new["step"].dtype == np.int32
    metrics = dict(metrics)
    assert metrics.pop("row_nats").shape == (BATCH,)
    names = ("loss", "grad_norm", "param_norm", "applied")
    assert metrics.pop("seen").tolist() == [float(metrics[name]) for name in names]
    dtypes = {name: leaf.dtype for name, leaf in metrics.items()}
    assert dtypes.pop("applied") == np.dtype(bool)
    assert {*dtypes.values(), sums.dtype} == {np.dtype(np.float32)}
    assert {leaf.shape for leaf in metrics.values()} == {()}


@pytest.mark.parametrize(
    ("microbatches", "sizes"),
    [(4, {}), (2, {"fsdp": 4, "tensor": 2})],
    ids=["4x2", "2x4 on a mesh"],
)
def test_microbatches_change_neither_loss_nor_gradients(microbatches, sizes):
    whole, cut = after_a_step(), after_a_step(microbatches, **sizes)
    # What only microbatches can tell is of `test_left_out.py`.
    metrics, others = {name: cut[2][name] for name in whole[2]}, cut[3:]
    assert_trees_close((metrics, *others), whole[2:], 1e-5)
    assert_trees_close(gradients_of(cut), gradients_of(whole), 1e-4)
    assert_trees_close(cut[1]["parameters"], whole[1]["parameters"], 1e-5)


def test_evaluation_gives_the_training_loss():
    topology = Topology()
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        model = bind_model(ARCH, topology, mesh, "float32")
        evaluate = jax.jit(make_evaluation_step(model, loss_chunk_tokens=24, eos_id=EOS))
        weights = np.ones((BATCH, SEQUENCE), np.float32)
        total, _ = evaluate(after_a_step()[0], tokens(), weights)
        assert total / weights.size == pytest.approx(after_a_step()[2]["loss"], rel=1e-6)
        # Rows without weight do not count, whatever is in them.
        weights[3:] = 0
        part, rows = evaluate(after_a_step()[0], tokens(), weights)
    assert rows[3:].tolist() == [0] * (BATCH - 3)
    assert rows.sum() == pytest.approx(float(part), rel=1e-6)
    assert part / (3 * SEQUENCE) == pytest.approx(expected()[0][:3].mean(), rel=1e-6)


def test_bfloat16_computes_in_bfloat16_with_state_and_sums_in_float32():
    topology = Topology()
    mesh = make_mesh(topology)
    optimizer = optax.adam(1e-3)
    with in_force(topology, mesh):
        model = bind_model(ARCH, topology, mesh, "bfloat16")
        state = abstract_state(model, optimizer, mesh)
        step = make_train_step(
            model, optimizer, lambda _: 0.0, sources=3, microbatches=2, z_loss=0.0,
            loss_chunk_tokens=24, eos_id=EOS,
        )  # fmt: skip
        batch = jnp.asarray(packed_batch(Rows(tokens(), SOURCE, None)))
        new, metrics, sums = jax.eval_shape(step, state, batch, BEFORE, NO_LIMITS)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(new["parameters"])} == {np.dtype(np.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves((metrics, sums))} == {
        np.dtype(np.float32),
        np.dtype(bool),
    }
