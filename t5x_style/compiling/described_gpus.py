"""Described GPUs: XLA's GPU compiler needs a description of a GPU, not the GPU."""

from collections.abc import Sequence

import jax
from jax.experimental import topologies

from t5x_style.accounting import Chip
from t5x_style.errors import UsageError

# GPUs of a node, which NVLink joins.
_MOST_OF_A_NODE = 8


# XLA's `GpuTargetConfigProto` of a Hopper card as SXM module, after its own specifications
# (openxla/xla, xla/backends/gpu/target_config/specs).
_HOPPER = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  memory_bandwidth: {bandwidth}
  device_memory_size: {size}
  cuda_compute_capability {{ major: 9 }}
}}
platform_name: "CUDA"
runtime_version {{ major: 13 }}
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{kind}"
"""


def described_gpus(row: Chip, shape: str) -> Sequence[jax.Device]:
    """The GPUs of some nodes. Call before anything else in this process uses a device.

    Args:
      row: a chip with reported memory. shape: nodes x GPUs of a node, as '1x8'.

    Raises:
      UsageError: no such shape, or XLA's GPU compiler is not installed.
    """
    sides = shape.split("x")
    if (
        len(sides) != 2
        or not all(side.isdecimal() and int(side) > 0 for side in sides)
        or int(sides[1]) > _MOST_OF_A_NODE
    ):
        raise UsageError(
            f"Topology.slice = {shape!r} of {row.name} GPUs must be nodes x GPUs of a node, at "
            f"most {_MOST_OF_A_NODE}, as in '1x8' or '4x8'"
        )
    jax.config.update("jax_platforms", "cpu")
    assert row.reported_memory is not None
    size, bandwidth = row.reported_memory
    description = _HOPPER.format(size=size, bandwidth=bandwidth, kind=row.device_kinds[0])
    try:
        return topologies.get_topology_desc(
            platform="cuda",
            topology_name=row.name,
            topology=f"1x{sides[0]}x{sides[1]}",
            target_config=description,
        ).devices
    except NotImplementedError as error:
        raise UsageError(
            f"Topology.slice = {shape!r} of {row.name} GPUs needs XLA's GPU compiler, which is not "
            "installed here: run tools/setup gpu. The bytes, FLOPs and traffic of a step need no "
            "GPU; its seconds do"
        ) from error
