"""Attention kernels of Pallas and cuDNN: their calls in a program, and their FLOPs.

The inside of a kernel is not in the program's text, so its products are counted from its name and
the attention that it computes.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping

from t5x_style.compiling.hlo.loops import Schedule
from t5x_style.compiling.hlo.text import Instruction, Module
from t5x_style.errors import Fault

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
class AttentionWork:
    """The work of one call of an attention kernel on one device.

    Attributes:
      rows: queries x heads, in all sequences of the call.
      keys_touched: mean number of keys that a query is multiplied with: those of whole blocks.
      keys_seen: mean number of keys that the mask admits.
      head_dim: H. features: of a query and a key in the kernel; more than H with ALiBi.
      block: queries and keys of a tile; 0 where it is not known.
    """

    rows: float
    keys_touched: float
    keys_seen: float
    head_dim: int
    features: int
    block: int


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction runs a Pallas kernel, or cuDNN's attention."""
    target = instruction.attribute("custom_call_target") or ""
    return instruction.operation == "custom-call" and (
        target == _TARGET or target.startswith(_CUDNN)
    )


def kernel_calls(module: Module, schedule: Schedule) -> dict[str, int]:
    """Calls of kernels per run, by the name of a Pallas kernel or of cuDNN's routine."""

    def name(call: Instruction) -> str | None:
        if not is_kernel(call):
            return None
        target = call.attribute("custom_call_target")
        return re.sub(r"(\.\d+)+$", "", call.name) if target == _TARGET else target

    return _count(module, schedule, name)


def library_calls(module: Module, schedule: Schedule) -> dict[str, int]:
    """Calls of routines that are neither kernels nor the TPU compiler's own, by their target."""

    def target(call: Instruction) -> str | None:
        name = call.attribute("custom_call_target") or "?"
        return None if is_kernel(call) or name.startswith(_NOT_A_LIBRARY) else name

    return _count(module, schedule, target)


def _count(
    module: Module, schedule: Schedule, name_of: Callable[[Instruction], str | None]
) -> dict[str, int]:
    calls: dict[str, int] = {}
    for computation in module.computations.values():
        runs = schedule.times[computation.name]
        for instruction in computation.instructions.values():
            if runs and instruction.operation == "custom-call":
                name = name_of(instruction)
                if name is not None:
                    calls[name] = calls.get(name, 0) + runs
    return calls


def calls_by_pass(calls: Mapping[str, int]) -> dict[str, int]:
    """Calls of each of PASSES, of a program for TPUs.

    Raises:
      Fault: a kernel is not in the table, so its products are not known.
    """
    by_pass = dict.fromkeys(PASSES, 0)
    for name, count in calls.items():
        by_pass[_pass_name(name, count)] += count
    return by_pass


def _pass_name(name: str, count: int) -> str:
    match = re.match(r"splash_m[hq]a_(fwd|dq|dkv)_", name)
    if match is None:
        raise Fault(
            f"kernel {name!r} runs {count} times a step, but its products are not in the table "
            "PASSES of t5x_style/compiling/hlo/kernel_calls.py"
        )
    return match[1]


def kernel_flops(calls: Mapping[str, int], work: AttentionWork) -> float:
    """FLOPs that the kernels execute on one device in one run of the program.

    Of blocks that the mask cuts through, all pairs count: they are multiplied, then masked.

    Args:
      calls: as `Program.kernel_calls`. work: of one call.

    Raises:
      Fault: see `calls_by_pass`.
    """
    pairs = work.rows * work.keys_touched
    flops = 0.0
    for name, count in calls.items():
        widths = CUDNN_PASSES.get(name) or PASSES[_pass_name(name, count)]
        flops += count * 2 * pairs * sum(getattr(work, width) for width in widths)
    return flops
