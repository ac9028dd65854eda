"""Finds the whole checkpoints of a run, and reads the parameters of one."""

import dataclasses
import functools
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from t5x_style.checkpoints import manifest
from t5x_style.errors import UsageError
from t5x_style.files import local_path, sync
from t5x_style.hosts import from_all, from_writer, is_writer
from t5x_style.partitioning.sharding import leaf_name

PREFIX = "checkpoint"
# An unfinished one has another name, and no leading zeros are written.
NAME = rf"{PREFIX}_(0|[1-9][0-9]*)"
# Given the manifest of a checkpoint: whose it is, if not of the run that asks; None if of that.
Whose = Callable[[Mapping[str, Any]], str | None]


@dataclasses.dataclass(frozen=True)
class Refused:
    """What has the name of a checkpoint, and is not one that the run can use.

    Attributes:
      name: of the file or folder in MODEL_DIR.
      reason: what is wrong, with the file; or whose it is.
    """

    name: str
    step: int
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclasses.dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, and those after it that are not.

    Attributes:
      step: None if there is none.
      verified: whether its bytes were compared with a manifest; an older version wrote none.
      refused: newest first.
    """

    step: int | None
    verified: bool
    refused: tuple[Refused, ...]

    @property
    def notices(self) -> list[str]:
        """What a person should know, in words."""
        found = [str(refused) for refused in self.refused]
        if self.step is not None and not self.verified:
            found.append(_unverified(f"{PREFIX}_{self.step}"))
        return found


def _unverified(name: str) -> str:
    return f"{name} is not verified: an older version wrote it, without {manifest.MANIFEST_FILE}"


def checkpoint_steps(model_dir: str) -> dict[int, pathlib.Path]:
    """The checkpoints of a run by step, by their names and without a look at their bytes.

    A start moves what is not whole aside (see `find_newest`), so that what is left is.
    """
    return {step: path for step, path in named_checkpoints(model_dir) if (path / "state").is_dir()}


def named_checkpoints(model_dir: str) -> list[tuple[int, pathlib.Path]]:
    """(step, path) of all that is called a checkpoint, newest first."""
    folder = local_path(model_dir, "MODEL_DIR").absolute()
    return sorted(
        (
            (int(match[1]), child)
            for child in (folder.iterdir() if folder.is_dir() else ())
            if (match := re.fullmatch(NAME, child.name))
        ),
        reverse=True,
    )


def find_newest(model_dir: str, whose: Whose, *, first: int = 0, last: int | None = None) -> Found:
    """Verify the checkpoints of a run, newest first, until one is whole.

    Of the older ones, only those that are no checkpoints at all are refused. All processes call
    this. Each reads its share of the bytes. Nothing is changed.

    Args:
      whose: called in process 0.
      first, last: look at the steps from `first` to `last` alone.
    """
    named = from_writer(lambda: [(step, path.name) for step, path in named_checkpoints(model_dir)])
    folder, refused = local_path(model_dir, "MODEL_DIR").absolute(), []
    step, verified = None, False
    for candidate, name in named:
        if candidate < first or (last is not None and candidate > last):
            continue
        if step is not None:
            # Its bytes are verified when a run goes on from it.
            reason = from_writer(functools.partial(_shape_fault, folder / name))
        else:
            reason, verified = _fault(folder / name, whose, candidate)
            step = None if reason else candidate
        if reason is not None:
            refused.append(Refused(name, candidate, reason))
    return Found(step, verified, tuple(refused))


def _fault(folder: pathlib.Path, whose: Whose, step: int | None) -> tuple[str | None, bool]:
    """What is wrong with a checkpoint, or None; and whether it was compared with a manifest."""
    reason, verified = from_writer(lambda: _outline_fault(folder, whose, step))
    if reason is None and verified:
        reasons = from_all(lambda process, count: _content_fault(folder, process, count))
        reason = next((reason for reason in reasons if reason is not None), None)
    return reason, verified


def _outline_fault(folder: pathlib.Path, whose: Whose, step: int | None) -> tuple[str | None, bool]:
    if (reason := _shape_fault(folder)) is not None:
        return reason, False
    try:
        written = manifest.read(folder)
    except ValueError as error:
        return str(error), True
    if written is None:
        return manifest.older_fault(folder), False
    reason = manifest.outline_fault(folder, written)
    if reason is None and step not in (None, written["step"]):
        reason = f"is the checkpoint of step {written['step']:,}"
    return reason or whose(written), True


def _shape_fault(folder: pathlib.Path) -> str | None:
    if not folder.is_dir():
        return "is not a folder"
    return None if (folder / "state").is_dir() else "has no folder state"


def _content_fault(folder: pathlib.Path, process: int, count: int) -> str | None:
    try:
        written = manifest.read(folder)
    except ValueError as error:
        return str(error)
    if written is None:
        return f"{manifest.MANIFEST_FILE} is missing"
    return manifest.content_fault(folder, written, process, count)


def set_aside(path: pathlib.Path, what: str) -> pathlib.Path:
    """Give a checkpoint the name `<what>_<name>`, or `<what>_<name>_2` and so on.

    Returns:
      The new path. Nothing is replaced.
    """
    aside, number = path.with_name(f"{what}_{path.name}"), 1
    while os.path.lexists(aside):
        number += 1
        aside = path.with_name(f"{what}_{path.name}_{number}")
    os.rename(path, aside)
    sync(path.parent)
    return aside


def find_checkpoint(path: str, whose: Whose, *, step: int | None = None) -> pathlib.Path:
    """The verified checkpoint at a path, or the newest whole one of a run's MODEL_DIR.

    All processes call this. Process 0 looks for all, because the run may still be training. Nothing
    is changed. Newer ones that are not whole are named on standard error.

    Args:
      path: a checkpoint, or MODEL_DIR.
      step: of a MODEL_DIR, the checkpoint of this step.

    Raises:
      UsageError: there is none; or the one that was asked for, or each of them, is not whole.
    """
    folder = local_path(path, "checkpoint").absolute()
    if step is not None:
        folder = folder / f"{PREFIX}_{step}"
    from_writer(lambda: refuse_absent(str(folder)))
    if not from_writer(lambda: _is_checkpoint(folder)):
        found = find_newest(str(folder), whose)
        if found.step is None:
            raise UsageError(f"no checkpoint in {path} is whole:{listed(found.refused)}")
        checkpoint, notices = folder / f"{PREFIX}_{found.step}", found.notices
    else:
        named = re.fullmatch(NAME, folder.name)
        reason, verified = _fault(folder, whose, int(named[1]) if named else None)
        if reason is not None:
            raise UsageError(f"{folder}: {reason}{_next_to(folder)}")
        checkpoint, notices = folder, [] if verified else [_unverified(folder.name)]
    if is_writer():
        for notice in notices:
            print(f"warning: {checkpoint.parent}: {notice}", file=sys.stderr)
    return checkpoint


def run_folder(path: str) -> str:
    """The MODEL_DIR of a path that `find_checkpoint` takes."""
    folder = local_path(path, "checkpoint")
    return str(folder.parent) if _is_checkpoint(folder) else path


def listed(refused: Sequence[Refused]) -> str:
    """Each on a line of its own, for the end of a message."""
    return "".join(f"\n  {checkpoint}" for checkpoint in refused)


def _is_checkpoint(folder: pathlib.Path) -> bool:
    """Whether a path is meant as a checkpoint, and not as a MODEL_DIR."""
    return bool(re.fullmatch(NAME, folder.name)) or (folder / "state").is_dir()


def refuse_absent(path: str) -> None:
    """Check that there is a checkpoint at a path that `find_checkpoint` takes, whole or not.

    Raises:
      UsageError: there is none; names the checkpoints next to it.
    """
    folder = local_path(path, "checkpoint").absolute()
    is_one = _is_checkpoint(folder)
    if not (os.path.lexists(folder) if is_one else named_checkpoints(str(folder))):
        raise UsageError(
            f"no checkpoint at {folder}: neither a checkpoint nor a run with one{_next_to(folder)}"
        )


def _next_to(folder: pathlib.Path) -> str:
    near = sorted(child.name for child in folder.parent.glob(f"{PREFIX}_*") if child != folder)
    return f"; next to it: {', '.join(near)}" if near else ""


def step_of(checkpoint: pathlib.Path) -> int:
    """The step of a checkpoint, also where its folder was moved aside or given another name.

    Raises:
      UsageError: an older version wrote it, without a manifest, and its name has no step.
    """
    if (written := manifest.read(checkpoint)) is not None:
        return written["step"]
    if (named := re.search(NAME, checkpoint.name)) is None:
        raise UsageError(f"{checkpoint} has no {manifest.MANIFEST_FILE}: name it {PREFIX}_<step>")
    return int(named[1])


def restore_facts(checkpoint: pathlib.Path) -> dict:
    """Only the item `run` of a checkpoint: the facts that are not arrays."""
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as checkpointer:
        return checkpointer.restore(checkpoint / "run")


def has_parameters_alone(checkpoint: pathlib.Path) -> bool:
    """Whether a checkpoint has no optimizer's state, as what `export` writes."""
    import orbax.checkpoint as ocp

    return set(ocp.PyTreeCheckpointHandler().metadata(checkpoint / "state").tree) == {"parameters"}


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
