"""A sequence over several devices gives what one device does: values, gradients, segments."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType, PartitionSpec

from t5x_style.accounting import Topology
from t5x_style.accounting.attention_blocks import device_pieces, piece_owner
from t5x_style.kernels import (
    AttentionInputs,
    blockwise_attention,
    flash_attention,
    plain_attention,
)
from t5x_style.models import Decoder
from t5x_style.models.attention import balanced, in_order, whole
from t5x_style.partitioning import in_force, make_mesh
from tests.jaxprs import equations
from tests.kernels.formula import random_qkv
from tests.models.architectures import BLOOMBERG, SLIDING_WINDOW

AXES = ("sequence",)


@pytest.mark.parametrize("shards", [2, 3, 4, 8])
def test_devices_trade_pieces_and_get_them_back(shards):
    mesh = jax.make_mesh((shards,), AXES, (AxisType.Auto,), devices=jax.devices()[:shards])
    over = PartitionSpec("sequence")
    positions = jnp.arange(4 * shards)

    def trade(x):
        mine = balanced(x, AXES, axis=0)
        return mine, in_order(mine, AXES, axis=0)

    traded, back = jax.jit(
        jax.shard_map(trade, mesh=mesh, in_specs=over, out_specs=(over, over), check_vma=False)
    )(positions)
    np.testing.assert_array_equal(back, positions)
    for shard, mine in enumerate(traded.reshape(shards, 4)):
        pieces = device_pieces(shard, shards)
        assert [piece_owner(piece, shards) for piece in pieces] == [shard, shard]
        assert mine.tolist() == [2 * piece + i for piece in pieces for i in range(2)]
        # Keys that its queries see, which is its work: the same for all.
        assert int((mine + 1).sum()) == (4 * shards + 1) * 2


@pytest.mark.parametrize("window", [None, 300])
@pytest.mark.parametrize("name", ["blockwise", "flash"])
def test_a_kernel_on_its_share_of_the_queries(name, window):
    """Flash's schedule is one of its shards', cut out of that of all by the first position."""
    kernel = {
        "blockwise": functools.partial(blockwise_attention, block_size=128),
        "flash": functools.partial(flash_attention, block_size=128, interpret=True),
    }[name]
    shards, length = 4, 1024
    mesh = jax.make_mesh((shards,), AXES, (AxisType.Auto,), devices=jax.devices()[:shards])
    q, k, v = random_qkv(batch=1, queries=length, keys=length, heads=2, kv_heads=1)
    direction = np.random.default_rng(1).normal(size=q.shape).astype(np.float32)
    segments = np.zeros((1, length), np.int32)
    segments[0, 200:] = 1
    segments[0, 900:] = 2
    positions = jnp.arange(length)

    def on_shard(q, k, v, positions, segments):
        inputs = AttentionInputs(
            balanced(q, AXES),
            whole(k, AXES),
            whole(v, AXES),
            query_positions=balanced(positions, AXES, 0),
            key_positions=whole(positions, AXES, 0),
            segments=(balanced(segments, AXES), whole(segments, AXES)),
            window=window,
        )
        return in_order(kernel(inputs), AXES)

    rows = PartitionSpec(None, "sequence")
    over = (rows, rows, rows, PartitionSpec("sequence"), rows)
    split = jax.shard_map(on_shard, mesh=mesh, in_specs=over, out_specs=rows, check_vma=False)

    def alone(q, k, v, positions, segments):
        inputs = AttentionInputs(
            q, k, v, positions, positions, segments=(segments, segments), window=window
        )
        return plain_attention(inputs)

    @functools.partial(jax.jit, static_argnums=0)
    def run(attend, q, k, v):
        out, pull_back = jax.vjp(lambda *qkv: attend(*qkv, positions, segments), q, k, v)
        return out, pull_back(direction)

    for ours, theirs in zip(
        jax.tree.leaves(run(split, q, k, v)), jax.tree.leaves(run(alone, q, k, v)), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(
    ("architecture", "mesh"),
    [
        (SLIDING_WINDOW, {"sequence": 4, "tensor": 2}),
        (BLOOMBERG, {"sequence": 2, "fsdp": 2, "data": 2}),
    ],
    ids=["rope and window", "alibi"],
)
def test_a_decoder_on_packed_rows(architecture, mesh):
    """Positions, masks between documents and RoPE where every device has a part of each row."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 40, (4, 16))
    segments = (rng.random((4, 16)) < 0.2).cumsum(1).astype(np.int32)
    direction = rng.normal(size=(4, 16, architecture.d_model)).astype(np.float32)

    def lesson(topology):
        devices = make_mesh(topology)
        with in_force(topology, devices):
            decoder = Decoder(
                architecture,
                rngs=nnx.Rngs(0),
                compute_dtype=jnp.float32,
                kernel=functools.partial(blockwise_attention, block_size=4),
            )
            definition, state = nnx.split(decoder)

            @jax.jit
            @jax.value_and_grad
            def loss(state):
                hidden, _ = nnx.merge(definition, state)(tokens, segments=segments)
                return (hidden * direction).mean()

            return jax.device_get(loss(state))

    value, gradients = lesson(Topology(**mesh))
    expected, expected_gradients = lesson(Topology())
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parallel", [False, True])
def test_every_activation_of_a_block_is_placed_on_the_mesh(parallel):
    """Without a constraint XLA may choose another place: the numbers stay, the traffic does not."""
    architecture = dataclasses.replace(SLIDING_WINDOW, d_ff=40, parallel_block=parallel)
    topology = Topology(data=2, tensor=2, sequence=2)
    tokens = jax.ShapeDtypeStruct((4, 16), jnp.int32)
    with in_force(topology, make_mesh(topology)):
        decoder = nnx.eval_shape(lambda: Decoder(architecture, rngs=nnx.Rngs(0)))
        definition, state = nnx.split(decoder)
        jaxpr = jax.make_jaxpr(lambda state, tokens: nnx.merge(definition, state)(tokens)[0])(
            state, tokens
        ).jaxpr
    placed = collections.Counter()
    for equation, times in equations(jaxpr):
        if equation.primitive.name == "sharding_constraint":
            spec = equation.params["sharding"].spec
            placed[equation.outvars[0].aval.shape, spec] += times
    rows, layers = (("data", "fsdp"), "sequence"), 2
    assert placed == {
        # The table is gathered over fsdp before words are looked up in it.
        ((40, 24), PartitionSpec("tensor", None)): 1,
        # The embedded words, and the stream after attention and after the feed-forward. (A
        # parallel block adds both at once.)
        ((4, 16, 24), PartitionSpec(*rows, None)): 1 + layers * (1 if parallel else 2),
        # Queries; keys and values.
        ((4, 16, 4, 6), PartitionSpec(*rows, "tensor", None)): layers,
        ((4, 16, 2, 6), PartitionSpec(*rows, "tensor", None)): 2 * layers,
        # The attended values, beside the two products of the feed-forward.
        ((4, 16, 24), PartitionSpec(*rows, "tensor")): layers,
        ((4, 16, 40), PartitionSpec(*rows, "tensor")): 2 * layers,
    }
