"""Devices of a slice that is not there: enough for XLA's compilers, which run anywhere."""

import math
import os
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from t5x_style.compiling.described_gpus import USABLE_BYTES_OF_GPUS, described_gpus
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.partitioning.topology import Topology

_GIB = 2**30

# Bytes of memory that a program is granted on each DEVICE: less than the chip has, for the runtime
# keeps some. For TPUs as the compiler's refusals print them (libtpu 0.0.42).
USABLE_BYTES = USABLE_BYTES_OF_GPUS | {
    "v4": int(30.75 * _GIB),
    "v5e": int(15.75 * _GIB),
    "v5p": int(95.74 * _GIB),
    "v6e": int(31.25 * _GIB),
    "tpu7x": int(94.75 * _GIB),
}

# Some shapes of each that Cloud TPU rents, for messages; others that the compiler takes do as well.
_SLICES = {
    "v4": ("2x2x1", "2x2x4", "4x4x4", "4x4x8", "8x8x8", "8x8x16", "16x16x16"),
    "v5e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "v5p": ("2x2x1", "2x2x4", "4x4x4", "4x4x8", "8x8x8", "8x8x16", "16x16x16"),
    "v6e": ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16"),
    "tpu7x": ("2x2x1", "2x2x4", "4x4x4", "4x4x8", "8x8x8", "8x8x16", "16x16x16"),
}
# The compiler would take a v5e of 32 x 32, which nobody has built.
_MOST_CHIPS = {"v4": 4096, "v5e": 256, "v5p": 8960, "v6e": 256, "tpu7x": 9216}

# A v4 chip shows its two cores as one device, as it does on a Cloud TPU machine.
_OPTIONS = {"v4": {"chip_config_name": "megacore"}}
# A slice smaller than a host has to be told so.
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
    chip, shape = topology.chip, topology.slice
    if chip not in USABLE_BYTES:
        raise UsageError(
            f"Topology.slice = {shape!r}: slices can be described of {', '.join(USABLE_BYTES)}, "
            f"and Topology.chip is {chip!r}{did_you_mean(str(chip), USABLE_BYTES)}"
        )
    if chip in USABLE_BYTES_OF_GPUS:
        if topology.slices > 1:
            raise UsageError(
                f"Topology.slices = {topology.slices}: nodes of {chip} GPUs are counted in "
                f"Topology.slice, as in '{topology.slices}x8'"
            )
        return described_gpus(chip, shape or "")
    known = _SLICES[chip]
    sides = (shape or "").split("x")
    if (
        not all(side.isdecimal() and int(side) > 0 for side in sides)
        or len(sides) != len(known[0].split("x"))
        or math.prod(map(int, sides)) > _MOST_CHIPS[chip]
    ):
        raise UsageError(_no_slice(chip, shape))
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    jax.config.update("jax_platforms", "cpu")
    options: dict = dict(_OPTIONS.get(chip, {}))
    if shape in _HOSTS:
        options["chips_per_host_bounds"] = _HOSTS[shape]
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    try:
        return topologies.get_topology_desc(
            platform="tpu", topology_name=f"{chip}:{shape}", **options
        ).devices
    except (RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0]
        if "libtpu" in said:
            raise UsageError(
                f"Topology.slice = {shape!r} of a {chip} needs libtpu, the TPU's compiler, which "
                f"is not installed here ({said}): run tools/setup tpu"
            ) from error
        raise UsageError(f"{_no_slice(chip, shape)} ({said})") from error


def _no_slice(chip: str, shape: str | None) -> str:
    known = _SLICES[chip]
    return (
        f"Topology.slice = {shape!r}: no such slice of a {chip}; some that there are: "
        f"{', '.join(known)}{did_you_mean(str(shape), known)}"
    )
