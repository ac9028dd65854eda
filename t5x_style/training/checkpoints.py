"""Checkpoints, written by Orbax: complete or absent, never partial.

A checkpoint is the folder `MODEL_DIR/checkpoint_<step>/` with two items. `state` has the sharded
arrays. `run` is JSON with the facts that are not arrays (tokens, ledger). A checkpoint can be
restored onto any mesh: the caller always gives shapes, dtypes and shardings. No pickle is used.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5x_style.errors import UsageError
from t5x_style.files import local_path
from t5x_style.hosts import from_writer
from t5x_style.partitioning.sharding import leaf_name

PREFIX = "checkpoint"


@dataclasses.dataclass
class _Keep:
    """The checkpoints to keep; an Orbax PreservationPolicy, asked after every save."""

    newest: int
    period: int | None
    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """Whether to keep each checkpoint, oldest first; the context is not used."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [
            step in steps[-self.newest :]
            or step == self.best_step
            or (bool(self.period) and step % self.period == 0)
            for step in steps
        ]


class Checkpointer:
    """Saves asynchronously; keeps the newest `keep`, multiples of `keep_period` and the best.

    A `keep_period` of 0 or None keeps no multiples.
    """

    def __init__(self, model_dir: str, *, keep: int, keep_period: int | None):
        import orbax.checkpoint as ocp

        self._keep = _Keep(keep, keep_period)
        self._manager = ocp.CheckpointManager(
            pathlib.Path(model_dir).absolute(),
            options=ocp.CheckpointManagerOptions(
                step_prefix=PREFIX,
                preservation_policy=self._keep,
                enable_async_checkpointing=True,
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: Any, run: Mapping[str, Any], best_step: int | None = None
    ) -> None:
        """Start to save; returns when the arrays may be overwritten.

        Args:
          best_step: the step whose checkpoint is kept, however old it is.
        """
        import orbax.checkpoint as ocp

        self._keep.best_step = best_step
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(dict(run))
            ),
        )

    def restore(self, step: int, target: Any) -> tuple[Any, dict]:
        """The state of a step in the shapes, dtypes and shardings of `target`, and item `run`."""
        import orbax.checkpoint as ocp

        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), run=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.run

    def wait(self) -> None:
        """Return when every save is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and release the manager's threads."""
        self._manager.close()


def checkpoint_steps(model_dir: str) -> dict[int, pathlib.Path]:
    """The complete checkpoints of a run by step; an unfinished one has another name."""
    folder = local_path(model_dir, "MODEL_DIR").absolute()
    return {
        int(match[1]): child
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(rf"{PREFIX}_(\d+)", child.name))
    }


def find_checkpoint(path: str) -> pathlib.Path:
    """The checkpoint folder at a path, or the newest one of a run's MODEL_DIR.

    Process 0 looks for all processes, because the run may still be training.

    Raises:
      UsageError: there is none; names the checkpoints next to it.
    """
    return pathlib.Path(from_writer(lambda: str(_find_checkpoint(path))))


def _find_checkpoint(path: str) -> pathlib.Path:
    folder = local_path(path, "checkpoint").absolute()
    if (folder / "state").is_dir():
        return folder
    steps = checkpoint_steps(path)
    if not steps:
        near = sorted(child.name for child in folder.parent.glob(f"{PREFIX}_*"))
        hint = f"; next to it: {', '.join(near)}" if near else ""
        raise UsageError(f"no checkpoint at {path}: neither a checkpoint nor a run with one{hint}")
    return steps[max(steps)]


def restore_parameters(checkpoint: pathlib.Path, target: dict) -> dict:
    """Only the parameters of a checkpoint, in the shapes and shardings of `target`.

    Raises:
      UsageError: the checkpoint holds another architecture.
    """
    import orbax.checkpoint as ocp

    folder = checkpoint / "state"
    stored = ocp.PyTreeCheckpointHandler().metadata(folder).tree["parameters"]
    found = {leaf_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(stored)}
    wanted = {leaf_name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(target)}
    for name in sorted(found.keys() | wanted.keys()):
        if found.get(name) != wanted.get(name):
            raise UsageError(
                f"{checkpoint} holds another architecture: {name} is "
                f"{found.get(name, 'absent')} there and {wanted.get(name, 'absent')} here"
            )
    item = {"parameters": target}
    with ocp.PyTreeCheckpointer() as checkpointer:
        restored = checkpointer.restore(
            folder,
            args=ocp.args.PyTreeRestore(
                item=item,
                restore_args=ocp.checkpoint_utils.construct_restore_args(item),
                partial_restore=True,
            ),
        )
    return restored["parameters"]
