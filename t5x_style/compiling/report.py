"""What a compiled step holds and does: bytes, FLOPs, traffic; and that its state goes round."""

import dataclasses
import math
import time
from typing import Any

import jax
from jax.sharding import Mesh
from jax.stages import Compiled

from t5x_style.accounting import (
    Architecture,
    Chip,
    chip_of_device_kind,
    total_parameters,
    training_flops_per_token,
)
from t5x_style.accounting.attention_blocks import (
    ALIBI_FEATURES,
    flash_block,
    touched_keys_per_query,
)
from t5x_style.accounting.flops import keys_per_query
from t5x_style.accounting.layouts import memory
from t5x_style.compiling import USABLE_BYTES, described_devices
from t5x_style.compiling.estimates import ASSUMPTIONS, StepEstimate, estimate
from t5x_style.compiling.estimates.assumptions import CLOCKS
from t5x_style.compiling.hlo import AttentionWork, Program, kernel_flops, read_program
from t5x_style.data import BatchPlan, Packing
from t5x_style.errors import Fault, UsageError
from t5x_style.optim import Optimizer, check_fulfils
from t5x_style.partitioning import Topology, check_divisible, check_sharded
from t5x_style.partitioning.sharding import leaf_name
from t5x_style.step.memory_advice import too_much, what_would_fit
from t5x_style.step.program import StepProgram, step_program


@dataclasses.dataclass(frozen=True)
class RunStep:
    """A run's step apart from where it lies.

    Attributes:
      plan: of the whole run.
      sequences, sequence_length: of the step.
      microbatches, compute_dtype, packing, z_loss: as in `Run`.
      sources, eos_id: of the run's blend and vocabulary. They change constants of the program and
        a product of [B] by [B, sources], nothing that is counted here.
    """

    architecture: Architecture
    optimizer: Optimizer
    plan: BatchPlan
    sequences: int
    sequence_length: int
    microbatches: int
    compute_dtype: str
    packing: Packing
    z_loss: float
    sources: int = 1
    eos_id: int = 1

    def __post_init__(self):
        if self.microbatches < 1 or self.sequences % self.microbatches:
            raise UsageError(
                f"BATCH_SIZE = {self.sequences} is not a multiple of MICROBATCHES = "
                f"{self.microbatches}"
            )
        self.architecture.check_length(self.sequence_length)
        check_fulfils("train.optimizer", self.optimizer, Optimizer)

    def program(self, topology: Topology, mesh: Mesh) -> StepProgram:
        """The step on a mesh that is in force. Raises UsageError as `step_program`."""
        return step_program(
            self.architecture,
            topology,
            mesh,
            self.optimizer,
            self.plan,
            compute_dtype=self.compute_dtype,
            packing=self.packing,
            microbatches=self.microbatches,
            z_loss=self.z_loss,
            sources=self.sources,
            eos_id=self.eos_id,
        )

    @property
    def tokens(self) -> int:
        """Tokens of the step, all devices together."""
        return self.sequences * self.sequence_length


def mesh_of(topology: Topology) -> Mesh:
    """The mesh over the slice that the topology describes, or over this process's devices."""
    return topology.mesh(None if topology.slice is None else described_devices(topology))


def planned_report(step: RunStep, topology: Topology, mesh: Mesh) -> dict[str, Any]:
    """What is known of a step before it is compiled.

    Raises:
      UsageError: the mesh does not divide the batch or the model.
    """
    check_divisible(
        step.architecture,
        topology,
        step.sequences // step.microbatches,
        step.sequence_length,
    )

    def flops(convention: str) -> float:
        return step.tokens * training_flops_per_token(
            step.architecture,
            step.sequence_length,
            convention,
            topology.remat,
            topology.kernel,
            attention_block=topology.attention_block,
            sequence_shards=topology.sequence,
            loss_vocab_chunks=topology.loss_vocab_chunks,
        )

    planned = memory.step_memory(
        step.architecture,
        memory.Mesh(**topology.mesh_shape),
        batch_sequences=step.sequences,
        sequence_length=step.sequence_length,
        remat=topology.remat,
        kernel=topology.kernel,
        attention_block=topology.attention_block,
        microbatches=step.microbatches,
        loss_chunk_tokens=topology.loss_chunk_tokens,
        loss_vocab_chunks=topology.loss_vocab_chunks,
        shard_optimizer_over_data=topology.shard_optimizer_over_data,
        compute_dtype=step.compute_dtype,
    )
    of = _chip_of(mesh)
    devices_per_chip = 1 if of is None else of.devices_per_chip
    return {
        "parameters": total_parameters(step.architecture),
        "chip": topology.chip,
        "slice": topology.slice,
        "slices": topology.slices,
        "devices": mesh.size,
        "chips": mesh.size // devices_per_chip,
        "mesh": topology.mesh_shape,
        "kernel": topology.kernel,
        "remat": topology.remat,
        "microbatches": step.microbatches,
        "compute_dtype": step.compute_dtype,
        "matmul_dtype": step.architecture.matmul_dtype,
        "sequences": step.sequences,
        "sequence_length": step.sequence_length,
        "tokens": step.tokens,
        "run_tokens": step.plan.tokens,
        "model_flops": {each: flops(each) for each in ("6nd", "full", "causal")},
        "hardware_flops": flops("hardware"),
        "planned_bytes_per_chip": planned.total * devices_per_chip,
    }


def compiled_report(
    step: RunStep,
    topology: Topology,
    mesh: Mesh,
    *,
    dollars_per_chip_hour: float | None = None,
    compiles: bool = True,
) -> tuple[dict[str, Any], str]:
    """Compiles a step and reads the result.

    Args:
      compiles: False stops before the compiler, after all checks.

    Returns:
      The report, and the compiled program as text.

    Raises:
      UsageError: as `planned_report`, `step_program` and `StepProgram.compile`.
      Fault: as `check_state_goes_round`.
    """
    report = planned_report(step, topology, mesh)
    with topology.in_force(mesh):
        program = step.program(topology, mesh)
        report["unsharded"] = check_sharded(program.model.abstract, topology)
        if not compiles:
            return report, ""
        started = time.perf_counter()
        compiled = program.compile(step.sequences, step.sequence_length)
        report["compile_seconds"] = time.perf_counter() - started
    check_state_goes_round(program, compiled)
    batch = program.batch(step.sequences, step.sequence_length)
    of = _chip_of(mesh)
    sizes = bytes_per_chip(program, compiled, batch, of)
    report["bytes_per_chip"] = sizes
    report["fits"] = sizes["peak"] <= sizes["usable"] if "usable" in sizes else None
    text = compiled.as_text()
    read = read_program(text, topology.mesh_shape, topology.chip)
    attention = attention_work(step, topology)
    report |= text_accounts(read, attention, report["hardware_flops"], mesh.size)
    report["estimates"] = {
        name: estimate_accounts(
            estimate(
                read,
                of,
                [
                    tuple(device.coords)
                    for device in mesh.devices.flat[: mesh.size // topology.slices]
                ],
                tokens=step.tokens,
                model_flops=report["model_flops"]["causal"],
                attention=attention,
                slices=topology.slices,
                assumptions=name,
            ),
            step.plan.tokens,
            dollars_per_chip_hour,
        )
        for name in (ASSUMPTIONS if of is not None and of.name in CLOCKS else ())
    }
    return report, text


def refusal_of(report: dict[str, Any], step: RunStep, topology: Topology) -> str | None:
    """What the compiler would say of a step whose peak is above what a chip has, and did not: how
    much is wanting and what would make it fit. None of a step that fits or has no known limit."""
    if report.get("fits") is not False:
        return None
    devices_per_chip = report["devices"] // report["chips"]
    peak, usable = (
        report["bytes_per_chip"][name] // devices_per_chip for name in ("peak", "usable")
    )
    advice = what_would_fit(
        step.architecture,
        topology,
        peak - usable,
        sequences=step.sequences,
        sequence_length=step.sequence_length,
        microbatches=step.microbatches,
        compute_dtype=step.compute_dtype,
    )
    return "\n".join([too_much(peak, usable), *advice])


def _chip_of(mesh: Mesh) -> Chip | None:
    """The chip whose devices the mesh is made of; None for a CPU and what is not in the table."""
    return chip_of_device_kind(mesh.devices.flat[0].device_kind)


def estimate_accounts(
    of: StepEstimate, run_tokens: int, dollars_per_chip_hour: float | None
) -> dict[str, Any]:
    """An estimate for the report.

    Returns:
      assumes; compute_seconds, kernel_seconds; wire_seconds by axis; and with all collectives
      hidden behind work, and with none (`_hidden`, `_exposed`): seconds of a step, mfu (causal),
      hfu, tokens_per_second, days of the run, dollars of the run (if a price is given).
    """
    accounts: dict[str, Any] = {
        "assumes": ASSUMPTIONS[of.assumptions].meaning,
        "compute_seconds": of.compute_seconds,
        "kernel_seconds": of.kernel_seconds,
        "wire_seconds": of.wire_seconds,
    }
    for way, seconds in (("hidden", of.hidden_seconds), ("exposed", of.exposed_seconds)):
        accounts |= {
            f"seconds_{way}": seconds,
            f"mfu_{way}": of.mfu(seconds),
            f"hfu_{way}": of.hfu(seconds),
            f"tokens_per_second_{way}": of.tokens / seconds,
            f"days_{way}": of.days(run_tokens, seconds),
        }
        if dollars_per_chip_hour is not None:
            accounts[f"dollars_{way}"] = of.cost(run_tokens, seconds, dollars_per_chip_hour)
    return accounts


def bytes_per_chip(
    program: StepProgram, compiled: Compiled, batch: jax.ShapeDtypeStruct, of: Chip | None
) -> dict[str, int]:
    """What the step takes of each chip's memory, by the compiler's own account.

    Args:
      batch: for which it was compiled.
      of: the chip whose devices they are; None: a device is a chip.

    Returns:
      parameters, optimizer, batch: what lies there between two steps, from shapes alone; padding:
      what the compiler's layouts add to them; gradients: float32, from shapes; activations: all
      else that comes and goes; temporary: the two together; peak: at the fullest moment; usable:
      what a program is granted (of the chips in USABLE_BYTES alone).
    """
    said = compiled.memory_analysis()
    state = program.state
    parts = {
        "parameters": _bytes_on_device(state["parameters"]),
        "optimizer": _bytes_on_device((state["optimizer"], state["step"])),
        "batch": _bytes_on_device(batch),
    }
    gradients = _bytes_on_device(program.model.updates)
    sizes = parts | {
        "padding": said.argument_size_in_bytes - sum(parts.values()),
        "gradients": gradients,
        "activations": said.temp_size_in_bytes - gradients,
        "temporary": said.temp_size_in_bytes,
        "peak": said.peak_memory_in_bytes,
    }
    if of is not None and of.name in USABLE_BYTES:
        sizes["usable"] = USABLE_BYTES[of.name]
    devices = 1 if of is None else of.devices_per_chip
    return {name: size * devices for name, size in sizes.items()}


def check_state_goes_round(program: StepProgram, compiled: Compiled) -> None:
    """Make sure that the step can be fed its own result, and that it writes it in place.

    Raises:
      Fault: a part of the state comes back in another sharding, or is not written over the old one.
    """
    before = compiled.input_shardings[0][0]
    after = compiled.output_shardings[0]
    leaves = jax.tree_util.tree_flatten_with_path(program.state)[0]
    for (path, leaf), went_in, came_out in zip(
        leaves, jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    ):
        if not went_in.is_equivalent_to(came_out, leaf.ndim):
            raise Fault(
                f"the step takes {leaf_name(path)} as {went_in} and gives it back as {came_out}"
            )
    said = compiled.memory_analysis()
    state = _bytes_on_device(program.state)
    if said.alias_size_in_bytes < state:
        raise Fault(
            f"the step writes {said.alias_size_in_bytes:,} bytes of its state in place, and the "
            f"state has {state:,}: the rest is held twice"
        )


def attention_work(step: RunStep, topology: Topology) -> AttentionWork | None:
    """What one call of 'flash' or 'cudnn' works on, on one device; None with another kernel."""
    if topology.kernel not in ("flash", "cudnn"):
        return None
    architecture, length = step.architecture, step.sequence_length
    seen = keys_per_query(length, architecture.window)
    block, touched = 0, seen
    if topology.kernel == "flash":
        block = flash_block(length, topology.attention_block, topology.sequence)
        touched = touched_keys_per_query(length, architecture.window, block)
    return AttentionWork(
        rows=step.tokens * architecture.heads / (step.microbatches * topology.devices),
        keys_touched=touched,
        keys_seen=seen,
        head_dim=architecture.head_dim,
        features=architecture.head_dim
        + (ALIBI_FEATURES if architecture.positions == "alibi" else 0),
        block=block,
    )


def text_accounts(
    read: Program, attention: AttentionWork | None, hardware_flops: float, devices: int
) -> dict[str, Any]:
    """What the compiled text says of a step, for the report.

    Args:
      read: the program of one device.
      attention: what one call of its kernels works on.
      hardware_flops: of the whole step, by the formula.

    Returns:
      hlo_flops: of the matrix products of all devices, counted in the text, and of the kernels
      that it calls; hlo_flops_error: how far from the formula, as a share; kernel_calls;
      library_calls, whose products hlo_flops lacks (on GPUs and CPUs alone);
      unknown_loops: whose trips the text does not tell (figures are then lower bounds);
      collectives: by place; traffic: by kind and axis; expensive: the ten costliest operations;
      largest_buffers: three.
    """
    counted: float = read.matmul_flops * devices
    if attention is not None:
        counted += kernel_flops(read.kernel_calls, attention) * devices
    return {
        "hlo_flops": counted,
        "hlo_flops_error": counted / hardware_flops - 1,
        "kernel_calls": read.kernel_calls,
        "library_calls": read.library_calls,
        "unknown_loops": list(read.unknown_loops),
        "estimated_cycles": read.estimated_cycles,
        "collectives": [dataclasses.asdict(each) for each in read.collectives],
        "traffic": _traffic(read),
        "expensive": [dataclasses.asdict(each) for each in read.operations[:10]],
        "largest_buffers": [dataclasses.asdict(each) for each in read.largest_buffers[:3]],
    }


def _traffic(read: Program) -> list[dict[str, Any]]:
    """Collectives of one kind along one axis together, the most bytes on the wire first.

    Returns:
      kind, axis, group_size, count, wire_bytes of a step and chip, overlapped: the share of those
      bytes that is scheduled over work, None where the text cannot tell.
    """
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for each in read.collectives:
        key = (each.kind, each.axis, each.group_size)
        row = rows.setdefault(
            key,
            {"kind": each.kind, "axis": each.axis, "group_size": each.group_size}
            | {"count": 0, "wire_bytes": 0, "hidden_bytes": 0, "told": True},
        )
        row["count"] += each.count
        row["wire_bytes"] += each.wire_bytes * each.count
        row["hidden_bytes"] += each.wire_bytes * each.count if each.overlapped else 0
        row["told"] &= each.overlapped is not None
    for row in rows.values():
        hidden, told = row.pop("hidden_bytes"), row.pop("told")
        row["overlapped"] = hidden / max(1, row["wire_bytes"]) if told or hidden else None
    return sorted(rows.values(), key=lambda row: -row["wire_bytes"])


def _bytes_on_device(tree: Any) -> int:
    """Bytes of each device's shards, from shapes alone."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )
