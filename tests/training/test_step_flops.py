"""The account of FLOPs against the products that the real train step would execute."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

from t5x_style.accounting import (
    Architecture,
    Topology,
    forward_flops_per_token,
    training_flops_per_token,
)
from t5x_style.accounting.recompute import KERNEL_RECOMPUTES, REMAT_RECOMPUTES
from t5x_style.compiling.hlo import read_program
from t5x_style.kernels import ATTENTION_KERNELS
from t5x_style.models import REMAT_POLICIES
from t5x_style.partitioning import batch_sharding, in_force, make_mesh
from t5x_style.step.batches import abstract_batch
from t5x_style.step.model_state import abstract_state, bind_model
from t5x_style.step.step import NO_LIMITS, make_train_step
from tests.jaxprs import product_flops

SWIGLU = Architecture(vocab_size=48, layers=3, d_model=16, d_ff=40, heads=4, feed_forward="swiglu")
ARCHITECTURES = {
    "swiglu": SWIGLU,
    "gelu": dataclasses.replace(
        SWIGLU, feed_forward="gelu", biases=True, norm="layer", positions="alibi",
        embedding_norm=True,
    ),
    "parallel": dataclasses.replace(SWIGLU, parallel_block=True, logit_softcap=4.0),
    "grouped": dataclasses.replace(SWIGLU, kv_heads=2, head_dim=6, qk_norm=True),
    "untied": dataclasses.replace(
        SWIGLU, tied_head=False, feed_forward="relu2", positions="learned", max_length=32
    ),
    "windowed": dataclasses.replace(SWIGLU, window=3),
    "parallel grouped gelu": dataclasses.replace(
        SWIGLU, parallel_block=True, kv_heads=1, feed_forward="gelu"
    ),
}  # fmt: skip
BATCH, LENGTH, SOURCES = 4, 10, 2


def train_step(
    architecture: Architecture,
    remat: str,
    microbatches: int = 1,
    kernel: str = "plain",
    length: int = LENGTH,
    loss_vocab_chunks: int = 1,
    attention_block: int = 512,
) -> jax.stages.Traced:
    """One whole step, traced on abstract arrays: forward, backward, update and metrics."""
    topology = Topology(
        remat=remat, kernel=kernel, attention_block=attention_block, loss_chunk_tokens=8
    )
    mesh = make_mesh(topology)
    optimizer = optax.adamw(1e-3)
    with in_force(topology, mesh):
        model = bind_model(architecture, topology, mesh, "bfloat16")
        step = make_train_step(
            model,
            optimizer,
            lambda _: 1e-3,
            sources=SOURCES,
            microbatches=microbatches,
            z_loss=1e-4,
            loss_chunk_tokens=topology.loss_chunk_tokens,
            loss_vocab_chunks=loss_vocab_chunks,
            eos_id=1,
        )
        state = abstract_state(model, optimizer, mesh)
        batch = abstract_batch(BATCH, length, batch_sharding(mesh))
        sums = jax.ShapeDtypeStruct((3, SOURCES), np.float32)
        return jax.jit(step).trace(state, batch, sums, NO_LIMITS)


def traced_flops(*args, **options) -> int:
    """Of a step's products, counted from its jaxpr; its metrics and its sums have none."""
    return product_flops(train_step(*args, **options).jaxpr.jaxpr)


def compiled_flops(*args, **options) -> int:
    """The same of the program that XLA makes of it for a CPU, fused and simplified."""
    program = read_program(train_step(*args, **options).lower().compile().as_text())
    assert (program.library_calls, program.unknown_loops) == ({}, ())
    return program.matmul_flops


@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_account_is_what_the_step_executes(name, remat):
    architecture = ARCHITECTURES[name]
    counted = traced_flops(architecture, remat) / (BATCH * LENGTH)
    assert counted == training_flops_per_token(
        architecture, LENGTH, "hardware", Topology(remat=remat)
    )
    if remat == "none":
        full = training_flops_per_token(architecture, LENGTH, "full")
        assert counted == pytest.approx(full, rel=1e-6)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
@pytest.mark.parametrize("name", ["swiglu", "windowed"])
def test_the_account_of_a_kernel_that_computes_again(name, remat):
    architecture = ARCHITECTURES[name]
    kernel = {"kernel": "blockwise", "attention_block": 4}  # three blocks, of which the last has 2
    counted = traced_flops(architecture, remat, **kernel) / (BATCH * LENGTH)
    topology = Topology(remat=remat, **kernel)
    account = training_flops_per_token(architecture, LENGTH, "hardware", topology)
    assert counted == pytest.approx(account, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "remat", "kernel", "length"),
    [
        ("windowed", "none", "plain", LENGTH),
        ("grouped", "save_dots", "plain", LENGTH),
        ("gelu", "full", "plain", LENGTH),
        # One block of tokens, and two of 512.
        ("gelu", "full", "blockwise", LENGTH),
        ("windowed", "full", "blockwise", 1024),
    ],
)
def test_the_account_is_what_the_compiled_step_executes(name, remat, kernel, length):
    architecture = ARCHITECTURES[name]
    counted = compiled_flops(architecture, remat, kernel=kernel, length=length) / (BATCH * length)
    topology = Topology(remat=remat, kernel=kernel)
    assert counted == training_flops_per_token(architecture, length, "hardware", topology)


def test_every_kernel_has_its_account():
    assert ATTENTION_KERNELS.keys() == KERNEL_RECOMPUTES.keys()
    assert set(REMAT_POLICIES) == REMAT_RECOMPUTES.keys()


@pytest.mark.parametrize("flops", [traced_flops, compiled_flops])
def test_the_account_of_a_loss_that_makes_its_logits_twice(flops):
    options = {"loss_vocab_chunks": 4}
    counted = flops(SWIGLU, "none", **options) / (BATCH * LENGTH)
    assert counted == training_flops_per_token(SWIGLU, LENGTH, "hardware", Topology(**options))
    head = forward_flops_per_token(SWIGLU, LENGTH)["head"]
    assert counted == training_flops_per_token(SWIGLU, LENGTH, "hardware") + head


def test_microbatches_cost_no_flops():
    assert traced_flops(SWIGLU, "full", microbatches=2) == traced_flops(SWIGLU, "full")
