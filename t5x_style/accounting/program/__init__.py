"""A compiled program read from its text: FLOPs, traffic, cycles, buffers; time of a step."""

from t5x_style.accounting.program.assumptions import ASSUMPTIONS
from t5x_style.accounting.program.buffers import Buffer
from t5x_style.accounting.program.collectives import Collective
from t5x_style.accounting.program.costs import Operation
from t5x_style.accounting.program.estimate import StepEstimate, estimate
from t5x_style.accounting.program.kernels import AttentionWork, kernel_flops
from t5x_style.accounting.program.reader import Program, read_program

__all__ = [
    "ASSUMPTIONS",
    "AttentionWork",
    "Buffer",
    "Collective",
    "Operation",
    "Program",
    "StepEstimate",
    "estimate",
    "kernel_flops",
    "read_program",
]
