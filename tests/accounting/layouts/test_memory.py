import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import pytest

from t5x_style.accounting import Architecture, StepShape, Topology
from t5x_style.accounting.audit.bloomberggpt import ARCHITECTURE as BLOOMBERGGPT
from t5x_style.accounting.layouts.memory import (
    Memory,
    checkpoint_bytes,
    kept_bytes_per_layer,
    step_memory,
)
from t5x_style.accounting.recompute import REMAT_RECOMPUTES
from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.partitioning import batch_sharding, in_force, make_mesh
from t5x_style.step.model_state import abstract_state, bind_model
from t5x_style.step.step import NO_LIMITS, make_train_step
from tests.jaxprs import equations

LLAMA = Architecture(
    vocab_size=512,
    layers=4,
    d_model=128,
    d_ff=352,
    heads=8,
    kv_heads=4,
    tied_head=False,
)
BLOOMBERG = Architecture(
    vocab_size=512,
    layers=4,
    d_model=128,
    d_ff=512,
    heads=8,
    positions="alibi",
    norm="layer",
    feed_forward="gelu",
    biases=True,
    embedding_norm=True,
)
# Deep, so that what is kept outweighs all else; every option that the two above leave out.
DEEP = Architecture(
    vocab_size=512,
    layers=12,
    d_model=64,
    d_ff=192,
    heads=4,
    feed_forward="relu2",
    qk_norm=True,
    parallel_block=True,
)
# Learned positions, and a head that outweighs the layers.
LARGE_VOCABULARY = Architecture(
    vocab_size=16384,
    layers=2,
    d_model=64,
    d_ff=176,
    heads=4,
    positions="learned",
    max_length=128,
)
# Wide and few tokens: weights outweigh activations.
WIDE = Architecture(vocab_size=256, layers=8, d_model=512, d_ff=1408, heads=8)


def memory_of(
    arch: Architecture,
    mesh: Topology,
    *,
    batch_sequences: int,
    sequence_length: int,
    compute_dtype: str = "bfloat16",
    **layout,
):
    """The account of a step on `mesh`, with `layout` for the other fields of its topology."""
    shape = StepShape(arch, batch_sequences, sequence_length, compute_dtype)
    return step_memory(shape, dataclasses.replace(mesh, **layout))


def real_step(
    arch: Architecture,
    mesh: Topology,
    *,
    batch_sequences: int,
    sequence_length: int,
    compute_dtype: str = "bfloat16",
    **layout,
):
    """(step, state, other arguments, context): the train step of a run, abstractly, with AdamW."""
    topology = dataclasses.replace(mesh, **layout)
    devices = make_mesh(topology)
    plan = BatchPlan.from_settings(batch_sequences, sequence_length, train_steps=10)
    adamw = AdamW(Schedule(peak_learning_rate=1e-3))
    with in_force(topology, devices):
        model = bind_model(arch, topology, devices, compute_dtype)
        optimizer = adamw.transformation(plan, model.axes)
        state = abstract_state(model, optimizer, devices)
    step = make_train_step(
        model,
        optimizer,
        adamw.learning_rate(plan),
        sources=1,
        microbatches=topology.microbatches,
        z_loss=0.0,
        loss_chunk_tokens=topology.loss_chunk_tokens,
        loss_vocab_chunks=topology.loss_vocab_chunks,
        eos_id=1,
    )
    batch = jax.ShapeDtypeStruct(
        (batch_sequences, sequence_length + 2), jnp.int32, sharding=batch_sharding(devices)
    )
    sums = jax.ShapeDtypeStruct((3, 1), jnp.float32)
    return step, state, (batch, sums, NO_LIMITS), functools.partial(in_force, topology, devices)


def on_each_device(tree) -> int:
    """Bytes of the arrays of a pytree on one device; counters, which are scalars, left out."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
        if leaf.ndim
    )


@pytest.mark.parametrize("arch", [LLAMA, BLOOMBERG, DEEP, LARGE_VOCABULARY])
@pytest.mark.parametrize(
    "mesh",
    [
        Topology(),
        Topology(fsdp=8),
        Topology(2, 2, 2),
        Topology(tensor=4, sequence=2),
        Topology(data=8),
    ],
)
def test_the_state_is_what_the_real_shardings_hold_to_the_byte(arch, mesh):
    layout = {"batch_sequences": 8, "sequence_length": 32, "remat": "none"}
    _, state, _, _ = real_step(arch, mesh, **layout)
    memory = memory_of(arch, mesh, **layout)
    assert memory.parameters == on_each_device(state["parameters"])
    assert memory.optimizer == on_each_device(state["optimizer"])
    # Gradients are constrained to their parameters' shardings, and float32 as they are.
    assert memory.gradients == memory.parameters


@pytest.mark.parametrize("arch", [LLAMA, BLOOMBERG, LARGE_VOCABULARY])
@pytest.mark.parametrize("mesh", [Topology(2, 2, 2), Topology(data=8), Topology(data=2, fsdp=4)])
def test_the_optimizer_state_split_over_data_to_the_byte(arch, mesh):
    layout = {"batch_sequences": 8, "sequence_length": 32, "remat": "none"}
    _, state, _, _ = real_step(arch, mesh, **layout, shard_optimizer_over_data=True)
    memory = memory_of(arch, mesh, **layout, shard_optimizer_over_data=True)
    assert memory.parameters == on_each_device(state["parameters"])
    assert memory.optimizer == on_each_device(state["optimizer"])
    assert memory.gradients == memory.optimizer // 2


# A number that is no other size of these models, so that it marks what belongs to tokens.
ROWS = 5


@pytest.mark.parametrize("arch", [LLAMA, BLOOMBERG, DEEP])
@pytest.mark.parametrize("remat", REMAT_RECOMPUTES)
@pytest.mark.parametrize("kernel", ["plain", "blockwise"])
def test_what_is_kept_is_what_the_scan_over_layers_stacks(arch, remat, kernel):
    layout = {"sequence_length": 32, "remat": remat, "kernel": kernel}
    step, state, others, in_force = real_step(arch, Topology(), batch_sequences=ROWS, **layout)
    with in_force():
        traced = jax.make_jaxpr(step)(state, *others)
    forward = next(
        equation
        for equation, _ in equations(traced.jaxpr)
        if equation.primitive.name == "scan" and equation.params["length"] == arch.layers
    )
    outputs = [variable.aval for variable in forward.outvars]
    # The carry has no axis of layers.
    stacked = [
        array
        for array in outputs
        if array.shape[:1] == (arch.layers,) and array.memory_space != jax.memory.Space.Host
    ]
    of_tokens = sum(array.size * array.dtype.itemsize for array in stacked if ROWS in array.shape)
    weights = sum(
        array.size * array.dtype.itemsize
        for array in stacked
        if ROWS not in array.shape and array.dtype == jnp.bfloat16
    )
    kept = arch.layers * kept_bytes_per_layer(
        StepShape(arch, ROWS, 32), Topology(remat=remat, kernel=kernel), ROWS * 32
    )
    assert of_tokens == kept
    memory = memory_of(arch, Topology(), batch_sequences=ROWS, **layout)
    assert memory.activations == kept + weights
    assert bool(weights) == (remat == "none")


@pytest.mark.parametrize(
    ("arch", "mesh", "layout"),
    [
        (LLAMA, Topology(), {"batch_sequences": 8, "remat": "none"}),
        (LLAMA, Topology(), {"batch_sequences": 8, "remat": "save_dots"}),
        (LLAMA, Topology(), {"batch_sequences": 8, "remat": "full", "kernel": "blockwise"}),
        (BLOOMBERG, Topology(fsdp=4, tensor=2), {"batch_sequences": 32, "remat": "none"}),
        (BLOOMBERG, Topology(fsdp=4, tensor=2), {"batch_sequences": 32, "remat": "full"}),
        (DEEP, Topology(), {"batch_sequences": 8, "remat": "save_dots"}),
        (
            LARGE_VOCABULARY,
            Topology(),
            {"batch_sequences": 16, "remat": "full", "microbatches": 2, "loss_chunk_tokens": 256},
        ),
        (
            LARGE_VOCABULARY,
            Topology(data=2, fsdp=4),
            {"batch_sequences": 16, "remat": "full", "loss_vocab_chunks": 16},
        ),
        (WIDE, Topology(fsdp=8), {"batch_sequences": 8, "sequence_length": 32, "remat": "full"}),
    ],
)
def test_temporary_memory_is_within_a_fifth_of_the_compiled_steps(arch, mesh, layout):
    """In float32: XLA's CPU backend widens bfloat16 operands, which no accelerator does."""
    layout = {"sequence_length": 128, "compute_dtype": "float32", **layout}
    step, state, others, in_force = real_step(arch, mesh, **layout)
    with in_force():
        compiled = jax.jit(step, donate_argnums=0).lower(state, *others).compile()
    measured = compiled.memory_analysis().temp_size_in_bytes
    assert memory_of(arch, mesh, **layout).temporary == pytest.approx(measured, rel=0.2)


def test_a_compiled_tpu_step_of_bloomberggpt():
    """A like decoder and step compiled ahead of time for v6e:16x16 by libtpu 0.0.52, data 2 x fsdp
    128, 512 sequences, full remat, flash attention: 4.51 GiB of arguments, 12.7 GiB temporary."""
    memory = memory_of(
        BLOOMBERGGPT,
        Topology(data=2, fsdp=128),
        batch_sequences=512,
        sequence_length=2048,
        remat="full",
        kernel="blockwise",
    )
    assert memory.parameters + memory.optimizer == pytest.approx(4.51 * 2**30, rel=0.03)
    assert memory.temporary == pytest.approx(12.7 * 2**30, rel=0.2)


def kept_by(kernel: str, remat: str, heads: int, head_dim: int) -> int:
    arch = dataclasses.replace(BLOOMBERGGPT, heads=heads, kv_heads=heads, head_dim=head_dim)
    layout = {"batch_sequences": 2048, "sequence_length": 2048, "remat": remat}
    return memory_of(arch, Topology(data=8, fsdp=64), kernel=kernel, **layout).activations


@pytest.mark.parametrize("remat", ["save_attention", "save_qkv", "save_qkv_out", "save_dots"])
def test_a_kept_output_of_the_flash_kernel_fills_its_lanes(remat):
    """BloombergGPT's heads of 192 features lie in 256 lanes: 64 empty ones of 40 heads, for 70
    layers and 4 x 2,048 tokens a device in bfloat16. The blockwise kernel keeps the same arrays as
    they are."""
    filled = kept_by("flash", remat, 40, 192) - kept_by("blockwise", remat, 40, 192)
    assert filled == 70 * 4 * 2048 * 40 * 64 * 2
    # Heads of 128 leave none empty.
    assert kept_by("flash", remat, 60, 128) == kept_by("blockwise", remat, 60, 128)


@pytest.mark.parametrize("remat", ["full", "offload"])
def test_what_is_not_kept_fills_no_lanes(remat):
    assert kept_by("flash", remat, 40, 192) == kept_by("blockwise", remat, 40, 192)


def test_more_devices_never_hold_more_on_each():
    layout = {"batch_sequences": 64, "sequence_length": 2048, "remat": "full"}
    whole = memory_of(BLOOMBERGGPT, Topology(), **layout)
    for mesh in (Topology(fsdp=8), Topology(tensor=8), Topology(data=8)):
        assert memory_of(BLOOMBERGGPT, mesh, **layout).total < whole.total


def test_remat_keeps_less_and_microbatches_hold_less_at_once():
    def total(**change):
        layout = {"batch_sequences": 64, "sequence_length": 2048, "remat": "none", **change}
        return memory_of(LLAMA, Topology(), **layout).total

    assert total(remat="full") < total(remat="save_dots") < total()
    assert total(microbatches=4) < total()


def test_a_block_of_scores_grows_with_the_tile():
    def scores(block):
        layout = {"batch_sequences": 8, "sequence_length": 4096, "remat": "full"}
        return memory_of(
            LLAMA, Topology(), kernel="blockwise", attention_block=block, **layout
        ).scores

    # 8 rows and 8 heads, two float32 arrays of block x block.
    assert scores(1024) - scores(512) == 8 * 8 * (1024**2 - 512**2) * 8


def test_a_checkpoint_is_twelve_bytes_a_parameter():
    assert checkpoint_bytes(BLOOMBERGGPT) == 12 * 50_558_868_480


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"remat": "save_dot"}, "did you mean 'save_dots'"),
        ({"kernel": "plane"}, "did you mean 'plain'"),
        ({"compute_dtype": "bfloat"}, "did you mean 'bfloat16'"),
    ],
)
def test_what_does_not_exist_is_refused_with_the_nearest(change, message):
    layout = {"batch_sequences": 8, "sequence_length": 32, "remat": "none", **change}
    with pytest.raises(UsageError, match=message):
        memory_of(LLAMA, Topology(), **layout)


# LLAMA's step by hand: a device of 2 x 2 x 2 has 4 of 32 sequences in each of two microbatches, 512
# tokens; with the sequence axis, halves of 8. A layer has 184,320 numbers in its matrices.
HAND = {"batch_sequences": 32, "sequence_length": 128, "microbatches": 2, "remat": "full"}
TOKENS, MATRICES, HEAD = 512, 128 * (2 * 128 + 2 * 64 + 3 * 352), 256 * 128
# Two norms: three float32 factors of D, two of 1, and a bfloat16 result. Half of the queries, the
# attended values, keys, values and four bfloat16 arrays of F.
LAYER = TOKENS * (2 * (12 * 128 + 8 + 2 * 128) + (2 * (2 * 128 + 2 * 64) + 8 * 352) // 2)


@pytest.mark.parametrize(
    ("part", "layout", "size"),
    [
        # A layer gathered, and its gradient, in bfloat16; half of them over tensor.
        ("weights", {}, 2 * 2 * MATRICES // 2),
        ("lookup", {}, 2 * 2 * HEAD),
        # The head in bfloat16 and its float32 gradient; logits and exponentials; the gradient of
        # the hidden states.
        ("logits", {}, 6 * HEAD + 8 * TOKENS * 256 + 2 * TOKENS * 128),
        ("logits", {"loss_chunk_tokens": 100}, 6 * HEAD + 8 * 100 * 256 + 2 * TOKENS * 128),
        # A quarter of that; the gradient's own half; float32 sums for the hidden states.
        (
            "logits",
            {"loss_vocab_chunks": 4},
            (6 * HEAD + 8 * TOKENS * 256) // 4 + 4 * HEAD // 2 + 4 * TOKENS * 128,
        ),
        # Four of the heads, for every query and key; two arrays in float32 and one in bfloat16.
        ("scores", {}, TOKENS * 128 * 4 * (4 + 4 + 2)),
        # A row of 128 float32 lanes, or one number, for each query and head.
        ("scores", {"kernel": "flash"}, TOKENS * 4 * 128 * 4),
        ("scores", {"kernel": "cudnn"}, TOKENS * 4 * 4),
        # Two float32 blocks; queries, keys and values by blocks, and their float32 gradients.
        (
            "scores",
            {"kernel": "blockwise", "attention_block": 32},
            4 * 32 * 32 * 4 * 8 + (4 + 2) * TOKENS * (128 + 2 * 64) // 2,
        ),
        # A block that is longer than a sequence.
        (
            "scores",
            {"kernel": "blockwise"},
            4 * 128 * 128 * 4 * 8 + (4 + 2) * TOKENS * (128 + 2 * 64) // 2,
        ),
        ("layer", {}, LAYER),
        # The kernel's residuals: the attended values by blocks, and a float32 sum a query.
        ("layer", {"kernel": "blockwise"}, LAYER + TOKENS * (2 * 128 + 4 * 8) // 2),
        # Two residual arrays and the attended values are counted with the activations.
        ("layer", {"remat": "save_attention"}, LAYER - TOKENS * (2 * 2 * 128 + 2 * 128 // 2)),
        # Keys and values of whole sequences.
        ("layer", {"data": 1, "sequence": 2}, LAYER + 2 * 2 * 8 * 128 * 64 // 2),
        ("activations", {}, 4 * TOKENS * 2 * 128),
        ("summed_gradients", {"microbatches": 1}, 0),
    ],
)
def test_temporary_bytes_by_hand(part, layout, size):
    memory = memory_of(LLAMA, Topology(2, 2, 2), **HAND | layout)
    assert getattr(memory, part) == size
    # A gradient for each float32 parameter, summed over the microbatches, and one more to update.
    assert memory.gradients == memory.update == memory.parameters
    assert memory.summed_gradients in (0, memory.gradients)


def test_weights_of_the_compute_dtype_are_used_in_place():
    memory = memory_of(LLAMA, Topology(2, 1, 2), **HAND | {"compute_dtype": "float32"})
    assert (memory.weights, memory.lookup) == (0, 0)
    # 8 sequences.
    assert memory.logits == 4 * HEAD + 8 * 1024 * 256 + 4 * 1024 * 128
    assert memory_of(LLAMA, Topology(2, 1, 2), **HAND).weights == 2 * 2 * MATRICES // 2
    assert memory_of(LLAMA, Topology(2, 1, 2), **HAND).lookup == 0


def test_norms_of_queries_and_keys_hold_factors_of_their_own():
    normed = dataclasses.replace(LLAMA, qk_norm=True)
    one, two = (memory_of(arch, Topology(2, 2, 2), **HAND) for arch in (LLAMA, normed))
    assert two.layer - one.layer == TOKENS * (12 * (128 + 64) + 8 * (8 + 4)) // 2
    none = HAND | {"remat": "none"}
    one, two = (memory_of(arch, Topology(2, 2, 2), **none) for arch in (LLAMA, normed))
    assert two.activations - one.activations == 4 * TOKENS * 2 * (128 + 64) // 2


@pytest.mark.parametrize(
    ("change", "temporary"),
    [
        ({}, 16 + (4 + 32 + 64 + 128) + 8),
        ({"logits": 1000}, 16 + 1000 + 8),
        ({"lookup": 1000}, 4 + 1000),
        ({"update": 1000}, 4 + 1000),
    ],
)
def test_the_fullest_moment_of_a_step(change, temporary):
    """The loss, a layer's backward pass, the embedding's, or the update."""
    parts = {"parameters": 1, "optimizer": 2, "gradients": 4, "summed_gradients": 8}
    parts |= {"activations": 16, "weights": 32, "layer": 64, "scores": 128}
    memory = Memory(**parts | {"logits": 0, "lookup": 0, "update": 0} | change)
    assert memory.temporary == temporary
    assert memory.total == 1 + 2 + temporary
