"""The reader on programs of the real TPU compiler whose products and traffic are known."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from t5x_style.accounting import CHIPS, Architecture, StepShape, Topology
from t5x_style.compiling.estimates.assumptions import cores_of_pass
from t5x_style.compiling.hlo import read_program
from t5x_style.compiling.hlo.kernel_calls import calls_by_pass, pass_name
from t5x_style.compiling.report import attention_work
from t5x_style.kernels import AttentionInputs, flash_attention
from tests.compiling.tpu import (
    INNER,
    LAYERS,
    SLICES,
    WHOLE_GATHERS,
    WIDTH,
    array,
    chain_arguments,
    chain_step,
    chain_text,
    compiled_text,
    mesh,
)
from tests.jaxprs import product_flops

AXES = {"data": 2, "fsdp": 2}
BFLOAT16 = 2


@pytest.mark.parametrize("flags", [{}, WHOLE_GATHERS], ids=["as they come", "whole gathers"])
@pytest.mark.parametrize("chip", SLICES)
def test_the_flops_of_a_step_are_those_of_its_jaxpr_to_the_last_digit(chip, flags):
    on = mesh(SLICES[chip], **AXES)
    jaxpr = jax.make_jaxpr(chain_step)(*chain_arguments(on)).jaxpr
    program = read_program(chain_text(on, flags), AXES, chip)
    assert on.size * program.matmul_flops == product_flops(jaxpr) > 0
    assert program.unknown_loops == ()


@pytest.mark.parametrize("chip", SLICES)
def test_a_step_gathers_and_scatters_each_weight_once_a_pass(chip):
    program = read_program(chain_text(mesh(SLICES[chip], **AXES), WHOLE_GATHERS), AXES, chip)
    moved: dict[tuple[str, str], int] = {}
    for collective in program.collectives:
        if collective.bytes > 2**16:
            key = (collective.kind, collective.axis)
            moved[key] = moved.get(key, 0) + collective.count * collective.bytes
    matrix = WIDTH * INNER * BFLOAT16
    # Two gathers forwards; one backwards, for the gradient of the first product needs no weight
    # of its own and the tokens of a row of chips move instead of the second's.
    assert moved == {
        ("all-gather", "fsdp"): LAYERS * 3 * matrix,
        ("reduce-scatter", "fsdp"): LAYERS * 2 * matrix,
        ("all-reduce", "data"): LAYERS * 2 * matrix // AXES["fsdp"],
    }


def by_hand(x):
    """One collective of each kind, on known axes, and a ring of five permutations."""
    gathered = lax.all_gather(x, "fsdp", tiled=True)
    summed = lax.psum(x * 3, "data")
    scattered = lax.psum_scatter(gathered * gathered, "fsdp", tiled=True)
    everywhere = lax.psum(jnp.tanh(x), ("data", "fsdp"))
    swapped = lax.all_to_all(x.reshape(2, -1, x.shape[1]), "fsdp", 0, 0)

    def turn(part, _):
        return lax.ppermute(part, "data", [(0, 1), (1, 0)]) * 2, None

    turned, _ = lax.scan(turn, x, length=5)
    return summed + everywhere, scattered, swapped, turned


@pytest.mark.parametrize("chip", SLICES)
def test_collectives_written_by_hand_are_all_found(chip):
    on = mesh(SLICES[chip], **AXES)
    split = P(("data", "fsdp"))
    x = array(on, (256, 1024), jnp.float32, ("data", "fsdp"))
    mapped = jax.shard_map(by_hand, mesh=on, in_specs=split, out_specs=split, check_vma=False)
    found = read_program(compiled_text(mapped, x), AXES, chip).collectives
    mine = 64 * 1024 * 4  # bytes of each chip's part
    assert {(c.kind, c.axis, c.group_size, c.bytes, c.wire_bytes, c.count) for c in found} == {
        ("all-gather", "fsdp", 2, 2 * mine, mine, 1),
        ("all-reduce", "data", 2, mine, mine, 1),
        ("all-reduce", "data+fsdp", 4, mine, 3 * mine // 2, 1),
        ("reduce-scatter", "fsdp", 2, 2 * mine, mine, 1),
        ("all-to-all", "fsdp", 2, mine, mine // 2, 1),
        ("collective-permute", "data", 2, mine, mine, 5),
    }
    assert len(found) == 6
    assert all("test_compiled_for_tpu.py:" in collective.source for collective in found)


def test_between_slices_gradients_are_summed_over_the_network():
    axes = {"data": 2, "fsdp": 4}
    text = chain_text(mesh(SLICES["v5e"], slices=2, **axes), WHOLE_GATHERS)
    program = read_program(text, axes, "v5e")
    weights = LAYERS * 2 * WIDTH * INNER * BFLOAT16 // axes["fsdp"]
    network = [collective for collective in program.collectives if collective.axis == "dcn"]
    assert {(collective.kind, collective.group_size) for collective in network} == {
        ("all-reduce", 2)
    }
    assert sum(collective.count * collective.wire_bytes for collective in network) == weights
    assert all(collective.axis in ("fsdp", "dcn") for collective in program.collectives)
    # The compiler peels a turn off the loop of the backward pass: what starts at one ends sooner.
    jaxpr = jax.make_jaxpr(chain_step)(*chain_arguments(mesh(SLICES["v5e"], slices=2, **axes)))
    assert 8 * program.matmul_flops == product_flops(jaxpr.jaxpr)


def flash_program(
    chip, *, sequences, heads, kv_heads, slopes=None, head_dim=64, length=256, block=128
):
    """A step of attention alone, with so many sequences on each of four chips."""
    on = mesh(SLICES[chip], data=4)
    positions = jnp.arange(length)[None]

    def loss(q, k, v):
        inputs = AttentionInputs(q, k, v, positions, positions, slopes)
        attended = flash_attention(inputs, block_size=block, chip=chip)
        return attended.astype(jnp.float32).sum()

    split = P("data")
    step = jax.shard_map(
        jax.grad(loss, (0, 1, 2)), mesh=on, in_specs=split, out_specs=split, check_vma=False
    )
    queries, keys = (
        array(on, (4 * sequences, length, n, head_dim), jnp.bfloat16, "data")
        for n in (heads, kv_heads)
    )
    text = compiled_text(step, queries, keys, keys)
    return read_program(text, {"data": 4}, chip), text


def test_the_flash_kernel_runs_the_passes_and_features_that_are_counted():
    """Its inside is not in the text: what is counted of it hangs on its names and its shapes."""
    program, text = flash_program(
        "v5e", sequences=1, heads=2, kv_heads=2, slopes=jnp.array([0.5, 0.25])
    )
    assert calls_by_pass(program.kernels) == {"fwd": 1, "dq": 1, "dkv": 1}
    features = 64 + 6  # of ALiBi
    layouts = (f"bf16[2,256,{features}]", f"bf16[2,{features},256]")
    assert any(layout in text for layout in layouts)


# libtpu's own text says so: a pass on one core stands in a PrimaryCoreRegion, for which
# `tools/kernel_cycles --smoke` looks.
@pytest.mark.parametrize(
    ("chip", "sequences", "heads", "kv_heads", "mapped", "cores"),
    [
        ("v5e", 1, 4, 2, 1, (1, 1, 1)),
        ("v5p", 2, 4, 2, 2, (2, 2, 2)),
        ("v5p", 1, 4, 2, 2, (2, 2, 2)),
        ("v5p", 3, 3, 1, 3, (9 / 5, 3 / 2, 3 / 2)),
        ("v5p", 1, 2, 1, 2, (2, 2, 2)),
    ],
)
def test_cores_of_a_pass_by_the_axes_over_which_it_is_mapped(
    chip, sequences, heads, kv_heads, mapped, cores
):
    program, _ = flash_program(chip, sequences=sequences, heads=heads, kv_heads=kv_heads)
    grids = {pass_name(call): call.grid for call in program.kernels}
    for name, expected in zip(("fwd", "dq", "dkv"), cores, strict=True):
        grid = grids[name]
        assert (grid.mapped, grid.heads) == (mapped, sequences * heads)
        assert (grid.rows, grid.columns) == (2, 2)
        assert cores_of_pass(CHIPS[chip], name, grid) == expected


def test_a_step_has_the_tile_that_its_account_is_of():
    topology = Topology(data=4, chip="v5p", kernel="flash")
    architecture = Architecture(1024, 2, 256, 512, 2, head_dim=128, kv_heads=1)
    program, _ = flash_program(
        "v5p", sequences=1, heads=2, kv_heads=1, head_dim=128, length=2048, block=None
    )
    work = attention_work(StepShape(architecture, 4, 2048), topology)
    assert work.block == 1024
    for call in program.kernels:
        assert (call.grid.rows, call.grid.columns) == (2048 // work.block,) * 2
        assert call.grid.heads * 2048 == work.rows
