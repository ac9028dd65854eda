"""A compiled program read from its text: FLOPs, traffic, cycles, buffers; time of a step."""

from t5x_style.accounting.program.buffers import Buffer
from t5x_style.accounting.program.collectives import Collective
from t5x_style.accounting.program.costs import Operation
from t5x_style.accounting.program.reader import Program, read_program

__all__ = ["Buffer", "Collective", "Operation", "Program", "read_program"]
