"""The layouts that a search has compiled, as people read them."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.reporting.text.tables import table

_GIB = 2**30


def layout_line(facts: Mapping[str, Any]) -> str:
    """One layout and what came of it, in a line. See `layout_search.Trial.facts`."""
    name = f"{_mesh(facts)}, remat {facts['remat']}, {facts['microbatches']} passes"
    if facts["change"]:
        name += f", {facts['change']}"
    if facts["refusal"] is not None:
        return f"{name}: {facts['refusal'].splitlines()[0]}"
    return (
        f"{name}: {facts['seconds']:.4g} s a step, MFU {facts['mfu_hidden']:.1%} hidden / "
        f"{facts['mfu_exposed']:.1%} exposed, {facts['peak'] / _GIB:.1f} GiB a chip"
    )


def layouts_text(layouts: Sequence[Mapping[str, Any]]) -> str:
    """All of them, the fastest first; those that no other beats in both time and memory marked."""
    done = sorted((each for each in layouts if "peak" in each), key=lambda each: each["seconds"])
    refused = [each for each in layouts if "peak" not in each]
    rows = [
        (
            "*" if each["unbeaten"] else "",
            _mesh(each),
            each["remat"],
            each["microbatches"],
            each["change"],
            f"{each['peak'] / _GIB:.2f}",
            f"{each['seconds']:.4g}",
            f"{each['mfu_hidden']:.1%} / {each['mfu_exposed']:.1%}",
        )
        for each in done
    ]
    rows += [
        ("", _mesh(each), each["remat"], each["microbatches"], each["change"], *_REFUSED)
        for each in refused
    ]
    return table(rows, _HEADERS) + "\n* no other layout is as fast in as little memory"


_REFUSED = ("does not fit", "-", "-")
_HEADERS = (
    "",
    "mesh",
    "remat",
    "passes",
    "change",
    "peak GiB a chip",
    "s a step",
    "MFU hidden / exposed",
)


def _mesh(facts: Mapping[str, Any]) -> str:
    sizes = (f"{axis}={size}" for axis, size in facts["mesh"].items() if size > 1)
    return " x ".join(sizes) or "one device"
