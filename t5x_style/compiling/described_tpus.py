"""Described devices of a slice. XLA's compilers need no real ones, and run on any machine."""

import importlib.util
import math
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from t5x_style.accounting import CHIPS, Chip, Topology, chip
from t5x_style.compiling.described_gpus import described_gpus
from t5x_style.errors import UsageError, did_you_mean

# A slice smaller than a host must name its host bounds.
_HOSTS = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}

# libtpu looks for chips, for other processes that use them and for the cloud's metadata, and logs
# much to standard error. A program that only compiles needs none of it.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # The type of the machine, not of the described slice. Any existing type avoids a warning.
    "TPU_ACCELERATOR_TYPE": "v4-8",
}


def described_devices(topology: Topology) -> Sequence[jax.Device]:
    """The devices of `topology.slices` slices of shape `topology.slice` of chip `topology.chip`.

    Nothing runs on them; programs can be compiled for them. Call before anything else in this
    process uses a device: the CPU becomes the backend, so that JAX looks for no chip.

    Raises:
      UsageError: there is no such slice, or its compiler is not installed.
    """
    shape = topology.slice or ""
    describable = [name for name, row in CHIPS.items() if row.usable_bytes is not None]
    if topology.chip is None or (row := chip(topology.chip)).usable_bytes is None:
        raise UsageError(
            f"Topology.slice = {topology.slice!r}: a step can be compiled for slices of "
            f"{', '.join(describable)}, but Topology.chip = {topology.chip!r}"
            f"{did_you_mean(str(topology.chip), describable)}"
        )
    if row.reported_memory is not None:
        if topology.slices > 1:
            raise UsageError(
                f"Topology.slices = {topology.slices}: set the nodes of {row.name} GPUs in "
                f"Topology.slice, as in '{topology.slices}x8'"
            )
        return described_gpus(row, shape)
    sides = shape.split("x")
    if (
        not all(side.isdecimal() and int(side) > 0 for side in sides)
        or len(sides) != (3 if row.interconnect == "torus_3d" else 2)
        # The compiler would take a v5e of 32 x 32, which nobody has built.
        or math.prod(map(int, sides)) > row.link_domain
    ):
        raise UsageError(_slice_refusal(row, topology.slice))
    # JAX's own message for a missing libtpu has changed with its versions: ask for the package.
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            f"Topology.slice = {shape!r} of a {row.name} needs libtpu, the TPU's compiler, which "
            "is not installed here: run tools/setup tpu"
        )
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    jax.config.update("jax_platforms", "cpu")
    options: dict = dict(row.compiler_options)
    if shape in _HOSTS:
        options["chips_per_host_bounds"] = _HOSTS[shape]
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{row.name}:{shape}", **options
        ).devices
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{_slice_refusal(row, topology.slice)} ({reason})") from error


def _slice_refusal(row: Chip, shape: str | None) -> str:
    return (
        f"Topology.slice = {shape!r}: a {row.name} has no such slice; some that it has: "
        f"{', '.join(row.slices)}{did_you_mean(str(shape), row.slices)}"
    )
