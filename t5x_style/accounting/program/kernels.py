"""Pallas kernels: what a program calls of them. Their inside is not in the text."""

import re

from t5x_style.accounting.program.loops import Schedule
from t5x_style.accounting.program.text import Instruction, Module

KERNEL_TARGET = "tpu_custom_call"


def is_kernel(instruction: Instruction) -> bool:
    """Whether an instruction runs a Pallas kernel."""
    return (
        instruction.operation == "custom-call"
        and instruction.attribute("custom_call_target") == KERNEL_TARGET
    )


def kernel_calls(module: Module, schedule: Schedule) -> dict[str, int]:
    """Calls per run by the kernel's name."""
    calls: dict[str, int] = {}
    for computation in module.computations.values():
        for instruction in computation.instructions.values():
            if schedule.times[computation.name] and is_kernel(instruction):
                name = re.sub(r"(\.\d+)+$", "", instruction.name)
                calls[name] = calls.get(name, 0) + schedule.times[computation.name]
    return calls
