"""What to change when a step does not fit the memory of a chip."""

import dataclasses
import re
from typing import Any

from t5x_style.accounting import StepShape, Topology
from t5x_style.accounting.layouts.memory import step_memory
from t5x_style.accounting.recompute import REMAT_RECOMPUTES
from t5x_style.quantities import GIB

_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# The TPU compiler's two messages: after and before it has placed every buffer.
_REFUSALS = (
    re.compile(r"Used ([\d.]+)([KMGT]) of ([\d.]+)([KMGT]) hbm"),
    re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM \(([\d.]+)([KMGT])\)"),
)
_ALLOCATION = re.compile(
    r"Size: ([\d.]+[KMGT])\n\s+Operator: op_name=\"([^\"]*)\"(?:[^\n]*source_file=\"([^\"]*)\" "
    r"source_line=(\d+))?"
)


def refused_bytes(message: str) -> tuple[int, int] | None:
    """Bytes from a message of the TPU compiler that a step does not fit the memory.

    Returns:
      (bytes that the step needs, bytes that there are) on one device; None for any other message.
    """
    for refusal in _REFUSALS:
        if (match := refusal.search(message)) is not None:
            used, used_unit, room, room_unit = match.groups()
            return int(float(used) * _UNITS[used_unit]), int(float(room) * _UNITS[room_unit])
    return None


def memory_refusal(message: str, shape: StepShape, topology: Topology) -> str | None:
    """The TPU compiler's message that a step does not fit, in a form that a person can act on.

    Returns:
      The missing bytes, the largest arrays, and changes that would make the step fit. None if the
      compiler's message is about something else.
    """
    if (found := refused_bytes(message)) is None:
        return None
    largest = []
    for size, operation, file, line in _ALLOCATION.findall(message)[:3]:
        where = f" at {file}:{line}" if file else ""
        largest.append(f"  {size}iB: {operation}{where}")
    advice = what_would_fit(shape, topology, found[0] - found[1])
    return "\n".join([too_much(*found), *largest, *advice])


def too_much(used: int, room: int) -> str:
    """The refusal of a step that needs more bytes than one device has."""
    return f"the step needs {used / GIB:.2f} GiB of each device, which has {room / GIB:.2f} GiB"


def what_would_fit(shape: StepShape, topology: Topology, excess: int) -> list[str]:
    """Single changes that save memory. If some are enough by the planner's estimate, only those.

    Args:
      excess: bytes that are missing on a device.

    Returns:
      A line per change: the change as gin has it, and what it is expected to save.
    """

    def total(**change: Any) -> int:
        return step_memory(shape, dataclasses.replace(topology, **change)).total

    changes: list[tuple[str, int]] = [
        (f"Topology.remat = {remat!r}", total(remat=remat))
        for remat in REMAT_RECOMPUTES
        if remat != topology.remat
    ]
    others: dict[str, Any] = {"shard_optimizer_over_data": True}
    # A chunk is never longer than a device's tokens, so half of a longer one would be the same.
    devices = topology.devices // topology.tensor
    tokens = shape.tokens // devices // topology.microbatches
    if (chunk := min(topology.loss_chunk_tokens, tokens) // 2) > 0:
        others["loss_chunk_tokens"] = chunk
    chunks = max(16, 2 * topology.loss_vocab_chunks)
    if shape.architecture.vocab_size // topology.tensor % chunks == 0:
        others["loss_vocab_chunks"] = chunks
    for name, value in others.items():
        changes.append((f"Topology.{name} = {value}", total(**{name: value})))
    rows = shape.sequences // (topology.data * topology.fsdp)
    more = (number for number in range(topology.microbatches + 1, rows + 1) if rows % number == 0)
    if (microbatches := next(more, None)) is not None:
        changes.append((f"MICROBATCHES = {microbatches}", total(microbatches=microbatches)))
    # The data axis repeats the state; the fsdp axis splits it. A slice stays whole.
    if topology.data % (2 * topology.slices) == 0:
        sizes = {"data": topology.data // 2, "fsdp": topology.fsdp * 2}
        name = ", ".join(f"Topology.{axis} = {size}" for axis, size in sizes.items())
        changes.append((name, total(**sizes)))
    before = total()
    saving = sorted(
        ((before - after, name) for name, after in changes if after < before), reverse=True
    )
    enough = [(saved, name) for saved, name in saving if saved >= excess]
    lines = [
        f"would fit, by the planner's estimate: {name} (saves {saved / GIB:.1f} GiB)"
        for saved, name in enough
    ]
    if not enough:
        lines = [
            f"would save {saved / GIB:.1f} GiB, by the planner's estimate: {name}"
            for saved, name in saving
        ]
    return lines or ["nothing else would save memory: take more chips or a smaller batch"]


def unknown_flag(message: str) -> str | None:
    """The refusal of an option that XLA does not know; None for XLA's other messages."""
    if (match := re.search(r"No such compile option: '?\"?([\w]+)", message)) is None:
        return None
    return f"Topology.compiler_flags: this XLA has no option {match[1]!r}"
