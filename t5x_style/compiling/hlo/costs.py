"""The TPU compiler's own estimate of each operation, in cycles of the core.

The compiler writes `estimated_cycles` into the `backend_config` of fusions, convolutions and
copies. It writes none on Pallas kernels and collectives, and int64's largest value where it has no
estimate.
"""

import dataclasses
import re
from collections.abc import Iterator

from t5x_style.compiling.hlo.loops import Schedule, loop_computations
from t5x_style.compiling.hlo.products import PRODUCTS
from t5x_style.compiling.hlo.text import Computation, Instruction, Module

_ESTIMATE = re.compile(r'"estimated_cycles":"(\d+)"')
_UNKNOWN = 2**63 - 1
_SLICES = {"dynamic-slice", "dynamic-update-slice"}
# Operations that move values and change none.
_MOVES = {"parameter", "constant", "copy", "transpose", "reshape", "bitcast", "slice", "pad"}
_MOVES |= {"concatenate", "tuple", "get-tuple-element", "copy-start", "copy-done", "broadcast"}


@dataclasses.dataclass(frozen=True)
class Operation:
    """The cost of one instruction over a whole run.

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
    """The compiler's estimate of one run, in cycles; 0 without one."""
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
    """The instructions in the computations that an instruction calls, at any depth."""
    for name in instruction.called:
        for part in module.computations[name].instructions.values():
            yield part
            yield from parts(module, part)


def cycles_between(
    module: Module, schedule: Schedule, computation: Computation, first: str, last: str
) -> int:
    """Estimated cycles of the instructions after `first` and before `last`, loops multiplied."""
    names = list(computation.instructions)
    between = names[names.index(first) + 1 : names.index(last)]
    return sum(
        _cycles_with_loops(module, schedule, computation.instructions[name]) for name in between
    )


def _cycles_with_loops(module: Module, schedule: Schedule, instruction: Instruction) -> int:
    if instruction.operation != "while":
        return estimated(instruction)
    _, body = loop_computations(instruction)
    inside = module.computations[body].instructions.values()
    once = sum(_cycles_with_loops(module, schedule, part) for part in inside)
    return schedule.trips.get(instruction.name, 1) * once


def _kind(module: Module, instruction: Instruction) -> str:
    kinds = {part.operation for part in parts(module, instruction)} or {instruction.operation}
    kinds.discard("fusion")
    if kinds & set(PRODUCTS):
        return "matmul"
    if kinds & _SLICES and kinds <= _MOVES | _SLICES | {"convert"}:
        return "slice"
    if kinds <= _MOVES:
        return "layout"
    return "elementwise" if instruction.operation == "fusion" else "other"
