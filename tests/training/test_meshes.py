"""One run on many meshes: the same numbers, and every array stays where it belongs.

Runs go through `open_session`, so that what is tested is the compiled step that a user gets.
"""

import collections
import dataclasses
import functools
import tempfile
from typing import Any

import jax
import numpy as np
import optax
import pytest

from t5x_style.accounting import Topology
from t5x_style.partitioning import batch_sharding, in_force, make_mesh
from t5x_style.step.batches import abstract_batch
from t5x_style.step.model_state import abstract_state, bind_model
from t5x_style.step.step import NO_LIMITS, make_train_step, packed_batch
from t5x_style.training.session import open_session
from tests.training.runs import ARCHITECTURE, make_run, stores

STEPS = 5
# A topology's other choices may change no number either, so two of the meshes try them.
MESHES = {
    "1": {},
    "8x1": {"data": 8},
    "1x8": {"fsdp": 8, "remat": "full"},
    "2x4": {"fsdp": 2, "tensor": 4},
    "2x2x2": {"data": 2, "fsdp": 2, "tensor": 2},
    "2x2x2 and over data": {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
        "shard_optimizer_over_data": True,
    },
    "8x1 over data": {"data": 8, "shard_optimizer_over_data": True, "loss_vocab_chunks": 4},
    "sequence of 4": {"fsdp": 2, "sequence": 4},
    "sequence": {"fsdp": 2, "tensor": 2, "sequence": 2, "kernel": "blockwise"},
}
ARCH = dataclasses.replace(
    ARCHITECTURE, kv_heads=4, d_ff=160, qk_norm=True, tied_head=False, logit_softcap=20.0
)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What five steps of a run gave; arrays are in host memory.

    Attributes:
      losses: [5]. start, end: parameters. metrics: of the last step, and the sums of
        losses of all five.
      shardings: (before, after) of the state, as pytrees.
      shard_elements: pytree of the elements that the fullest device holds of each parameter;
        moment_elements: of each of Adam's moments and the counts.
    """

    losses: np.ndarray
    start: dict
    end: dict
    metrics: dict
    shardings: tuple
    shard_elements: dict
    moment_elements: Any


@functools.cache
def lesson(mesh: str) -> Lesson:
    fresh = dataclasses.replace(stores(), validation={})
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(
            folder,
            steps=STEPS,
            architecture=ARCH,
            topology=Topology(**MESHES[mesh], loss_chunk_tokens=24),
            stores=fresh,
            z_loss=1e-3,
        )
        session = open_session(run)
        state, losses = session.state, []
        start = jax.device_get(state["parameters"])
        before = jax.tree.map(lambda leaf: leaf.sharding, state)
        shard_elements, moment_elements = jax.tree.map(
            lambda leaf: max(shard.data.size for shard in leaf.addressable_shards),
            (state["parameters"], state["optimizer"]),
        )
        for at in range(STEPS):
            rows = packed_batch(run.reader.rows(np.arange(8 * at, 8 * at + 8)))
            batch = jax.device_put(rows, session.batch_sharding)
            state, metrics, session.sums = session.steps[8, 16](
                state, batch, session.sums, session.limits_of(at + 1, 0)
            )
            losses.append(float(metrics["loss"]))
        after = jax.tree.map(lambda leaf: leaf.sharding, state)
        session.close()
    metrics["sums"] = session.sums
    end, metrics = jax.device_get((state["parameters"], metrics))
    return Lesson(
        np.array(losses), start, end, metrics, (before, after), shard_elements, moment_elements
    )


SPLIT = [name for name in MESHES if name != "1"]


@pytest.mark.parametrize("mesh", SPLIT)
def test_five_steps_give_the_same_losses(mesh):
    alone = lesson("1")
    assert alone.losses[-1] < alone.losses[0] - 0.1
    np.testing.assert_allclose(lesson(mesh).losses, alone.losses, rtol=0, atol=1e-5)
    for name, value in lesson(mesh).metrics.items():
        np.testing.assert_allclose(value, alone.metrics[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("mesh", SPLIT)
def test_the_first_parameters_are_the_same_bits(mesh):
    jax.tree.map(np.testing.assert_array_equal, lesson(mesh).start, lesson("1").start)


@pytest.mark.parametrize("mesh", MESHES)
def test_the_state_leaves_a_step_where_it_entered(mesh):
    before, after = lesson(mesh).shardings
    pairs = jax.tree.map(
        lambda shape, old, new: old.is_equivalent_to(new, shape.ndim),
        lesson(mesh).start,
        before["parameters"],
        after["parameters"],
    )
    assert all(jax.tree.leaves(pairs))
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert old.spec == new.spec


@pytest.mark.parametrize("mesh", ["1x8", "2x4", "2x2x2"])
def test_no_device_holds_a_whole_matrix(mesh):
    sizes = MESHES[mesh]
    pieces = sizes["fsdp"] * sizes.get("tensor", 1)
    matrices = 0
    for leaf, most in zip(
        jax.tree.leaves(lesson(mesh).start),
        jax.tree.leaves(lesson(mesh).shard_elements),
        strict=True,
    ):
        if leaf.ndim == 3 or len(leaf) == ARCH.vocab_size:
            assert most == leaf.size // pieces
            matrices += 1
    assert matrices == 2 + 7  # embedding, head, and those of a block


@pytest.mark.parametrize("mesh", [name for name in MESHES if "over data" in name])
def test_the_optimizer_state_of_a_matrix_lies_on_every_device(mesh):
    """Each device has an eighth of the moments, and the parameters as without the option."""
    sizes = MESHES[mesh]
    pieces = sizes.get("fsdp", 1) * sizes.get("tensor", 1)
    moments = matrices = 0
    for leaf, most in zip(
        jax.tree.leaves(lesson(mesh).start),
        jax.tree.leaves(lesson(mesh).shard_elements),
        strict=True,
    ):
        if leaf.ndim == 3 or len(leaf) == ARCH.vocab_size:
            assert most == leaf.size // pieces
            matrices += leaf.size
            moments += 2 * leaf.size // 8
        else:
            moments += 2 * most
    assert sum(jax.tree.leaves(lesson(mesh).moment_elements)) == moments + 2  # Adam's, a schedule's
    assert matrices > 0.9 * sum(leaf.size for leaf in jax.tree.leaves(lesson(mesh).start))


def test_every_gradient_is_pinned_to_its_parameters_sharding():
    """The partitioner may drop a gradient's sharding, and then nothing is reduce-scattered."""
    topology = Topology(**MESHES["2x4"])
    mesh = make_mesh(topology)
    optimizer = optax.sgd(1e-3)
    with in_force(topology, mesh):
        model = bind_model(ARCH, topology, mesh, "float32")
        step = make_train_step(
            model,
            optimizer,
            lambda _: 1e-3,
            sources=2,
            microbatches=2,
            z_loss=0.0,
            loss_chunk_tokens=64,
            eos_id=1,
        )
        state = abstract_state(model, optimizer, mesh)
        batch = abstract_batch(8, 16, batch_sharding(mesh))
        traced = jax.make_jaxpr(step)(state, batch, np.zeros((3, 2), np.float32), NO_LIMITS)
    # At the top of the step, outside of the pass that makes the gradients.
    pinned = collections.Counter(
        (equation.outvars[0].aval.shape, equation.params["sharding"].spec)
        for equation in traced.jaxpr.eqns
        if equation.primitive.name == "sharding_constraint"
    )
    leaves = jax.tree.leaves(model.abstract)
    assert pinned >= collections.Counter((leaf.shape, leaf.sharding.spec) for leaf in leaves)
