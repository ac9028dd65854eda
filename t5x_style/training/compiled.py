"""What a compiled step holds and does: bytes, FLOPs, traffic; and that its state goes round."""

import dataclasses
import math
from typing import Any

import jax
from jax.stages import Compiled

from t5x_style.accounting import Chip
from t5x_style.accounting.program import Program
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
      what the compiler's layouts add to them; gradients: float32, from shapes; activations: all
      else that comes and goes; temporary: the two together; peak: at the fullest moment; usable:
      what the compiler grants a program (for TPUs alone).
    """
    said = compiled.memory_analysis()
    state = program.state
    parts = {
        "parameters": _bytes_on_device(state["parameters"]),
        "optimizer": _bytes_on_device((state["optimizer"], state["step"])),
        "batch": _bytes_on_device(batch),
    }
    gradients = _bytes_on_device(program.model.updates)
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


def text_accounts(read: Program, hardware_flops: float, devices: int) -> dict[str, Any]:
    """What the compiled text says of a step, for the report.

    Args:
      read: the program of one device.
      hardware_flops: of the whole step outside of kernels, by the formula.

    Returns:
      hlo_flops: of the matrix products of all devices, counted in the text, kernels left out;
      hlo_flops_error: how far from the formula, as a share; kernel_calls; unknown_loops: whose
      trips the text does not tell (figures are then lower bounds); collectives: by place;
      traffic: by kind and axis; expensive: the ten costliest operations; largest_buffers: three.
    """
    counted = read.matmul_flops * devices
    return {
        "hlo_flops": counted,
        "hlo_flops_error": counted / hardware_flops - 1,
        "kernel_calls": read.kernel_calls,
        "unknown_loops": list(read.unknown_loops),
        "estimated_cycles": read.estimated_cycles,
        "collectives": [dataclasses.asdict(each) for each in read.collectives],
        "traffic": _traffic(read),
        "expensive": [dataclasses.asdict(each) for each in read.operations[:10]],
        "largest_buffers": [dataclasses.asdict(each) for each in read.largest_buffers[:3]],
    }


def _traffic(read: Program) -> list[dict[str, Any]]:
    """Collectives of one kind along one axis together, the most bytes on the wire first.

    Returns:
      kind, axis, group_size, count, wire_bytes of a step and chip, overlapped: the share of those
      bytes that is scheduled over work, None where the text cannot tell.
    """
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for each in read.collectives:
        key = (each.kind, each.axis, each.group_size)
        row = rows.setdefault(
            key,
            {"kind": each.kind, "axis": each.axis, "group_size": each.group_size}
            | {"count": 0, "wire_bytes": 0, "hidden_bytes": 0, "told": True},
        )
        row["count"] += each.count
        row["wire_bytes"] += each.wire_bytes * each.count
        row["hidden_bytes"] += each.wire_bytes * each.count if each.overlapped else 0
        row["told"] &= each.overlapped is not None
    for row in rows.values():
        hidden, told = row.pop("hidden_bytes"), row.pop("told")
        row["overlapped"] = hidden / max(1, row["wire_bytes"]) if told or hidden else None
    return sorted(rows.values(), key=lambda row: -row["wire_bytes"])


def _bytes_on_device(tree: Any) -> int:
    """Bytes of each device's shards, from shapes alone."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
