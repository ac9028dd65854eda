"""`t5x-style export`: write the parameters of a checkpoint alone."""

from __future__ import annotations

from typing import Any

import gin

from t5x_style.config.checks import refuse_unconsumed
from t5x_style.files import LocalPath
from t5x_style.ranges import NonNegativeInt

CONFIGURABLES = ()


@gin.configurable
def export(
    *,
    model_dir: LocalPath,
    output: LocalPath,
    step: NonNegativeInt | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Writes the parameters of a run's checkpoint alone, without the state of the optimizer.

    The new folder is used like the run's: by generate and evaluate, and as INITIAL_CHECKPOINT_PATH.

    Args:
      model_dir: the run, or one of its checkpoints.
      output: a folder that is not there yet, or empty.
      step: the checkpoint of this step; the newest if not given.
      dry_run: only check that the model can be loaded.
    """
    refuse_unconsumed()
    from t5x_style.accounting import Topology
    from t5x_style.inference import export_parameters, restore_model

    if dry_run:
        return {
            "model_dir": model_dir,
            "step": restore_model(model_dir, Topology(), step=step).step,
        }
    checkpoint = export_parameters(model_dir, output, step=step)
    print(f"the parameters are in {checkpoint}")
    return {"model_dir": model_dir, "checkpoint": str(checkpoint)}
