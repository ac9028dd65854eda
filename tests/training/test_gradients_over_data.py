"""Where gradients go when `shard_optimizer_over_data` is set: read in the compiled program."""

import collections
import functools
import re

import jax
import pytest

from t5x_style.accounting import Architecture, Topology
from t5x_style.compiling.hlo import read_program
from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.program import step_program
from t5x_style.step.spec import StepSpec

LAYERS, PASSES, WIDTH, INNER = 2, 2, 64, 192
ARCHITECTURE = Architecture(
    vocab_size=1024, layers=LAYERS, d_model=WIDTH, d_ff=INNER, heads=4, feed_forward="gelu"
)
TOPOLOGY = Topology(
    data=2, fsdp=4, microbatches=PASSES, remat="full", shard_optimizer_over_data=True
)
LENGTH = 32


@functools.cache
def compiled() -> tuple[str, list[tuple[int, ...]]]:
    """The step in two passes as text, and the shapes of the gradients' shards on a device."""
    mesh = make_mesh(TOPOLOGY)
    with in_force(TOPOLOGY, mesh):
        adamw, plan = AdamW(Schedule(1e-3)), BatchPlan.from_settings(16, LENGTH, train_steps=10)
        spec = StepSpec(ARCHITECTURE, adamw, plan, compute_dtype="float32")
        program = step_program(spec, TOPOLOGY, mesh)
        text = program.compile(16, LENGTH).as_text()
    leaves = jax.tree.leaves(program.model.updates)
    return text, [leaf.sharding.shard_shape(leaf.shape) for leaf in leaves]


def test_a_layers_gradients_are_reduced_over_fsdp_first_and_then_over_data():
    """In one stage they would be reduced over all devices at once, whole matrices of them."""
    sums = collections.defaultdict(int)
    for collective in read_program(compiled()[0], TOPOLOGY.mesh_shape, None).collectives:
        if (
            collective.kind in ("all-reduce", "reduce-scatter")
            and collective.count == LAYERS * PASSES
        ):
            sums[collective.axis] += collective.bytes
    # float32; four matrices of attention and two of the feed-forward.
    matrices = 4 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    assert sums["fsdp"] >= matrices
    assert matrices / 4 <= sums["data"] < matrices
    # Gains of norms, which lie whole.
    assert sums["data+fsdp"] == 4 * 2 * WIDTH


def test_the_gradients_summed_over_passes_lie_split_over_data():
    text, shards = compiled()
    rows = f"s32[{PASSES},1,{LENGTH + 1}]"
    carried = [
        re.findall(r"f32\[([\d,]+)\]", line)
        for line in text.splitlines()
        if " while(" in line and rows in re.sub(r"{[\d,]*}", "", line)
    ]
    assert len(carried) == 1
    there = collections.Counter(tuple(map(int, shape.split(","))) for shape in carried[0])
    assert (LAYERS, WIDTH // 8, INNER) in shards
    assert there >= collections.Counter(shards)


def test_a_step_whose_parameters_are_not_split_is_refused():
    """By the rules of the run, before anything is compiled or allocated."""
    topology = Topology(fsdp=8, unsharded_tolerance=0.0)
    mesh = make_mesh(topology)
    adamw, plan = AdamW(Schedule(1e-3)), BatchPlan.from_settings(16, LENGTH, train_steps=10)
    spec = StepSpec(ARCHITECTURE, adamw, plan, compute_dtype="float32")
    with in_force(topology, mesh), pytest.raises(UsageError, match="unsharded"):
        step_program(spec, topology, mesh)
