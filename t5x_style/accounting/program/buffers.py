"""The largest arrays that a program writes to the device's main memory."""

import dataclasses
import re

from t5x_style.accounting.program.loops import Schedule
from t5x_style.accounting.program.shapes import MAIN_MEMORY, Array, arrays
from t5x_style.accounting.program.text import Instruction, Module

# What makes no array of its own: it names, passes on or rewrites one that another line made. What
# starts an asynchronous operation carries its operands along; its end has the result alone.
_PASSES_ON = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
_PASSES_ON |= {"optimization-barrier", "send", "recv", "send-done"}
_IN_PLACE = "dynamic-update-slice"
_ALIASED = re.compile(r"\{(\d*)\}: \(\d+")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that one source line makes.

    Attributes:
      bytes: that it takes in memory: its elements and `padding_bytes`.
      padding_bytes: what the tiles of the memory layout add. A TPU keeps an array in tiles of
        8 x 128 (and 16 x 128 of two-byte numbers), so that [.., 60, 128] takes the room of
        [.., 64, 128].
      shape: 'bf16[20,4096,7680]'.
      count: lines of the program that make such an array there. They need not live at the same
        time: this is a list of what is large, not of what adds up to the peak.
      source: see `Module.source`.
    """

    bytes: int
    padding_bytes: int
    shape: str
    count: int
    source: str


def largest_buffers(module: Module, schedule: Schedule, number: int) -> list[Buffer]:
    """The largest arrays by shape and source line, arguments of the program left out."""
    found: dict[tuple[str, str], Buffer] = {}
    for name in schedule.ordered:
        for instruction in module.computations[name].instructions.values():
            for array in _made(module, instruction):
                shape = f"{array.dtype}[{','.join(map(str, array.dimensions))}]"
                source = module.source(instruction)
                seen = found.get((shape, source))
                found[shape, source] = Buffer(
                    array.padded_bytes,
                    array.padded_bytes - array.bytes,
                    shape,
                    seen.count + 1 if seen else 1,
                    source,
                )
    return sorted(found.values(), key=lambda buffer: -buffer.bytes)[:number]


def _made(module: Module, instruction: Instruction) -> list[Array]:
    """Arrays in main memory that an instruction makes rather than rewrites."""
    operation = instruction.operation
    if operation in _PASSES_ON or operation.endswith("-start") or operation == _IN_PLACE:
        return []
    made = arrays(instruction.shape)
    rewritten = set()
    if operation == "fusion":
        aliased = re.search(r"output_to_operand_aliasing=\{(.*?)\}, \w+=", instruction.attributes)
        for index in _ALIASED.findall(aliased[1] if aliased else ""):
            rewritten |= {int(index)} if index else set(range(len(made)))
        inside = module.computations[instruction.called[0]]
        root = inside.root
        results = root.operands if root.operation == "tuple" else (root.name,)
        for index, name in enumerate(results):
            if inside.instructions[name].operation == _IN_PLACE:
                rewritten.add(index)
    return [
        array
        for index, array in enumerate(made)
        if index not in rewritten and array.memory == MAIN_MEMORY
    ]
