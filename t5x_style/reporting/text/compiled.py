"""The report on a compiled step as text."""

from collections.abc import Mapping
from typing import Any

from t5x_style.quantities import GIB, SECONDS_PER_DAY, count, duration
from t5x_style.reporting.text.tables import dtypes_text, table


def compiled_text(report: Mapping[str, Any]) -> str:
    """The tables of a report by `t5x-style compile`; sections that it lacks are left out."""
    parts = [table(_step_rows(report))]
    if "bytes_per_chip" in report:
        parts.append(table(_byte_rows(report), ("bytes per chip", "GiB", "")))
    if "hlo_flops" in report:
        parts.append(_flops_line(report))
        if report["estimates"]:
            parts.append(table(_estimate_rows(report), _ESTIMATE_HEADERS))
            parts += [
                f"{name}: {estimate['assumes']}" for name, estimate in report["estimates"].items()
            ]
        elif report["slice"] is not None:
            parts.append(
                f"no time estimate: XLA gives no cycles for {report['chip']}. On the device it "
                "tries several kernels for each product; here it took its first choice"
            )
        parts.append(
            table(
                _traffic_rows(report),
                ("collective", "axis", "chips", "per step", "GB sent per chip", "overlapped"),
            )
        )
        if report["expensive"]:
            parts.append(
                table(
                    [
                        (row["kind"], row["cycles"], row["count"], row["name"], row["source"])
                        for row in report["expensive"]
                    ],
                    ("most expensive", "cycles", "per step", "operation", "source"),
                )
            )
        parts.append(
            table(
                [
                    (row["shape"], f"{row['bytes'] / GIB:.3f}", row["count"], row["source"])
                    for row in report["largest_buffers"]
                ],
                ("largest buffers", "GiB", "count", "source"),
            )
        )
    return "\n\n".join(parts)


def _step_rows(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    mesh = " x ".join(f"{axis}={size}" for axis, size in report["mesh"].items() if size > 1)
    where = f"{report['devices']} devices"
    if report["slice"] is not None:
        shape = f"{report['chip']}:{report['slice']}"
        slices = f"{report['slices']} x {shape}" if report["slices"] > 1 else shape
        where = f"{slices}, {report['chips']} chips, {where}"
    flops = report["model_flops"]
    return [
        ("parameters", f"{report['parameters']:,}"),
        ("target", where),
        ("mesh", mesh or "one device"),
        (
            "step",
            f"{report['sequences']:,} x {report['sequence_length']:,} tokens, "
            f"{report['microbatches']} microbatches, "
            f"{dtypes_text(report['compute_dtype'], report['matmul_dtype'])}, attention "
            f"{report['kernel']}, remat {report['remat']}",
        ),
        (
            "FLOPs per step",
            f"6 N D {flops['6nd']:.4g}, full {flops['full']:.4g}, causal {flops['causal']:.4g}, "
            f"hardware {report['hardware_flops']:.4g}",
        ),
        ("unsharded", f"{report['unsharded']:.2%} of the parameters' bytes"),
    ]


def _byte_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    sizes = report["bytes_per_chip"]
    notes = {
        "padding": "of the arguments, in the compiler's layouts",
        "activations": "temporary memory without the gradients",
        "peak": {True: "fits", False: "does NOT fit", None: ""}[report["fits"]],
    }
    rows = [(name, f"{size / GIB:.3f}", notes.get(name, "")) for name, size in sizes.items()]
    planned = report["planned_bytes_per_chip"]
    off = f"{planned / sizes['peak'] - 1:+.0%} against the peak"
    return [*rows, ("planned", f"{planned / GIB:.3f}", f"the planner's estimate, {off}")]


def _flops_line(report: Mapping[str, Any]) -> str:
    error = report["hlo_flops_error"]
    agrees = "equal to the formula"
    if error:
        agrees = f"{error:+.3%} against the formula"
    if abs(error) > 0.005:
        agrees += ": the program multiplies more or less than it should"
    lines = [f"matrix products in the program: {report['hlo_flops']:.6g} FLOPs, {agrees}"]
    if report["kernel_calls"]:
        calls = ", ".join(f"{name} x {count}" for name, count in report["kernel_calls"].items())
        lines.append(f"kernels, whose operations are not in the program's text: {calls}")
    if report["library_calls"]:
        calls = ", ".join(f"{name} x {count}" for name, count in report["library_calls"].items())
        lines.append(f"library routines, whose products are NOT in that sum: {calls}")
    if report["unknown_loops"]:
        lines.append(
            "loops of unknown length, counted once, so that the sum is a lower bound: "
            + ", ".join(report["unknown_loops"])
        )
    return "\n".join(lines)


def _traffic_rows(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    return [
        (
            row["kind"],
            row["axis"],
            row["group_size"],
            row["count"],
            f"{row['wire_bytes'] / 1e9:.3f}",
            "unknown" if row["overlapped"] is None else f"{row['overlapped']:.0%}",
        )
        for row in report["traffic"]
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


def _estimate_rows(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, estimate in report["estimates"].items():
        for way in ("hidden", "exposed"):
            dollars = estimate.get(f"dollars_{way}")
            rows.append(
                (
                    name,
                    way,
                    f"{estimate[f'seconds_{way}']:.4g} s",
                    f"{estimate[f'mfu_{way}']:.1%}",
                    f"{estimate[f'hfu_{way}']:.1%}",
                    count(estimate[f"tokens_per_second_{way}"]),
                    duration(SECONDS_PER_DAY * estimate[f"days_{way}"]),
                    None if dollars is None else f"{dollars:,.0f}",
                )
            )
    return rows
