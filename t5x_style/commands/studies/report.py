"""`t5x-style report`: one HTML page about a run, or comparing several."""

import pathlib
from collections.abc import Sequence
from typing import Any

import gin

from t5x_style.config.checks import refuse_unconsumed
from t5x_style.errors import UsageError

CONFIGURABLES = ()

PAGE = "report.html"


@gin.configurable
def report(
    *,
    model_dirs: str | Sequence[str] | None = None,
    output: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Writes one self-contained HTML page from the files that runs left in their directories.

    Args:
      model_dirs: a run's directory; several (a list, or separated by commas) are compared.
      output: path of the page; report.html in the run's directory if there is one run.
      dry_run: reads the runs and says what would be written.
    """
    refuse_unconsumed()
    from t5x_style.reporting import read_run, write_report

    if isinstance(model_dirs, str):
        model_dirs = [part for part in model_dirs.split(",") if part]
    if not model_dirs:
        raise UsageError("--model_dirs is missing: the directory of a run, or several")
    if output is None:
        if len(model_dirs) > 1:
            raise UsageError("--output is missing: where to write the page about several runs")
        output = str(pathlib.Path(model_dirs[0]) / PAGE)
    if dry_run:
        runs = [read_run(model_dir) for model_dir in model_dirs]
        for run in runs:
            print(
                f"{run.model_dir}: {len(run.training):,} training lines, "
                f"{len(run.evaluations):,} evaluations, {len(run.events):,} events"
            )
        print(f"would write {output}")
        return {"output": output}
    path = write_report(model_dirs, output)
    print(path)
    return {"output": str(path)}
