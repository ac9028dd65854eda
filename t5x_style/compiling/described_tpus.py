"""Devices of a slice that is not there: enough for XLA's compilers, which run anywhere."""

import importlib.util
import math
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from t5x_style.accounting import CHIPS, Chip, Topology, chip
from t5x_style.compiling.described_gpus import described_gpus
from t5x_style.errors import UsageError, did_you_mean

# A slice smaller than a host needs its host bounds.
_HOSTS = {"1x1": (1, 1, 1), "2x4": (2, 4, 1)}

# libtpu looks for chips, for other processes that use them and for the cloud's metadata, and tells
# standard error at length; a program that only compiles needs none of it.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TPU_WORKER_HOSTNAMES": "localhost",
    # Of the machine, not of the slice that is described: any that exists keeps it quiet.
    "TPU_ACCELERATOR_TYPE": "v4-8",
}


def described_devices(topology: Topology) -> Sequence[jax.Device]:
    """The devices of `topology.slices` slices of shape `topology.slice` of chip `topology.chip`.

    Nothing runs on them; programs can be compiled for them. Call before anything else of this
    process has used a device: the CPU becomes its backend, so that no chip is looked for.

    Raises:
      UsageError: no such slice, or the compiler for it is not installed.
    """
    shape = topology.slice or ""
    describable = [name for name, row in CHIPS.items() if row.usable_bytes is not None]
    if topology.chip is None or (row := chip(topology.chip)).usable_bytes is None:
        raise UsageError(
            f"Topology.slice = {topology.slice!r}: slices can be described of "
            f"{', '.join(describable)}, and Topology.chip is {topology.chip!r}"
            f"{did_you_mean(str(topology.chip), describable)}"
        )
    if row.reported_memory is not None:
        if topology.slices > 1:
            raise UsageError(
                f"Topology.slices = {topology.slices}: nodes of {row.name} GPUs are counted in "
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
        raise UsageError(_no_slice(row, topology.slice))
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
        raise UsageError(f"{_no_slice(row, topology.slice)} ({reason})") from error


def _no_slice(row: Chip, shape: str | None) -> str:
    return (
        f"Topology.slice = {shape!r}: no such slice of a {row.name}; some that there are: "
        f"{', '.join(row.slices)}{did_you_mean(str(shape), row.slices)}"
    )
