"""Shapes as HLO prints them: sizes in bytes, and what the tiles of a TPU's memory make of them."""

import dataclasses
import math
import re

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
        """Bytes that it takes where it lies: the tiled dimensions rounded up to whole tiles."""
        order = self.minor_to_major or tuple(reversed(range(len(self.dimensions))))
        slowest_first = [self.dimensions[axis] for axis in reversed(order)]
        missing = len(self.tile) - len(slowest_first)
        sizes = [1] * max(missing, 0) + slowest_first
        for back, size in enumerate(reversed(self.tile), 1):
            sizes[-back] = -(-sizes[-back] // size) * size
        return math.ceil(math.prod(sizes) * _element_bytes(self.dtype))


def arrays(shape: str) -> list[Array]:
    """The arrays of a printed shape, those of nested tuples in order; tokens are none."""
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
