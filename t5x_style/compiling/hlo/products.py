"""FLOPs of the matrix products that a program runs: 2 x multiply-adds, exact.

The TPU compiler turns every `dot` into a `convolution`. It writes einsums over split axes as
windows with padding and dilation. Positions of a window on padding or in the gaps of a dilation
multiply nothing and are not counted.
"""

import math
import re

from t5x_style.compiling.hlo.arrays import dimensions
from t5x_style.compiling.hlo.loops import Schedule
from t5x_style.compiling.hlo.text import Computation, Instruction, Module

PRODUCTS = ("dot", "convolution")


def matmul_flops(module: Module, schedule: Schedule) -> int:
    """FLOPs of every `dot` and `convolution`, also inside fusions, per device and run."""
    total = 0
    for computation in module.computations.values():
        runs = schedule.times[computation.name]
        for instruction in computation.instructions.values():
            if runs and instruction.operation in PRODUCTS:
                total += runs * product_flops(computation, instruction)
    return total


def product_flops(computation: Computation, instruction: Instruction) -> int:
    """2 x multiply-adds of one `dot` or `convolution`, run once."""
    left, right = (
        dimensions(computation.instructions[name].shape) for name in instruction.operands[:2]
    )
    result = dimensions(instruction.shape)
    if instruction.operation == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        axes = contracted[1].split(",") if contracted and contracted[1] else []
        return 2 * math.prod(result) * math.prod(left[int(axis)] for axis in axes)
    return _convolution_flops(left, right, result, instruction)


def _convolution_flops(
    left: tuple[int, ...], right: tuple[int, ...], result: tuple[int, ...], instruction: Instruction
) -> int:
    """Labels as in `b0f_0io->b0f`: which axis is batch, feature in, feature out or spatial.

    With groups of features the kernel's axis `i` is one group's; with groups of the batch the
    result's axis `f` spans all groups while each meets its own part of the batch: both need no
    further factor.
    """
    labels = instruction.attribute("dim_labels") or ""
    left_axes, right_axes, result_axes = re.split(r"_|->", labels)
    flops = 2 * result[result_axes.index("b")] * result[result_axes.index("f")]
    flops *= right[right_axes.index("i")]
    window = _window(instruction)
    for axis in range(sum(label.isdigit() for label in left_axes)):
        before, _, size, stride, left_dilation, right_dilation = window(axis)
        flops *= _multiplied_pairs(
            inputs=left[left_axes.index(str(axis))],
            outputs=result[result_axes.index(str(axis))],
            size=size,
            stride=stride,
            before=before,
            left_dilation=left_dilation,
            right_dilation=right_dilation,
        )
    return flops


def _window(instruction: Instruction):
    """axis -> (padding before, padding after, size, stride, dilations of left and right)."""
    match = re.search(r"\bwindow=\{([^}]*)\}", instruction.attributes)
    fields = dict(field.split("=") for field in match[1].split()) if match else {}

    def axis_window(axis: int) -> tuple[int, int, int, int, int, int]:
        sizes = [
            int(fields[name].split("x")[axis]) if name in fields else 1
            for name in ("size", "stride", "lhs_dilate", "rhs_dilate")
        ]
        padding = fields["pad"].split("x")[axis] if "pad" in fields else "0_0"
        before, after = (int(number) for number in padding.split("_"))
        return before, after, *sizes  # type: ignore[return-value]

    return axis_window


def _multiplied_pairs(
    inputs: int,
    outputs: int,
    size: int,
    stride: int,
    before: int,
    left_dilation: int,
    right_dilation: int,
) -> int:
    """Pairs (position of the result, position in the window) that meet an element of the input.

    Result q and window position k meet the dilated input at q stride + k right_dilation - before,
    which holds an element where it is a multiple of left_dilation and within the input.
    """
    last = (inputs - 1) * left_dilation
    period = left_dilation // math.gcd(stride, left_dilation)
    pairs = 0
    for position in range(size):
        offset = position * right_dilation - before
        lowest = max(-(offset // stride), 0)  # offset + lowest stride >= 0
        highest = min((last - offset) // stride, outputs - 1)
        for first in range(lowest, min(lowest + period, highest + 1)):
            if (offset + first * stride) % left_dilation == 0:
                pairs += (highest - first) // period + 1
                break
    return pairs
