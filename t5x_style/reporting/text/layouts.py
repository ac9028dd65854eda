"""The layouts that a search has compiled, as text."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.quantities import GIB
from t5x_style.reporting.text.tables import table


def layout_line(facts: Mapping[str, Any]) -> str:
    """One layout and its result, in a line. See `compiling.search.Trial.facts`."""
    name = f"{_mesh(facts)}, remat {facts['remat']}, {facts['microbatches']} microbatches"
    if facts["change"]:
        name += f", {facts['change']}"
    if facts["refusal"] is not None:
        return f"{name}: {facts['refusal'].splitlines()[0]}"
    return (
        f"{name}: {facts['seconds']:.4g} s per step, MFU {facts['mfu_hidden']:.1%} hidden / "
        f"{facts['mfu_exposed']:.1%} exposed, {facts['peak'] / GIB:.1f} GiB per chip"
    )


def layouts_text(layouts: Sequence[Mapping[str, Any]]) -> str:
    """All layouts, the fastest first. A star marks those that no other beats in time and memory."""
    fitting = [facts for facts in layouts if "peak" in facts]
    refused = [facts for facts in layouts if "peak" not in facts]
    rows = [
        (
            "*" if facts["unbeaten"] else "",
            _mesh(facts),
            facts["remat"],
            facts["microbatches"],
            facts["change"],
            f"{facts['peak'] / GIB:.2f}",
            f"{facts['seconds']:.4g}",
            f"{facts['mfu_hidden']:.1%} / {facts['mfu_exposed']:.1%}",
        )
        for facts in sorted(fitting, key=lambda facts: facts["seconds"])
    ]
    rows += [
        ("", _mesh(facts), facts["remat"], facts["microbatches"], facts["change"], *_REFUSED)
        for facts in refused
    ]
    return table(rows, _HEADERS) + "\n* no other layout is as fast with as little memory"


_REFUSED = ("does not fit", "-", "-")
_HEADERS = (
    "",
    "mesh",
    "remat",
    "microbatches",
    "change",
    "peak GiB per chip",
    "s per step",
    "MFU hidden / exposed",
)


def _mesh(facts: Mapping[str, Any]) -> str:
    sizes = (f"{axis}={size}" for axis, size in facts["mesh"].items() if size > 1)
    return " x ".join(sizes) or "one device"
