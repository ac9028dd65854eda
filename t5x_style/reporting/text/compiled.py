"""The report on a compiled step as people read it."""

from collections.abc import Mapping
from typing import Any

from t5x_style.quantities import count, duration
from t5x_style.reporting.text.tables import dtypes_text, table

_GIB = 2**30


def compiled_text(report: Mapping[str, Any]) -> str:
    """The tables of a report that `t5x-style compile` returns, as far as it goes."""
    parts = [table(_step_rows(report))]
    if "bytes_per_chip" in report:
        parts.append(table(_byte_rows(report), ("bytes a chip", "GiB", "")))
    if "hlo_flops" in report:
        parts.append(_flops_line(report))
        if report["estimates"]:
            parts.append(table(_estimate_rows(report), _ESTIMATE_HEADERS))
            parts += [f"{name}: {each['assumes']}" for name, each in report["estimates"].items()]
        elif report["slice"] is not None:
            parts.append(
                f"no seconds: XLA writes no cycles of {report['chip']}. On the device it tries "
                "several kernels for each product; here it took its first choice"
            )
        parts.append(
            table(
                _traffic_rows(report),
                ("collective", "over", "chips", "a step", "GB sent a chip", "over work"),
            )
        )
        if report["expensive"]:
            parts.append(
                table(
                    [
                        (each["kind"], each["cycles"], each["count"], each["name"], each["source"])
                        for each in report["expensive"]
                    ],
                    ("costliest", "cycles", "a step", "operation", "from"),
                )
            )
        parts.append(
            table(
                [
                    (each["shape"], f"{each['bytes'] / _GIB:.3f}", each["count"], each["source"])
                    for each in report["largest_buffers"]
                ],
                ("largest buffers", "GiB", "times", "from"),
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
        ("for", where),
        ("mesh", mesh or "one device"),
        (
            "step",
            f"{report['sequences']:,} x {report['sequence_length']:,} tokens, "
            f"{report['microbatches']} passes, "
            f"{dtypes_text(report['compute_dtype'], report['matmul_dtype'])}, attention "
            f"{report['kernel']}, remat {report['remat']}",
        ),
        (
            "FLOPs a step",
            f"6 N D {flops['6nd']:.4g}, full {flops['full']:.4g}, causal {flops['causal']:.4g}, "
            f"hardware {report['hardware_flops']:.4g}",
        ),
        ("unsharded", f"{report['unsharded']:.2%} of the parameters' bytes"),
    ]


def _byte_rows(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    sizes = report["bytes_per_chip"]
    notes = {
        "padding": "of the arguments, by the compiler's layouts",
        "activations": "temporary without the gradients",
        "peak": {True: "fits", False: "does NOT fit", None: ""}[report["fits"]],
    }
    rows = [(name, f"{size / _GIB:.3f}", notes.get(name, "")) for name, size in sizes.items()]
    planned = report["planned_bytes_per_chip"]
    off = f"{planned / sizes['peak'] - 1:+.0%} of the peak"
    return [*rows, ("planned", f"{planned / _GIB:.3f}", f"what the planner expects: {off}")]


def _flops_line(report: Mapping[str, Any]) -> str:
    error = report["hlo_flops_error"]
    agrees = "as the formula says"
    if error:
        agrees = f"{error:+.3%} of the formula"
    if abs(error) > 0.005:
        agrees += ": the program multiplies more or less than it should"
    lines = [f"matrix products in the program: {report['hlo_flops']:.6g} FLOPs, {agrees}"]
    if report["kernel_calls"]:
        calls = ", ".join(f"{name} x {count}" for name, count in report["kernel_calls"].items())
        lines.append(f"kernels, which the program's text does not show: {calls}")
    if report["library_calls"]:
        calls = ", ".join(f"{name} x {count}" for name, count in report["library_calls"].items())
        lines.append(f"library routines, whose products are NOT in that sum: {calls}")
    if report["unknown_loops"]:
        lines.append(
            "loops whose trips the text does not tell, counted once, so that all is a lower bound: "
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
            "not told" if row["overlapped"] is None else f"{row['overlapped']:.0%}",
        )
        for row in report["traffic"]
    ]


_ESTIMATE_HEADERS = (
    "estimated, by assumptions",
    "collectives",
    "step",
    "MFU causal",
    "HFU",
    "tokens/s",
    "the run",
    "dollars",
)


def _estimate_rows(report: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for name, each in report["estimates"].items():
        for way in ("hidden", "exposed"):
            dollars = each.get(f"dollars_{way}")
            rows.append(
                (
                    name,
                    way,
                    f"{each[f'seconds_{way}']:.4g} s",
                    f"{each[f'mfu_{way}']:.1%}",
                    f"{each[f'hfu_{way}']:.1%}",
                    count(each[f"tokens_per_second_{way}"]),
                    duration(86400 * each[f"days_{way}"]),
                    None if dollars is None else f"{dollars:,.0f}",
                )
            )
    return rows
