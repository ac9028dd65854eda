"""Where every parameter lies, for each model and topology that ships, as text.

    JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 \\
        python -m tests.partitioning.golden_specs > tests/partitioning/golden_specs.txt

A change of the rules, of a layer or of a gin file shows there in the diff, for all of them.
"""

import pathlib

import jax

from t5x_style.accounting import CHIPS, Architecture, StepShape, Topology
from t5x_style.accounting.layouts.divisibility import check_divisible
from t5x_style.accounting.topology import flat
from t5x_style.commands.main import load_named
from t5x_style.compiling import described_devices
from t5x_style.config import checks
from t5x_style.errors import UsageError
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.partitioning.sharding import leaf_name
from t5x_style.step.model_state import bind_model

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "gin_configs"
GOLDEN = pathlib.Path(__file__).with_suffix(".txt")


def pairs() -> list[tuple[str, str]]:
    """(model, topology) by the names of their gin files."""
    models, topologies = (
        sorted(path.stem for path in (CONFIGS / folder).glob("*.gin"))
        for folder in ("models", "topologies")
    )
    return [(model, topology) for model in models for topology in topologies]


def specs(model: str, topology_name: str) -> str:
    """A heading, and a line for each parameter: name, shape, partition spec, shape of a shard; or
    the one that says what the mesh does not divide."""
    checks.parse(
        [f"gin_configs/models/{model}.gin", f"gin_configs/topologies/{topology_name}.gin"],
        load=load_named,
    )
    architecture, topology = Architecture(), Topology()
    heading = f"{model} on {topology_name}"
    try:
        rows = topology.data * topology.fsdp * topology.microbatches
        check_divisible(StepShape(architecture, rows, topology.sequence), topology)
    except UsageError as error:
        return f"{heading}\n  {error}"
    # A node of GPUs is eight devices like any others here; to describe it takes XLA's GPU compiler.
    is_there = topology.slice is None or CHIPS[topology.chip].reported_memory is not None
    mesh = make_mesh(topology, None if is_there else described_devices(topology))
    with in_force(topology, mesh):
        parameters = bind_model(architecture, topology, mesh, "bfloat16").abstract
    lines = [heading]
    for path, leaf in jax.tree_util.tree_flatten_with_path(parameters)[0]:
        entries = (item if item is None else "+".join(flat(item)) for item in leaf.sharding.spec)
        spec = ", ".join(entry or "-" for entry in entries)
        shard = "x".join(map(str, leaf.sharding.shard_shape(leaf.shape)))
        lines.append(f"  {leaf_name(path)} {'x'.join(map(str, leaf.shape))} ({spec}) {shard}")
    return "\n".join(lines)


if __name__ == "__main__":
    print("\n".join(specs(*pair) for pair in pairs()))
