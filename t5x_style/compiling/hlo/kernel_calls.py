"""Attention kernels of Pallas and cuDNN: their calls in a program, and their FLOPs.

The inside of a kernel is not in the program's text, so its products are counted from its name and
the attention that it computes.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

from t5x_style.compiling.hlo.arrays import arrays
from t5x_style.compiling.hlo.loops import Schedule
from t5x_style.compiling.hlo.text import Instruction, Module
from t5x_style.errors import Fault

_Key = TypeVar("_Key", bound=Hashable)
_TARGET = "tpu_custom_call"
_CUDNN = "__cudnn$fmha"
# Marks of the TPU compiler in its programs: memory, views, ends of asynchronous operations.
_NOT_A_LIBRARY = (
    "AllocateBuffer",
    "AssumeGatherIndicesInBound",
    "AsyncCollective",
    "ConcatBitcast",
    "PrepareAsyncCall",
)

# The passes of the splash kernel, whose backward pass is the unfused one. For every pair of a query
# and a key they multiply over all `features` of a head (the logits, and the gradients of q and k:
# ALiBi has features of its own) or over its `head_dim` (p v, do v, the gradient of v).
PASSES: dict[str, tuple[str, ...]] = {
    "fwd": ("features", "head_dim"),
    "dq": ("features", "head_dim", "features"),
    "dkv": ("features", "head_dim", "head_dim", "features"),
}

# The passes of cuDNN's kernel, by their whole names. The backward pass makes logits, and the
# gradients of v, the weights, q and k.
CUDNN_PASSES = {
    f"{_CUDNN}Softmax": ("features", "head_dim"),
    f"{_CUDNN}SoftmaxBackward": ("features", "head_dim", "head_dim", "features", "features"),
}


@dataclasses.dataclass(frozen=True)
class KernelGrid:
    """The grid that one call of the splash kernel walks, from the shapes of its operands.

    Attributes:
      mapped: elements of the axes over which the kernel is mapped. A chip's cores share them.
      heads, kv_heads: of queries and of keys, in all sequences of the call.
      rows, columns: of blocks in a head's schedule, as the schedule's array has them: queries and
        keys. The pass of the keys' gradients walks it by columns.
    """

    mapped: int
    heads: int
    kv_heads: int
    rows: int
    columns: int


@dataclasses.dataclass(frozen=True)
class KernelCall:
    """The calls of one attention kernel.

    Attributes:
      name: of a Pallas kernel, or of cuDNN's routine.
      count: runs in a run of the program.
      grid: None for kernels that are not splash.
    """

    name: str
    count: int
    grid: KernelGrid | None = None


@dataclasses.dataclass(frozen=True)
class AttentionWork:
    """The work of one call of an attention kernel on one device.

    Attributes:
      rows: queries x heads, in all sequences of the call.
      keys_touched: mean number of keys that a query is multiplied with: those of whole blocks.
      keys_seen: mean number of keys that the mask admits.
      head_dim: H. features: of a query and a key in the kernel; more than H with ALiBi.
      block: queries and keys of a tile; 0 where it is not known.
      causal: whether the mask is causal alone, and the logits have no soft-cap.
    """

    rows: float
    keys_touched: float
    keys_seen: float
    head_dim: int
    features: int
    block: int
    causal: bool = True


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction runs a Pallas kernel, or cuDNN's attention."""
    target = instruction.attribute("custom_call_target") or ""
    return instruction.operation == "custom-call" and (
        target == _TARGET or target.startswith(_CUDNN)
    )


def kernel_calls(module: Module, schedule: Schedule) -> list[KernelCall]:
    """Calls of attention kernels per run, those of one name and one grid together."""

    def name(call: Instruction) -> tuple[str, KernelGrid | None] | None:
        if not is_kernel(call):
            return None
        target = call.attribute("custom_call_target") or ""
        if target != _TARGET:
            return target, None
        return re.sub(r"(\.\d+)+$", "", call.name), _grid(call)

    return [
        KernelCall(name, count, grid)
        for (name, grid), count in _count(module, schedule, name).items()
    ]


def library_calls(module: Module, schedule: Schedule) -> dict[str, int]:
    """Calls of routines that are neither kernels nor the TPU compiler's own, by their target."""

    def target(call: Instruction) -> str | None:
        name = call.attribute("custom_call_target") or "?"
        return None if is_kernel(call) or name.startswith(_NOT_A_LIBRARY) else name

    return _count(module, schedule, target)


def _count(
    module: Module, schedule: Schedule, key_of: Callable[[Instruction], _Key | None]
) -> dict[_Key, int]:
    calls: dict[_Key, int] = {}
    for computation in module.computations.values():
        runs = schedule.times[computation.name]
        for instruction in computation.instructions.values():
            if runs and instruction.operation == "custom-call":
                key = key_of(instruction)
                if key is not None:
                    calls[key] = calls.get(key, 0) + runs
    return calls


def _grid(call: Instruction) -> KernelGrid | None:
    """Of a splash kernel: its operands are two schedules, then q and k as [mapped…, N, H, S]."""
    listed = re.search(r"operand_layout_constraints=\{(.*?\})\}", call.attributes)
    shapes = [array.dimensions for array in arrays(listed[1])] if listed else []
    if not call.name.startswith("splash_") or len(shapes) < 4:
        return None
    schedule, _, q, k, *_ = shapes
    return KernelGrid(
        mapped=math.prod(q[:-3]),
        heads=math.prod(q[:-2]),
        kv_heads=math.prod(k[:-2]),
        rows=schedule[-2],
        columns=schedule[-1],
    )


def calls_by_pass(calls: Sequence[KernelCall]) -> dict[str, int]:
    """Calls of each of PASSES, of a program for TPUs.

    Raises:
      Fault: a kernel is not in the table, so its products are not known.
    """
    by_pass = dict.fromkeys(PASSES, 0)
    for call in calls:
        by_pass[pass_name(call)] += call.count
    return by_pass


def pass_name(call: KernelCall) -> str:
    """Which of PASSES a kernel of a program for TPUs is.

    Raises:
      Fault: see `calls_by_pass`.
    """
    match = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", call.name)
    if match is None:
        raise Fault(
            f"kernel {call.name!r} runs {call.count} times a step, but its products are not in the "
            "table PASSES of t5x_style/compiling/hlo/kernel_calls.py"
        )
    return match[1]


def kernel_flops(calls: Sequence[KernelCall], work: AttentionWork) -> float:
    """FLOPs that the kernels execute on one device in one run of the program.

    Of blocks that the mask cuts through, all pairs count: they are multiplied, then masked.

    Args:
      calls: as `Program.kernels`. work: of one call.

    Raises:
      Fault: see `calls_by_pass`.
    """
    pairs = work.rows * work.keys_touched
    flops = 0.0
    for call in calls:
        widths = CUDNN_PASSES.get(call.name) or PASSES[pass_name(call)]
        flops += call.count * 2 * pairs * sum(getattr(work, width) for width in widths)
    return flops
