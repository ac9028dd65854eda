"""Arrays of a program: their shapes, their bytes in memory, and the largest buffers."""

import dataclasses
import math
import re

from t5x_style.compiling.hlo.loops import Schedule
from t5x_style.compiling.hlo.text import Instruction, Module

# Bytes of an element; four-bit numbers are packed two to a byte.
_BYTES = {"pred": 1, "token": 0, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5}
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+\w*)\[([\d,]*)\](?:\{([\d,]*)(?::([^}]*))?\})?")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SPACE = re.compile(r"S\((\d+)\)")
MAIN_MEMORY = 0


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a shape.

    Attributes:
      dtype: as HLO names it, 'bf16'.
      dimensions: outermost first.
      minor_to_major: order of the dimensions in memory, the fastest first; empty if not printed.
      tile: sizes of the first tile, over the fastest dimensions; empty if not tiled.
      memory: 0 is the device's main memory (HBM); on a TPU 1 is VMEM, 5 the host's memory.
    """

    dtype: str
    dimensions: tuple[int, ...]
    minor_to_major: tuple[int, ...]
    tile: tuple[int, ...]
    memory: int

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return math.ceil(math.prod(self.dimensions) * _element_bytes(self.dtype))

    @property
    def padded_bytes(self) -> int:
        """Bytes that it takes in memory: the tiled dimensions rounded up to whole tiles."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dimensions))))
        slowest_first = [self.dimensions[axis] for axis in reversed(order)]
        missing = len(self.tile) - len(slowest_first)
        sizes = [1] * max(missing, 0) + slowest_first
        for back, size in enumerate(reversed(self.tile), 1):
            sizes[-back] = -(-sizes[-back] // size) * size
        return math.ceil(math.prod(sizes) * _element_bytes(self.dtype))


def arrays(shape: str) -> list[Array]:
    """The arrays of a printed shape, those of nested tuples in order; tokens are left out."""
    return [
        Array(
            dtype,
            _numbers(dimensions),
            _numbers(order),
            _numbers(tile[1]) if (tile := _TILE.search(layout)) else (),
            int(space[1]) if (space := _SPACE.search(layout)) else MAIN_MEMORY,
        )
        for dtype, dimensions, order, layout in _ARRAY.findall(shape)
    ]


def dimensions(shape: str) -> tuple[int, ...]:
    """Dimensions of a shape that is one array (of a tuple's first)."""
    return arrays(shape)[0].dimensions


def total_bytes(shape: str) -> int:
    """Bytes of the elements of all arrays of a shape."""
    return sum(array.bytes for array in arrays(shape))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)


def _element_bytes(dtype: str) -> float:
    if dtype in _BYTES:
        return _BYTES[dtype]
    bits = re.match(r"\D+(\d+)", dtype)
    return int(bits[1]) / 8 if bits else 1


# Operations that make no array: they name, forward or rewrite one that another line made. The start
# of an asynchronous operation lists its operands too; its end has the result alone.
_NO_ARRAY = {"parameter", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"}
_NO_ARRAY |= {"optimization-barrier", "send", "recv", "send-done"}
_IN_PLACE = "dynamic-update-slice"
_ALIASED = re.compile(r"\{(\d*)\}: \(\d+")


@dataclasses.dataclass(frozen=True)
class Buffer:
    """An array that one source line makes.

    Attributes:
      bytes: that it takes in memory: its elements and `padding_bytes`.
      padding_bytes: added by the tiles of the memory layout. A TPU keeps an array in tiles of
        8 x 128 (and 16 x 128 of two-byte numbers), so [.., 60, 128] takes as many bytes as
        [.., 64, 128].
      shape: 'bf16[20,4096,7680]'.
      count: lines of the program that make this array there. They need not live at the same
        time, so the list does not add up to the peak.
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
            for array in _new_arrays(module, instruction):
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


def _new_arrays(module: Module, instruction: Instruction) -> list[Array]:
    """Arrays in main memory that an instruction makes rather than rewrites."""
    operation = instruction.operation
    if operation in _NO_ARRAY or operation.endswith("-start") or operation == _IN_PLACE:
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
