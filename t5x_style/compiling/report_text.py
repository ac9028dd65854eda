"""The report on a compiled step as text for people."""

from t5x_style.accounting import StepShape
from t5x_style.accounting.flops import attention_tile
from t5x_style.compiling.estimates import ASSUMPTIONS
from t5x_style.compiling.memory_use import ChipMemory
from t5x_style.compiling.report import CompileReport, ProgramAccounts
from t5x_style.quantities import GIB, SECONDS_PER_DAY, count, duration
from t5x_style.reporting.text.tables import dtypes_text, table

# A larger difference between program and formula means that one of the two is wrong.
_TOLERATED_ERROR = 0.005


def report_text(report: CompileReport) -> str:
    """The tables of a report; without a compiled step only the first."""
    parts = [table(_step_rows(report))]
    if report.memory is None or report.accounts is None:
        return parts[0]
    accounts = report.accounts
    rows = _byte_rows(report.memory, report.planned_bytes_per_chip)
    parts.append(table(rows, ("bytes per chip", "GiB", "")))
    parts.append(_flops_lines(accounts))
    if report.estimates:
        parts.append(table(_estimate_rows(report), _ESTIMATE_HEADERS))
        parts += [f"{name}: {ASSUMPTIONS[name].meaning}" for name in report.estimates]
    elif report.topology.slice is not None:
        parts.append(
            f"no time estimate: XLA prints no cycles for {report.topology.chip}. On the device it "
            "tries several kernels for each product; here it took its first choice"
        )
    parts.append(table(_traffic_rows(accounts), _TRAFFIC_HEADERS))
    if accounts.expensive:
        operations = [
            (row.kind, row.cycles, row.count, row.name, row.source) for row in accounts.expensive
        ]
        parts.append(
            table(operations, ("most expensive", "cycles", "per step", "operation", "source"))
        )
    buffers = [
        (buffer.shape, f"{buffer.bytes / GIB:.3f}", buffer.count, buffer.source)
        for buffer in accounts.largest_buffers
    ]
    parts.append(table(buffers, ("largest buffers", "GiB", "count", "source")))
    return "\n\n".join(parts)


def _step_rows(report: CompileReport) -> list[tuple[str, str]]:
    topology, shape, flops = report.topology, report.shape, report.model_flops
    where = f"{report.devices} devices"
    if topology.slice is not None:
        name = f"{topology.chip}:{topology.slice}"
        slices = f"{topology.slices} x {name}" if topology.slices > 1 else name
        where = f"{slices}, {report.chips} chips, {where}"
    return [
        ("parameters", f"{report.parameters:,}"),
        ("target", where),
        ("mesh", topology.mesh_text),
        ("step", _step_text(shape, report)),
        (
            "FLOPs per step",
            f"6 N D {flops['6nd']:.4g}, full {flops['full']:.4g}, causal {flops['causal']:.4g}, "
            f"hardware {report.hardware_flops:.4g}",
        ),
        ("unsharded", f"{report.unsharded:.2%} of the parameters' bytes"),
    ]


def _step_text(shape: StepShape, report: CompileReport) -> str:
    topology = report.topology
    dtypes = dtypes_text(shape.compute_dtype, shape.architecture.matmul_dtype)
    kernel = topology.kernel
    if kernel == "flash":
        tile = attention_tile(shape.architecture, shape.sequence_length, topology)
        kernel += f" in tiles of {tile:,}"
    return (
        f"{shape.sequences:,} x {shape.sequence_length:,} tokens, microbatches "
        f"{topology.microbatches}, {dtypes}, attention {kernel}, remat {topology.remat}"
    )


def _byte_rows(memory: ChipMemory, planned: int) -> list[tuple[str, str, str]]:
    notes = {
        "padding": "of the arguments, in the compiler's layouts",
        "activations": "temporary memory without the gradients",
        "peak": {True: "fits", False: "does NOT fit", None: ""}[memory.fits],
    }
    rows = [
        (name, f"{size / GIB:.3f}", notes.get(name, "")) for name, size in memory.to_json().items()
    ]
    difference = f"{planned / memory.peak - 1:+.0%} against the peak"
    return [*rows, ("planned", f"{planned / GIB:.3f}", f"the planner's estimate, {difference}")]


def _flops_lines(accounts: ProgramAccounts) -> str:
    error = accounts.hlo_flops_error
    agreement = f"{error:+.3%} of the formula" if error else "equal to the formula"
    if abs(error) > _TOLERATED_ERROR:
        agreement += ": the program multiplies more or less than it should"
    lines = [f"matrix products in the program: {accounts.hlo_flops:.6g} FLOPs, {agreement}"]
    if accounts.kernel_calls:
        calls = ", ".join(f"{name} x {n}" for name, n in accounts.kernel_calls.items())
        lines.append(f"kernels, whose products are not in the program's text: {calls}")
    if accounts.library_calls:
        calls = ", ".join(f"{name} x {n}" for name, n in accounts.library_calls.items())
        lines.append(f"library routines, whose products are NOT in these FLOPs: {calls}")
    if accounts.unknown_loops:
        lines.append(
            "loops whose trips the text does not show. They are counted once, so every figure is a "
            f"lower bound: {', '.join(accounts.unknown_loops)}"
        )
    return "\n".join(lines)


_TRAFFIC_HEADERS = ("collective", "axis", "chips", "per step", "GB sent per chip", "overlapped")


def _traffic_rows(accounts: ProgramAccounts) -> list[tuple[object, ...]]:
    return [
        (
            row.kind,
            row.axis,
            row.group_size,
            row.count,
            f"{row.wire_bytes / 1e9:.3f}",
            "unknown" if row.overlapped is None else f"{row.overlapped:.0%}",
        )
        for row in accounts.traffic
    ]


_ESTIMATE_HEADERS = (
    "estimate",
    "collectives",
    "step",
    "MFU causal",
    "HFU",
    "tokens/s",
    "whole run",
    "dollars",
)


def _estimate_rows(report: CompileReport) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    price, tokens = report.dollars_per_chip_hour, report.run_tokens
    for name, step in report.estimates.items():
        for way, seconds in (("hidden", step.hidden_seconds), ("exposed", step.exposed_seconds)):
            rows.append(
                (
                    name,
                    way,
                    f"{seconds:.4g} s",
                    f"{step.mfu(seconds):.1%}",
                    f"{step.hfu(seconds):.1%}",
                    count(step.tokens / seconds),
                    duration(SECONDS_PER_DAY * step.days(tokens, seconds)),
                    None if price is None else f"{step.cost(tokens, seconds, price):,.0f}",
                )
            )
    return rows
