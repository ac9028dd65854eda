"""An update that is not applied leaves everything as it was, bit for bit; the step moves on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5x_style.accounting import Topology
from t5x_style.data import BatchPlan, Rows
from t5x_style.optim import AdamW, Schedule
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.model_state import fresh_state, not_finite
from t5x_style.step.monitors import noise_estimates
from t5x_style.step.program import step_program
from t5x_style.step.spec import StepSpec
from t5x_style.step.step import NO_LIMITS, packed_batch
from tests.step.test_step import ARCH, BATCH, BEFORE, EOS, SEQUENCE, SOURCE, tokens

UNTIED = dataclasses.replace(ARCH, tied_head=False)
# Of one row alone, and never a target before it.
RARE, ROW = 127, 5
PARTS = ("attention", "feed_forward")
INT8 = dataclasses.replace(UNTIED, matmul_dtype="int8")
LAYOUTS = {
    "one device": {},
    "microbatches, mesh": {
        "data": 2,
        "fsdp": 2,
        "tensor": 2,
        "microbatches": 2,
        "shard_optimizer_over_data": True,
    },
    "int8": {"arch": INT8},
}


def rows_of_tokens() -> np.ndarray:
    found = np.where(tokens() == RARE, RARE - 1, tokens())
    found[ROW, 3] = RARE
    return found


@functools.cache
def stepper(layout: str, z_loss: float = 0.0):
    """(function from changes of the parameters and limits to a step's results, state before)."""
    options = dict(LAYOUTS[layout])
    arch = options.pop("arch", UNTIED)
    topology = Topology(loss_chunk_tokens=24, **options)
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        spec = StepSpec(
            arch,
            AdamW(Schedule(1e-2)),
            BatchPlan.from_settings(BATCH, SEQUENCE, train_steps=9),
            compute_dtype="float32",
            sources=3,
            eos_id=EOS,
            z_loss=z_loss,
        )
        program = step_program(spec, topology, mesh)
        compiled = program.compile(BATCH, SEQUENCE)
        state = fresh_state(program.model, program.optimizer, program.state, seed=0)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = packed_batch(Rows(rows_of_tokens(), SOURCE, None))
    before = jax.device_get(state)

    def take(limits=NO_LIMITS, start=before, rows=slice(None)):
        placed = jax.device_put(start, shardings)  # the step donates it
        taken = jax.device_put(batch[rows], program.batch_sharding)
        return jax.device_get(
            compiled(placed, taken, program.place(BEFORE), program.place(np.float32(limits)))
        )

    return take, before


def same_bits(one, other) -> bool:
    return all(
        a.tobytes() == b.tobytes()
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


def assert_left_out(state, start, metrics, sums):
    assert not metrics["applied"]
    assert same_bits(state["parameters"], start["parameters"])
    assert same_bits(state["optimizer"], start["optimizer"])
    assert state["step"] == start["step"] + 1
    assert same_bits(sums, BEFORE)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_past_a_limit_nothing_changes_but_the_step(layout):
    take, before = stepper(layout)
    free, metrics, sums = take()
    assert metrics["applied"]
    assert not same_bits(free["parameters"], before["parameters"])
    at = np.array([metrics["loss"], metrics["grad_norm"]], np.float32)
    # A limit is the largest that is applied; the next smaller number is a limit that is passed.
    state, found, found_sums = take(at)
    assert found["applied"]
    assert same_bits((state, found_sums), (free, sums))
    below = np.nextafter(at, np.float32(0))
    for limits in ((below[0], at[1]), (at[0], below[1]), (np.nan, np.inf), (np.inf, np.nan)):
        state, found, found_sums = take(limits)
        assert_left_out(state, before, found, found_sums)
        assert same_bits([found["loss"], found["grad_norm"]], list(at))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("layout", ["one device", "microbatches, mesh"])
def test_a_loss_that_is_not_finite_is_not_learnt_from(layout, value):
    take, before = stepper(layout)
    start = jax.tree.map(np.copy, before)
    start["parameters"]["embedding"][RARE] = value
    state, metrics, sums = take(start=start)
    assert_left_out(state, start, metrics, sums)
    # The row that reads the id is the one that is not finite.
    assert np.flatnonzero(~np.isfinite(metrics["row_nats"])).tolist() == [ROW]
    assert not np.isfinite(metrics["param_norm"])
    placed = jax.tree.map(jnp.asarray, state["parameters"])
    mesh = make_mesh(Topology())
    with in_force(Topology(), mesh):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        assert not_finite(jax.device_put(placed, where)) == ["embedding"]


def test_a_gradient_that_is_not_finite_is_not_learnt_from_though_the_loss_is():
    take, before = stepper("one device", z_loss=1e38)
    state, metrics, sums = take()
    assert np.isfinite(metrics["loss"])
    assert not np.isfinite(metrics["grad_norm"])
    assert_left_out(state, before, metrics, sums)


def test_the_losses_of_the_rows_are_sums_over_their_tokens():
    take, _ = stepper("microbatches, mesh")
    whole, _ = stepper("one device")
    _, metrics, _ = take()
    assert metrics["row_nats"].sum() / (BATCH * SEQUENCE) == pytest.approx(
        float(metrics["loss"]), rel=1e-6
    )
    np.testing.assert_allclose(metrics["row_nats"], whole()[1]["row_nats"], rtol=1e-5)


def test_after_a_step_left_out_the_rate_is_of_the_step_and_adam_counts_its_updates():
    """The first update of Adam moves a gain by the rate, whatever the step is."""
    take, before = stepper("one device")
    at_seven = {**before, "step": np.int32(7)}
    state, metrics, _ = take(start=at_seven)
    moved = state["parameters"]["final_norm"]["gain"] - before["parameters"]["final_norm"]["gain"]
    # Half a period of a cosine over the run of nine steps, down to a tenth; eight are done.
    rate = 1e-2 * (0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * 8 / 9)))
    assert metrics["learning_rate"] == pytest.approx(rate, rel=1e-5)
    np.testing.assert_allclose(np.abs(moved), rate, rtol=1e-3)


@pytest.mark.parametrize("layout", ["one device", "microbatches, mesh"])
def test_the_monitors_are_sizes_of_the_parameters_and_of_what_moved_them(layout):
    take, before = stepper(layout)
    start = jax.tree.map(np.copy, before)
    gains = [start["parameters"]["blocks"][f"{part}_norm"]["gain"] for part in PARTS]
    gains[0][0], gains[1][0] = 3.0, 2.0
    gains[0][1:] = 50.0  # of other layers than the first
    state, metrics, _ = take(start=start)
    new = state["parameters"]
    first = np.concatenate([new["blocks"][f"{part}_norm"]["gain"][0] for part in PARTS])
    assert metrics["monitor/first_gain_rms"] == pytest.approx(np.sqrt(6.5), rel=0.01)
    assert metrics["monitor/first_gain_rms"] == pytest.approx(np.sqrt(np.mean(first**2)), rel=1e-5)
    embedding = np.sqrt(np.mean(new["embedding"] ** 2))
    assert metrics["monitor/embedding_rms"] == pytest.approx(embedding, rel=1e-5)
    ratios = []
    for layer in range(ARCH.layers):
        leaves = zip(
            *map(jax.tree.leaves, (new["blocks"], start["parameters"]["blocks"])), strict=True
        )
        pairs = [(after[layer], then[layer]) for after, then in leaves]
        moved = np.sqrt(sum(((after - then) ** 2).sum() for after, then in pairs))
        ratios.append(moved / np.sqrt(sum((then**2).sum() for _, then in pairs)))
    assert metrics["monitor/update_ratio"] == pytest.approx(max(ratios), rel=1e-3)
    assert max(ratios) > 1.5 * min(ratios)
    # Nothing moved where no update was applied.
    assert take([0, 0], start)[1]["monitor/update_ratio"] == 0


def test_the_largest_logit_is_that_of_the_whole_batch():
    (alone, _), (on_mesh, _) = stepper("one device"), stepper("microbatches, mesh")
    whole = alone()[1]["monitor/largest_logit"]
    assert on_mesh()[1]["monitor/largest_logit"] == pytest.approx(whole, rel=1e-5)
    # Every row again and again, alone.
    by_row = [alone(rows=[row] * BATCH)[1]["monitor/largest_logit"] for row in range(BATCH)]
    assert whole == pytest.approx(max(by_row), rel=1e-5)
    assert whole > min(by_row)


def test_the_noise_is_estimated_from_the_gradients_of_the_microbatches():
    """As McCandlish et al. (2018), appendix A.1, from batches that have one microbatch alone."""
    alone, _ = stepper("one device")
    metrics = stepper("microbatches, mesh")[0]()[1]
    norm = metrics["grad_norm"]
    # A batch that repeats the rows of a microbatch has the gradient of that microbatch.
    halves = [np.arange(first, BATCH, 2).repeat(2) for first in range(2)]
    small = np.mean([alone(rows=half)[1]["grad_norm"] ** 2 for half in halves])
    tokens_small, tokens_big = BATCH * SEQUENCE / 2, BATCH * SEQUENCE
    signal = (tokens_big * norm**2 - tokens_small * small) / (tokens_big - tokens_small)
    variance = (small - norm**2) / (1 / tokens_small - 1 / tokens_big)
    assert metrics["noise/signal"] == pytest.approx(signal, abs=1e-3 * float(norm) ** 2)
    assert metrics["noise/variance"] == pytest.approx(variance, rel=1e-3)
    assert variance > 0
    assert "noise/signal" not in alone()[1]


def test_the_estimates_of_the_noise_have_no_bias():
    """Gradients of tokens that are drawn around a known mean with a known covariance."""
    random = np.random.default_rng(0)
    mean, deviations = random.normal(size=5), np.arange(1, 6) / 4
    tokens, parts = 24, 4
    draws = mean + deviations * random.normal(size=(4_000, parts, tokens // parts, 5))
    pieces = draws.sum(2) / tokens
    found = [
        noise_estimates(np.linalg.norm(piece.sum(0)), (piece**2).sum(1), tokens) for piece in pieces
    ]
    for name, right in (
        ("noise/signal", (mean**2).sum()),
        ("noise/variance", (deviations**2).sum()),
    ):
        values = np.array([float(estimate[name]) for estimate in found])
        error = values.std() / np.sqrt(len(values))
        assert abs(values.mean() - right) < 4 * error
        assert 4 * error < 0.2 * right
