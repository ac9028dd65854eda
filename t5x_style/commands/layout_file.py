"""A layout as a topology gin file."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from t5x_style.partitioning import Topology


def layout_gin(topology: Topology, microbatches: int, head: str) -> str:
    """The text of a file of gin_configs/topologies/, for `train` and `compile`.

    Args:
      topology: what differs from Topology's defaults is written, and what a search settles (mesh,
        remat, flags) in any case, so that it holds behind files that say otherwise.
      microbatches: passes per step, which a layout settles too.
      head: what to say of it.
    """
    lines = [f"# {line}" for line in head.splitlines()]
    settled = {*topology.mesh_shape, "remat", "compiler_flags"}
    for field in dataclasses.fields(topology):
        value = getattr(topology, field.name)
        default = {} if field.default is dataclasses.MISSING else field.default
        if value == default and field.name not in settled:
            continue
        if isinstance(value, dict) and value:
            lines.append(f"Topology.{field.name} = {{")
            lines += [f"    {key!r}: {item!r}," for key, item in value.items()]
            lines.append("}")
        else:
            lines.append(f"Topology.{field.name} = {value!r}")
    lines.append(f"MICROBATCHES = {microbatches}")
    return "\n".join(lines) + "\n"
