"""Checkpoints: Orbax behind the four verbs that a run needs. Whole or absent, never half.

A checkpoint is `MODEL_DIR/checkpoint_<step>/` with two items: `state`, the sharded arrays, and
`run`, JSON with what the arrays cannot tell (the ledger). It restores onto any mesh, because what
is restored (shapes, dtypes, shardings) is always said by us. No pickle anywhere.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from t5x_style.errors import UsageError
from t5x_style.hosts import from_writer
from t5x_style.partitioning.sharding import leaf_name

PREFIX = "checkpoint"


@dataclasses.dataclass
class _Keep:
    """Which checkpoints stay, as Orbax asks for it after every save (a PreservationPolicy)."""

    newest: int
    period: int | None
    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """For each of the checkpoints, oldest first; the context holds nothing."""
        newest = {each.step for each in checkpoints[-self.newest :]}
        return [
            each.step in newest
            or each.step == self.best_step
            or (self.period is not None and each.step % self.period == 0)
            for each in checkpoints
        ]


class Checkpointer:
    """Saves asynchronously; keeps the last `keep`, every `keep_period`-th step and the best."""

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
        """The step of the newest whole checkpoint."""
        return self._manager.latest_step()

    def save(
        self, step: int, state: Any, run: Mapping[str, Any], best_step: int | None = None
    ) -> None:
        """Begin to save; returns when the arrays may be overwritten.

        Args:
          best_step: the step whose checkpoint is to be kept, however old it is.
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
        """The state of a step in the shapes, dtypes and shardings of `target`, and its `run`."""
        import orbax.checkpoint as ocp

        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), run=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.run

    def wait(self) -> None:
        """Return when every save is whole on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and release the manager's threads."""
        self._manager.close()


def checkpoint_steps(model_dir: str) -> dict[int, pathlib.Path]:
    """The whole checkpoints of a run by step; one that is being written has another name."""
    folder = pathlib.Path(model_dir).absolute()
    return {
        int(match[1]): child
        for child in (folder.iterdir() if folder.is_dir() else ())
        if (match := re.fullmatch(rf"{PREFIX}_(\d+)", child.name))
    }


def find_checkpoint(path: str) -> pathlib.Path:
    """A checkpoint folder from its own path or from a run's MODEL_DIR (then its newest).

    Of several processes, process 0 looks for all: the run may be going on.

    Raises:
      UsageError: there is none; names those that are there.
    """
    return pathlib.Path(from_writer(lambda: str(_find_checkpoint(path))))


def _find_checkpoint(path: str) -> pathlib.Path:
    folder = pathlib.Path(path).absolute()
    if (folder / "state").is_dir():
        return folder
    steps = checkpoint_steps(path)
    if not steps:
        near = sorted(child.name for child in folder.parent.glob(f"{PREFIX}_*"))
        hint = f"; beside it: {', '.join(near)}" if near else ""
        raise UsageError(f"no checkpoint at {path}: neither a checkpoint nor a run with one{hint}")
    return steps[max(steps)]


def restore_parameters(checkpoint: pathlib.Path, target: dict) -> dict:
    """The parameters alone out of a checkpoint, in the shapes and shardings of `target`.

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
