"""The memory of a compiled step on each chip, and the check that it writes its state in place."""

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
    """Bytes of a chip that a step needs, by the compiler's own account.

    Attributes:
      parameters, optimizer, batch: held between two steps, from shapes alone; the batch with the
        sums of the losses and the limits of an update.
      padding: added to them by the compiler's layouts.
      gradients: float32, from shapes.
      activations: all other temporary memory.
      temporary: gradients and activations.
      peak: at the fullest moment.
      usable: granted to a program; None where it is not known (see `Chip.usable_bytes`).
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
        """Whether the peak is at most `usable`; None where that is not known."""
        return None if self.usable is None else self.peak <= self.usable

    def to_json(self) -> dict[str, int]:
        """The parts by name, unknown ones left out."""
        return {name: n for name, n in dataclasses.asdict(self).items() if n is not None}


def chip_memory(
    program: StepProgram, compiled: Compiled, batch: jax.ShapeDtypeStruct, chip: Chip | None
) -> ChipMemory:
    """The compiler's account of a step.

    Args:
      batch: the one for which it was compiled.
      chip: the kind of the devices; None: a device is a chip.
    """
    analysis, state = compiled.memory_analysis(), program.state
    assert analysis is not None
    parameters = _bytes_on_device(state["parameters"])
    optimizer = _bytes_on_device((state["optimizer"], state["step"]))
    rows = _bytes_on_device((batch, program.sums, program.limits))
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
    """Check that a step can read its own result, and that it writes the result in place.

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
    analysis = compiled.memory_analysis()
    assert analysis is not None
    in_place = analysis.alias_size_in_bytes
    state = _bytes_on_device(program.state)
    if in_place < state:
        raise Fault(
            f"the step writes {in_place:,} bytes of its state in place, but the state has "
            f"{state:,}: the rest is in memory twice"
        )


def _bytes_on_device(tree: Any) -> int:
    """Bytes of one device's shards, from shapes alone."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
