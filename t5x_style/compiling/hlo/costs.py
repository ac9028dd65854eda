"""The TPU compiler's own estimate of each operation, in cycles of the core.

The compiler writes `estimated_cycles` into the `backend_config` of what it schedules: fusions,
convolutions, copies. It writes none on Pallas kernels and collectives, and int64's largest value
where it knows none.
"""

import dataclasses
import re
from collections.abc import Iterator

from t5x_style.compiling.hlo.loops import Schedule
from t5x_style.compiling.hlo.products import PRODUCTS
from t5x_style.compiling.hlo.text import Computation, Instruction, Module

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**63 - 1
_SLICES = {"dynamic-slice", "dynamic-update-slice"}
# What moves values and changes none.
_MOVES = {"parameter", "constant", "copy", "transpose", "reshape", "bitcast", "slice", "pad"}
_MOVES |= {"concatenate", "tuple", "get-tuple-element", "copy-start", "copy-done", "broadcast"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """What one instruction costs over a whole run.

    Attributes:
      name: of the instruction.
      kind: 'matmul' (with all that is fused to it), 'elementwise', 'slice' (reads and writes of
        stacked arrays in a scan), 'layout' (copies, transposes) or 'other'.
      cycles: estimated, of all its runs.
      count: runs.
      source: see `Module.source`.
    """

    name: str
    kind: str
    cycles: int
    count: int
    source: str


def estimated(instruction: Instruction) -> int:
    """The compiler's estimate of one run, 0 where it gives none."""
    match = _ESTIMATE.search(instruction.attributes)
    cycles = int(match[1]) if match else 0
    return 0 if cycles == _UNKNOWN else cycles


def operations(module: Module, schedule: Schedule) -> list[Operation]:
    """Every instruction that has an estimate, the costliest first."""
    found = []
    for name in schedule.ordered:
        computation, runs = module.computations[name], schedule.times[name]
        for instruction in computation.instructions.values():
            if cycles := estimated(instruction):
                kind = _kind(module, instruction)
                source = module.source(instruction, *parts(module, instruction))
                found.append(Operation(instruction.name, kind, cycles * runs, runs, source))
    return sorted(found, key=lambda operation: -operation.cycles)


def parts(module: Module, instruction: Instruction) -> Iterator[Instruction]:
    """The instructions of what an instruction calls, at any depth."""
    for name in instruction.called:
        for each in module.computations[name].instructions.values():
            yield each
            yield from parts(module, each)


def cycles_between(
    module: Module, schedule: Schedule, computation: Computation, first: str, last: str
) -> int:
    """Estimated cycles of what runs after instruction `first` and before `last`, loops whole."""
    names = list(computation.instructions)
    between = names[names.index(first) + 1 : names.index(last)]
    return sum(_with_loops(module, schedule, computation.instructions[name]) for name in between)


def _with_loops(module: Module, schedule: Schedule, instruction: Instruction) -> int:
    if instruction.operation != "while":
        return estimated(instruction)
    body = re.search(r"\bbody=%?([\w.\-]+)", instruction.attributes)[1]
    inside = module.computations[body].instructions.values()
    once = sum(_with_loops(module, schedule, each) for each in inside)
    return schedule.trips.get(instruction.name, 1) * once


def _kind(module: Module, instruction: Instruction) -> str:
    inside = {each.operation for each in parts(module, instruction)} or {instruction.operation}
    inside.discard("fusion")
    if inside & set(PRODUCTS):
        return "matmul"
    if inside & _SLICES and inside <= _MOVES | _SLICES | {"convert"}:
        return "slice"
    if inside <= _MOVES:
        return "layout"
    return "elementwise" if instruction.operation == "fusion" else "other"
