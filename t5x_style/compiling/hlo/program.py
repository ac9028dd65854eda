"""A compiled program's accounts, read from its text."""

import dataclasses
from collections.abc import Mapping

from t5x_style.accounting import chips
from t5x_style.compiling.hlo.arrays import Buffer, largest_buffers
from t5x_style.compiling.hlo.collectives import Collective, collectives
from t5x_style.compiling.hlo.costs import Operation, operations
from t5x_style.compiling.hlo.kernel_calls import KernelCall, kernel_calls, library_calls
from t5x_style.compiling.hlo.loops import schedule
from t5x_style.compiling.hlo.products import matmul_flops
from t5x_style.compiling.hlo.text import parse

_BUFFERS = 10


@dataclasses.dataclass(frozen=True)
class Program:
    """The work of ONE device in one run of a compiled program, loops multiplied out.

    Attributes:
      matmul_flops: 2 x multiply-adds of every matrix product outside of kernels, exact.
      kernels: calls of attention kernels. What they multiply is not in the text: see
        `kernel_flops`.
      library_calls: calls of a library's routines by name: cuBLAS on a GPU, oneDNN on a CPU. Their
        products are not in the text. The TPU compiler's own calls multiply nothing and are left
        out.
      collectives: the most bytes on the wire first.
      operations: those that the compiler has estimated, the costliest first.
      largest_buffers: of the arrays in main memory.
      unknown_loops: loops whose trips the text does not show. Each is counted as run once, so that
        every figure here is then a lower bound: a report must print that.
    """

    matmul_flops: int
    kernels: list[KernelCall]
    library_calls: dict[str, int]
    collectives: list[Collective]
    operations: list[Operation]
    largest_buffers: list[Buffer]
    unknown_loops: tuple[str, ...]

    @property
    def kernel_calls(self) -> dict[str, int]:
        """Calls of attention kernels by name."""
        calls: dict[str, int] = {}
        for call in self.kernels:
            calls[call.name] = calls.get(call.name, 0) + call.count
        return calls

    @property
    def estimated_cycles(self) -> dict[str, int]:
        """The compiler's estimates by kind of operation (see `Operation`), the most first."""
        cycles: dict[str, int] = {}
        for operation in self.operations:
            cycles[operation.kind] = cycles.get(operation.kind, 0) + operation.cycles
        return dict(sorted(cycles.items(), key=lambda item: -item[1]))


def read_program(
    hlo_text: str, mesh: Mapping[str, int] | None = None, chip: str | None = None
) -> Program:
    """Reads the text of `jax.stages.Compiled.as_text()`.

    Args:
      hlo_text: of a program for any backend; cycles and kernels are a TPU's.
      mesh: axis names to sizes, outermost first; None: collectives name no axis.
      chip: as `Topology.chip`, for chips whose text does not show overlap; None: it shows.

    Raises:
      ValueError: the text is not that of a compiled program.
    """
    # The compilers of some chips overlap collectives that their text shows as synchronous: nothing
    # in the text of a v5p program shows whether a gather waits.
    silent = chip is not None and not chips.chip(chip).overlap_in_text
    module = parse(hlo_text)
    runs = schedule(module)
    return Program(
        matmul_flops=matmul_flops(module, runs),
        kernels=kernel_calls(module, runs),
        library_calls=library_calls(module, runs),
        collectives=collectives(module, runs, mesh or {}, silent),
        operations=operations(module, runs),
        largest_buffers=largest_buffers(module, runs, _BUFFERS),
        unknown_loops=runs.unknown_loops,
    )
