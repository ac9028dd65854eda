"""`t5x-style compare`: the step at which two runs part, and the settings that differ."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import gin

from t5x_style.config.checks import config_differences, refuse_unconsumed
from t5x_style.errors import UsageError
from t5x_style.files import local_path
from t5x_style.ranges import NonNegativeFloat
from t5x_style.reporting import read_run, table
from t5x_style.reporting.run.comparison import Comparison, compare_runs

CONFIGURABLES: tuple[str, ...] = ()

# A step has up to five numbers for each source; so many are printed.
_SHOWN = 12


@gin.configurable
def compare(
    *,
    model_dirs: str | Sequence[str] | None = None,
    tolerance: NonNegativeFloat = 0.0,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Finds the first step at which two runs have other numbers, and the settings that differ.

    It compares the lines of metrics.jsonl. Seconds, speeds and FLOP/s are left out, since they
    depend on the machine. Where a file or a setting changed in secret, this says from when on.

    Args:
      model_dirs: the directories of two runs: a list, or separated by a comma.
      tolerance: the relative difference up to which two numbers count as the same. With 0 they are
        the same bit for bit; 1e-5 allows for another number of devices.
      dry_run: read the runs, compare nothing.
    """
    refuse_unconsumed()
    names = model_dirs.split(",") if isinstance(model_dirs, str) else list(model_dirs or ())
    if len(names) != 2:
        raise UsageError(f"--model_dirs={model_dirs or ''}: name the directories of two runs")
    first, second = (read_run(local_path(name, "--model_dirs")) for name in names)
    if dry_run:
        print(f"would compare {first.model_dir} and {second.model_dir}")
        return {}
    settings = config_differences(first.config, second.config)
    # A run's config.gin names its own folder, which always differs.
    settings = [change for change in settings if change["name"] != "train.model_dir"]
    found = compare_runs(first, second, tolerance)
    print(_text(found, tolerance))
    if settings:
        rows = [(change["name"], change["old"], change["new"]) for change in settings]
        print("\n" + table(rows, ("setting", *names)))
    return {**dataclasses.asdict(found), "settings": settings}


def _text(found: Comparison, tolerance: float) -> str:
    """The comparison, in lines for a terminal."""
    if not found.compared:
        return "the runs have no step in common"
    same = "equal bit for bit" if not tolerance else f"equal to {tolerance:g} of themselves"
    lines = []
    if not found.parted:
        last = f"{found.last_step:,}"
        lines.append(f"{found.compared:,} lines of the same steps, up to {last}, are {same}")
    else:
        step = found.parted[0].step
        lines.append(f"the runs part at step {step:,}; all lines of earlier steps are {same}")
        rows = [(one.name, one.first, one.second, one.relative) for one in found.parted[:_SHOWN]]
        lines.append(table(rows, (f"at step {step:,}", "first", "second", "relative difference")))
        if (more := len(found.parted) - _SHOWN) > 0:
            lines.append(f"and {more} more")
    if found.largest is not None:
        lines.append(
            f"the largest difference is {found.largest.relative:.2g}, of {found.largest.name} at "
            f"step {found.largest.step:,}"
        )
    for place, steps in (("first", found.only_first), ("second", found.only_second)):
        if steps:
            lines.append(
                f"the {place} run alone has lines of {len(steps):,} steps, from {steps[0]:,} to "
                f"{steps[-1]:,}"
            )
    return "\n".join(lines)
