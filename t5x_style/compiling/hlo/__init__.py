"""A compiled program read from its text: FLOPs, traffic, cycles, buffers."""

from t5x_style.compiling.hlo.arrays import Buffer
from t5x_style.compiling.hlo.collectives import Collective
from t5x_style.compiling.hlo.costs import Operation
from t5x_style.compiling.hlo.kernel_calls import (
    AttentionWork,
    KernelCall,
    KernelGrid,
    kernel_flops,
)
from t5x_style.compiling.hlo.program import Program, read_program

__all__ = [
    "AttentionWork",
    "Buffer",
    "Collective",
    "KernelCall",
    "KernelGrid",
    "Operation",
    "Program",
    "kernel_flops",
    "read_program",
]
