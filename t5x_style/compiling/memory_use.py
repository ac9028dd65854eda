"""What a compiled step takes of each chip's memory, and that it writes its state in place."""

import dataclasses
import math
from typing import Any

import jax
from jax.stages import Compiled

from t5x_style.accounting import Chip
from t5x_style.errors import Fault
from t5x_style.partitioning.sharding import leaf_name
from t5x_style.step.program import StepProgram


@dataclasses.dataclass(frozen=True)
class ChipMemory:
    """Bytes of a chip that a step takes, by the compiler's own account.

    Attributes:
      parameters, optimizer, batch: held between two steps, from shapes alone.
      padding: what the compiler's layouts add to them.
      gradients: float32, from shapes.
      activations: everything else that is temporary.
      temporary: gradients and activations.
      peak: at the fullest moment.
      usable: what a program is granted; None where it is not known (see `Chip.usable_bytes`).
    """

    parameters: int
    optimizer: int
    batch: int
    padding: int
    gradients: int
    activations: int
    temporary: int
    peak: int
    usable: int | None = None

    @property
    def fits(self) -> bool | None:
        """Whether the peak is within what a program is granted; None where that is not known."""
        return None if self.usable is None else self.peak <= self.usable

    def to_json(self) -> dict[str, int]:
        """The parts by name, without those that are not known."""
        return {name: n for name, n in dataclasses.asdict(self).items() if n is not None}


def chip_memory(
    program: StepProgram, compiled: Compiled, batch: jax.ShapeDtypeStruct, chip: Chip | None
) -> ChipMemory:
    """The compiler's account of a step.

    Args:
      batch: for which it was compiled.
      chip: whose devices they are; None: a device is a chip.
    """
    analysis, state = compiled.memory_analysis(), program.state
    parameters = _bytes_on_device(state["parameters"])
    optimizer = _bytes_on_device((state["optimizer"], state["step"]))
    rows = _bytes_on_device(batch)
    gradients = _bytes_on_device(program.model.updates)
    devices = 1 if chip is None else chip.devices_per_chip
    usable = None if chip is None else chip.usable_bytes
    return ChipMemory(
        parameters=devices * parameters,
        optimizer=devices * optimizer,
        batch=devices * rows,
        padding=devices * (analysis.argument_size_in_bytes - parameters - optimizer - rows),
        gradients=devices * gradients,
        activations=devices * (analysis.temp_size_in_bytes - gradients),
        temporary=devices * analysis.temp_size_in_bytes,
        peak=devices * analysis.peak_memory_in_bytes,
        usable=None if usable is None else devices * usable,
    )


def check_state_is_donated(program: StepProgram, compiled: Compiled) -> None:
    """Make sure that a step can be fed its own result, and that it writes the result in place.

    Raises:
      Fault: a part of the state is returned in another sharding, or not written over the old one.
    """
    before = compiled.input_shardings[0][0]
    after = compiled.output_shardings[0]
    leaves = jax.tree_util.tree_flatten_with_path(program.state)[0]
    for (path, leaf), taken, returned in zip(
        leaves, jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    ):
        if not taken.is_equivalent_to(returned, leaf.ndim):
            raise Fault(f"the step takes {leaf_name(path)} as {taken} and returns it as {returned}")
    in_place = compiled.memory_analysis().alias_size_in_bytes
    state = _bytes_on_device(program.state)
    if in_place < state:
        raise Fault(
            f"the step writes {in_place:,} bytes of its state in place, but the state has "
            f"{state:,}: the rest is in memory twice"
        )


def _bytes_on_device(tree: Any) -> int:
    """Bytes of each device's shards, from shapes alone."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
