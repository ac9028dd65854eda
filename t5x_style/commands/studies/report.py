"""`t5x-style report`: one HTML page about a run, or comparing several."""

from collections.abc import Sequence
from typing import Any

import gin

from t5x_style.config.checks import refuse_unconsumed
from t5x_style.errors import UsageError
from t5x_style.files import local_path, refuse_foreign
from t5x_style.reporting import read_run, write_report

CONFIGURABLES: tuple[str, ...] = ()

PAGE = "report.html"


@gin.configurable
def report(
    *,
    model_dirs: str | Sequence[str] | None = None,
    output: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Writes one self-contained HTML page from the files in the directories of runs.

    Args:
      model_dirs: the directory of a run, or several to compare: a list, or separated by commas.
      output: path of the page. The default for one run is report.html in its directory.
      dry_run: read the runs, print the path of the page, write nothing.
    """
    refuse_unconsumed()
    if isinstance(model_dirs, str):
        model_dirs = [part for part in model_dirs.split(",") if part]
    if not model_dirs:
        raise UsageError("--model_dirs is missing: name the directory of a run, or several")
    folders = [local_path(model_dir, "--model_dirs") for model_dir in model_dirs]
    if output is None:
        if len(folders) > 1:
            raise UsageError("--output is missing: a page about several runs needs a path")
        output = str(folders[0] / PAGE)
    page = local_path(output, "--output")
    refuse_foreign(page, "--output")
    if dry_run:
        for run in map(read_run, folders):
            print(
                f"{run.model_dir}: {len(run.training):,} training lines, "
                f"{len(run.evaluations):,} evaluations, {len(run.events):,} events"
            )
            for fault in run.faults:
                print(f"{run.model_dir}: {fault}")
        print(f"would write {page}")
        return {"output": output}
    path = write_report(folders, page)
    print(path)
    return {"output": str(path)}
