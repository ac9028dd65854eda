"""What a compiled step holds: bytes on each chip, and that its state goes out as it came in."""

import math
from typing import Any

import jax
from jax.stages import Compiled

from t5x_style.accounting import Chip
from t5x_style.errors import Fault
from t5x_style.partitioning import USABLE_BYTES
from t5x_style.partitioning.sharding import leaf_name
from t5x_style.training.programs import StepProgram


def bytes_per_chip(
    program: StepProgram, compiled: Compiled, batch: jax.ShapeDtypeStruct, chip: Chip | None
) -> dict[str, int]:
    """What the step takes of each chip's memory, by the compiler's own account.

    Args:
      batch: for which it was compiled.
      chip: whose devices they are; None: a device is a chip.

    Returns:
      parameters, optimizer, batch: what lies there between two steps, from shapes alone; padding:
      what the compiler's layouts add to them; gradients: float32, sharded as the parameters, from
      shapes; activations: all else that comes and goes; temporary: the two together; peak: at the
      fullest moment; usable: what the compiler grants a program (not for chips that it has not).
    """
    said = compiled.memory_analysis()
    state = program.state
    parts = {
        "parameters": _bytes_on_device(state["parameters"]),
        "optimizer": _bytes_on_device((state["optimizer"], state["step"])),
        "batch": _bytes_on_device(batch),
    }
    gradients = parts["parameters"]
    sizes = parts | {
        "padding": said.argument_size_in_bytes - sum(parts.values()),
        "gradients": gradients,
        "activations": said.temp_size_in_bytes - gradients,
        "temporary": said.temp_size_in_bytes,
        "peak": said.peak_memory_in_bytes,
    }
    if chip is not None and chip.name in USABLE_BYTES:
        sizes["usable"] = USABLE_BYTES[chip.name]
    devices = 1 if chip is None else chip.devices_per_chip
    return {name: size * devices for name, size in sizes.items()}


def check_state_goes_round(program: StepProgram, compiled: Compiled) -> None:
    """Make sure that the step can be fed its own result, and that it writes it in place.

    Raises:
      Fault: a part of the state comes back in another sharding, or is not written over the old one.
    """
    before = compiled.input_shardings[0][0]
    after = compiled.output_shardings[0]
    leaves = jax.tree_util.tree_flatten_with_path(program.state)[0]
    for (path, leaf), went_in, came_out in zip(
        leaves, jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    ):
        if not went_in.is_equivalent_to(came_out, leaf.ndim):
            raise Fault(
                f"the step takes {leaf_name(path)} as {went_in} and gives it back as {came_out}"
            )
    said = compiled.memory_analysis()
    state = _bytes_on_device(program.state)
    if said.alias_size_in_bytes < state:
        raise Fault(
            f"the step writes {said.alias_size_in_bytes:,} bytes of its state in place, and the "
            f"state has {state:,}: the rest is held twice"
        )


def _bytes_on_device(tree: Any) -> int:
    """Bytes of each device's shards, from shapes alone."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
