"""Writes the parameters of a run alone, without the state of the optimizer."""

import pathlib
import shutil

from t5x_style.accounting import Topology
from t5x_style.checkpoints import Checkpointer
from t5x_style.checkpoints.find import PREFIX, restore_facts
from t5x_style.errors import Fault, UsageError
from t5x_style.files import local_path
from t5x_style.inference.restored import restore_model
from t5x_style.reporting import PLAN_FILE


def export_parameters(model_dir: str, output: str, *, step: int | None = None) -> pathlib.Path:
    """Write a checkpoint of the parameters, with the plan and the vocabulary of their run.

    `generate`, `evaluate` and INITIAL_CHECKPOINT_PATH take the folder as they take a run's. It
    cannot be trained on: it has no state of an optimizer.

    Args:
      model_dir: the run, or one of its checkpoints.
      output: a folder that is not there yet, or empty.
      step: of the checkpoint; the newest whole one if not given.

    Returns:
      The new checkpoint.

    Raises:
      UsageError: `output` has files; or as `restore_model`.
      Fault: the files cannot be written.
    """
    folder = local_path(output, "output").absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"output = {output} is there already: name another folder")
    restored = restore_model(model_dir, Topology(), step=step)
    name = f"{PREFIX}_{restored.step}"
    checkpointer = Checkpointer(
        str(folder), keep=1, keep_period=None, identity=restored.derived.identity
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(restored.checkpoint.parent / PLAN_FILE, folder / PLAN_FILE)
        restored.tokenizer.write_copy(str(folder))
        tokens = restore_facts(restored.checkpoint)["tokens"]
        checkpointer.save(restored.step, {"parameters": restored.parameters}, {"tokens": tokens})
        while (ended := checkpointer.ended(wait_seconds=1.0)) is None:
            pass
    except OSError as error:
        raise Fault(f"cannot write {folder}: {error}") from error
    checkpointer.close()
    if ended.error is not None:
        raise Fault(f"cannot write {folder / name}: {ended.error}") from ended.error
    return folder / name
