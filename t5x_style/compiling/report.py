"""The report on a compiled step: bytes, FLOPs, traffic, seconds."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from t5x_style.accounting import (
    Chip,
    StepShape,
    Topology,
    chip_of_device_kind,
    total_parameters,
    training_flops_per_token,
)
from t5x_style.accounting.attention_blocks import touched_keys_per_query
from t5x_style.accounting.flops import attention_tile, flash_features, keys_per_query
from t5x_style.accounting.layouts.divisibility import check_divisible
from t5x_style.accounting.layouts.memory import step_memory
from t5x_style.compiling.described_tpus import described_devices
from t5x_style.compiling.estimates import ASSUMPTIONS, StepEstimate, estimate
from t5x_style.compiling.hlo import (
    AttentionWork,
    Buffer,
    Collective,
    Operation,
    Program,
    kernel_flops,
    read_program,
)
from t5x_style.compiling.memory_use import ChipMemory, check_state_is_donated, chip_memory
from t5x_style.partitioning import check_sharded, in_force, make_mesh
from t5x_style.step.memory_advice import too_much, what_would_fit
from t5x_style.step.program import step_program
from t5x_style.step.spec import StepSpec

_EXPENSIVE = 10
_BUFFERS = 3


@dataclasses.dataclass(frozen=True)
class Traffic:
    """The collectives of one kind along one axis.

    Attributes:
      count: runs in a step.
      wire_bytes: that a chip sends in a step.
      overlapped: share of those bytes that is scheduled over work; None where the program's text
        does not show it.
    """

    kind: str
    axis: str
    group_size: int
    count: int
    wire_bytes: int
    overlapped: float | None


@dataclasses.dataclass(frozen=True)
class ProgramAccounts:
    """The contents of a compiled program's text.

    Attributes:
      hlo_flops: of all devices: the matrix products in the text, and those of the kernels that it
        calls.
      hlo_flops_error: relative difference from the formula.
      kernel_calls: calls of attention kernels by name.
      library_calls: calls of library routines, whose products hlo_flops lacks (GPUs, CPUs).
      unknown_loops: loops whose trips the text does not show; all figures are then lower bounds.
      estimated_cycles: by kind of operation.
      collectives: by place.
      traffic: the most bytes on the wire first.
      expensive: the costliest operations.
      largest_buffers: of the arrays in main memory.
    """

    hlo_flops: float
    hlo_flops_error: float
    kernel_calls: dict[str, int]
    library_calls: dict[str, int]
    unknown_loops: list[str]
    estimated_cycles: dict[str, int]
    collectives: list[Collective]
    traffic: list[Traffic]
    expensive: list[Operation]
    largest_buffers: list[Buffer]


@dataclasses.dataclass(frozen=True)
class CompileReport:
    """The report on a step. The fields from `unsharded` on are known once it is compiled.

    Attributes:
      shape, topology: of the step.
      parameters: of the model.
      devices, chips: that the mesh takes.
      run_tokens: of the whole run.
      model_flops: of a step, by the conventions '6nd', 'full' and 'causal'.
      hardware_flops: of a step, by the formula.
      planned_bytes_per_chip: the planner's estimate.
      dollars_per_chip_hour: for the cost of the run; None without a price.
      unsharded: share of the parameters' bytes that is unsplit where the mesh could split it.
      compile_seconds, memory, accounts: of the compiled step; None before.
      estimates: seconds by the name of their assumptions; empty for chips without a clock.
    """

    shape: StepShape
    topology: Topology
    parameters: int
    devices: int
    chips: int
    run_tokens: int
    model_flops: dict[str, float]
    hardware_flops: float
    planned_bytes_per_chip: int
    dollars_per_chip_hour: float | None = None
    unsharded: float = 0.0
    compile_seconds: float | None = None
    memory: ChipMemory | None = None
    accounts: ProgramAccounts | None = None
    estimates: Mapping[str, StepEstimate] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The flat JSON object of `t5x-style compile --json`."""
        topology, architecture = self.topology, self.shape.architecture
        found: dict[str, Any] = {
            "parameters": self.parameters,
            "chip": topology.chip,
            "slice": topology.slice,
            "slices": topology.slices,
            "devices": self.devices,
            "chips": self.chips,
            "mesh": topology.mesh_shape,
            "kernel": topology.kernel,
            "remat": topology.remat,
            "microbatches": topology.microbatches,
            "compute_dtype": self.shape.compute_dtype,
            "matmul_dtype": architecture.matmul_dtype,
            "sequences": self.shape.sequences,
            "sequence_length": self.shape.sequence_length,
            "tokens": self.shape.tokens,
            "run_tokens": self.run_tokens,
            "model_flops": self.model_flops,
            "hardware_flops": self.hardware_flops,
            "planned_bytes_per_chip": self.planned_bytes_per_chip,
            "unsharded": self.unsharded,
        }
        if self.memory is None or self.accounts is None:
            return found
        return (
            found
            | {
                "compile_seconds": self.compile_seconds,
                "bytes_per_chip": self.memory.to_json(),
                "fits": self.memory.fits,
                "estimates": {
                    name: _estimate_json(step, self.run_tokens, self.dollars_per_chip_hour)
                    for name, step in self.estimates.items()
                },
            }
            | dataclasses.asdict(self.accounts)
        )


def mesh_of(topology: Topology) -> Mesh:
    """The mesh over the slice that the topology describes, or over this process's devices."""
    return make_mesh(topology, None if topology.slice is None else described_devices(topology))


def planned_report(
    spec: StepSpec,
    shape: StepShape,
    topology: Topology,
    mesh: Mesh,
    dollars_per_chip_hour: float | None = None,
) -> CompileReport:
    """The report on a step before it is compiled.

    Raises:
      UsageError: the mesh does not divide the batch or the model.
    """
    check_divisible(shape, topology)

    def flops(convention: str) -> float:
        return shape.tokens * training_flops_per_token(
            shape.architecture, shape.sequence_length, convention, topology
        )

    chip = _mesh_chip(mesh)
    devices_per_chip = 1 if chip is None else chip.devices_per_chip
    return CompileReport(
        shape=shape,
        topology=topology,
        parameters=total_parameters(shape.architecture),
        devices=mesh.size,
        chips=mesh.size // devices_per_chip,
        run_tokens=spec.plan.tokens,
        model_flops={convention: flops(convention) for convention in ("6nd", "full", "causal")},
        hardware_flops=flops("hardware"),
        planned_bytes_per_chip=step_memory(shape, topology).total * devices_per_chip,
        dollars_per_chip_hour=dollars_per_chip_hour,
    )


def compiled_report(
    spec: StepSpec,
    shape: StepShape,
    topology: Topology,
    mesh: Mesh,
    *,
    dollars_per_chip_hour: float | None = None,
    compiles: bool = True,
) -> tuple[CompileReport, str]:
    """Compiles a step and reads the result.

    Args:
      shape: of the step, one of the run's.
      compiles: False stops before the compiler, after all checks.

    Returns:
      The report, and the compiled program as text.

    Raises:
      UsageError: as `planned_report`, `step_program` and `StepProgram.compile`.
      Fault: as `check_state_is_donated`.
    """
    report = planned_report(spec, shape, topology, mesh, dollars_per_chip_hour)
    with in_force(topology, mesh):
        program = step_program(spec, topology, mesh)
        report = dataclasses.replace(
            report, unsharded=check_sharded(program.model.abstract, topology)
        )
        if not compiles:
            return report, ""
        started = time.perf_counter()
        compiled = program.compile(shape.sequences, shape.sequence_length)
        compile_seconds = time.perf_counter() - started
    check_state_is_donated(program, compiled)
    chip = _mesh_chip(mesh)
    batch = program.batch(shape.sequences, shape.sequence_length)
    text = compiled.as_text()
    assert text is not None
    read = read_program(text, topology.mesh_shape, topology.chip)
    attention = attention_work(shape, topology)
    report = dataclasses.replace(
        report,
        compile_seconds=compile_seconds,
        memory=chip_memory(program, compiled, batch, chip),
        accounts=program_accounts(read, attention, report.hardware_flops, mesh.size),
    )
    if chip is None or chip.clock is None:
        return report, text
    one_slice = mesh.devices.flat[: mesh.size // topology.slices]
    estimates = {
        name: estimate(
            read,
            chip,
            [tuple(device.coords) for device in one_slice],
            tokens=shape.tokens,
            model_flops=report.model_flops["causal"],
            attention=attention,
            slices=topology.slices,
            assumptions=name,
        )
        for name in ASSUMPTIONS
    }
    return dataclasses.replace(report, estimates=estimates), text


def refusal_of(report: CompileReport) -> str | None:
    """Why a compiled step would not run: its peak is above the memory that a chip grants.

    Returns:
      The missing bytes and changes that would make it fit; None if the step fits, or if the chip's
      limit is not known.
    """
    memory = report.memory
    if memory is None or memory.usable is None or memory.fits:
        return None
    devices_per_chip = report.devices // report.chips
    peak, usable = memory.peak // devices_per_chip, memory.usable // devices_per_chip
    advice = what_would_fit(report.shape, report.topology, peak - usable)
    return "\n".join([too_much(peak, usable), *advice])


def attention_work(shape: StepShape, topology: Topology) -> AttentionWork | None:
    """The work of one call of 'flash' or 'cudnn' on one device; None with another kernel."""
    if topology.kernel not in ("flash", "cudnn"):
        return None
    architecture, length = shape.architecture, shape.sequence_length
    seen = keys_per_query(length, architecture.window)
    block, touched = 0, seen
    if topology.kernel == "flash":
        block = attention_tile(architecture, length, topology)
        touched = touched_keys_per_query(length, architecture.window, block)
    return AttentionWork(
        rows=shape.tokens * architecture.heads / (topology.microbatches * topology.devices),
        keys_touched=touched,
        keys_seen=seen,
        head_dim=architecture.head_dim,
        features=flash_features(architecture),
        block=block,
        causal=architecture.window is None and architecture.attention_softcap is None,
    )


def program_accounts(
    read: Program, attention: AttentionWork | None, hardware_flops: float, devices: int
) -> ProgramAccounts:
    """The accounts of a step from its compiled text.

    Args:
      read: the program of one device.
      attention: the work of one call of its kernels.
      hardware_flops: of the whole step, by the formula.
    """
    counted: float = read.matmul_flops * devices
    if attention is not None:
        counted += kernel_flops(read.kernels, attention) * devices
    return ProgramAccounts(
        hlo_flops=counted,
        hlo_flops_error=counted / hardware_flops - 1,
        kernel_calls=read.kernel_calls,
        library_calls=read.library_calls,
        unknown_loops=list(read.unknown_loops),
        estimated_cycles=read.estimated_cycles,
        collectives=read.collectives,
        traffic=_traffic(read.collectives),
        expensive=read.operations[:_EXPENSIVE],
        largest_buffers=read.largest_buffers[:_BUFFERS],
    )


def _traffic(collectives: list[Collective]) -> list[Traffic]:
    """Collectives of one kind along one axis together, the most bytes on the wire first."""
    groups: dict[tuple[str, str, int], list[Collective]] = {}
    for collective in collectives:
        key = (collective.kind, collective.axis, collective.group_size)
        groups.setdefault(key, []).append(collective)
    rows = []
    for (kind, axis, group_size), members in groups.items():
        wire_bytes = sum(member.wire_bytes * member.count for member in members)
        hidden = sum(member.wire_bytes * member.count for member in members if member.overlapped)
        known = all(member.overlapped is not None for member in members)
        overlapped = hidden / max(1, wire_bytes) if known or hidden else None
        count = sum(member.count for member in members)
        rows.append(Traffic(kind, axis, group_size, count, wire_bytes, overlapped))
    return sorted(rows, key=lambda row: -row.wire_bytes)


def _mesh_chip(mesh: Mesh) -> Chip | None:
    """The chip whose devices the mesh is made of; None for a CPU and for chips not in the table."""
    return chip_of_device_kind(mesh.devices.flat[0].device_kind)


def _estimate_json(
    step: StepEstimate, run_tokens: int, dollars_per_chip_hour: float | None
) -> dict[str, Any]:
    """An estimate with all collectives overlapped (`_hidden`), and with none (`_exposed`):
    seconds of a step, mfu (causal), hfu, tokens_per_second, days and dollars of the run."""
    found: dict[str, Any] = {
        "assumes": ASSUMPTIONS[step.assumptions].meaning,
        "compute_seconds": step.compute_seconds,
        "kernel_seconds": step.kernel_seconds,
        "wire_seconds": step.wire_seconds,
    }
    for way, seconds in (("hidden", step.hidden_seconds), ("exposed", step.exposed_seconds)):
        found |= {
            f"seconds_{way}": seconds,
            f"mfu_{way}": step.mfu(seconds),
            f"hfu_{way}": step.hfu(seconds),
            f"tokens_per_second_{way}": step.tokens / seconds,
            f"days_{way}": step.days(run_tokens, seconds),
        }
        if dollars_per_chip_hour is not None:
            found[f"dollars_{way}"] = step.cost(run_tokens, seconds, dollars_per_chip_hour)
    return found
