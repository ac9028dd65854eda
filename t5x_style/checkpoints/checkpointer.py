"""Checkpoints, written by Orbax: complete or absent, never partial.

A checkpoint is the folder `MODEL_DIR/checkpoint_<step>/` with two items. `state` has the sharded
arrays. `run` is JSON with the facts that are not arrays (tokens, ledger). A checkpoint can be
restored onto any mesh: the caller always gives shapes, dtypes and shardings. No pickle is used.

A file `PINNED` in the folder of a checkpoint keeps it for ever. Anybody may make one at any time.
"""

import dataclasses
import math
import pathlib
import shutil
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import jax

from t5x_style.checkpoints import manifest
from t5x_style.checkpoints.find import PREFIX, checkpoint_steps, set_aside
from t5x_style.hosts import from_writer, is_writer

PIN_FILE = "PINNED"
# Orbax writes into a folder of this name and renames it. What is to be removed gets such a name
# first, so that a kill leaves no half of a checkpoint under the name of a whole one.
UNFINISHED = ".orbax-checkpoint-tmp"
# In the name of the barrier at which Orbax waits until all processes have written their files.
WRITTEN = "async_write_complete"
STRAGGLER_SECONDS = (0.1, 0.4, 1.6)


@dataclasses.dataclass(frozen=True)
class EndedSave:
    """How a save ended.

    Attributes:
      seconds: from its start until it was whole, or had failed.
      error: why it failed; None if the checkpoint is whole on disk.
      not_removed: why an older checkpoint could not be removed after it; None if all were.
    """

    step: int
    seconds: float
    error: BaseException | None = None
    not_removed: OSError | None = None


def let_go(
    steps: Iterable[int], *, newest: int, period: int | None, kept: Collection[int] = ()
) -> list[int]:
    """The checkpoints that need not be kept, oldest first.

    Args:
      newest: number of newest steps that stay.
      period: multiples of it stay; 0 or None keeps no multiples.
      kept: further steps that stay.
    """
    steps = sorted(steps)
    return [
        step for step in steps[:-newest] if step not in kept and not (period and step % period == 0)
    ]


class Checkpointer:
    """Saves one state at a time, in a thread; keeps the newest, multiples, the best and the pinned.

    All processes of a run call its methods in the same order.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        keep: int,
        keep_period: int | None,
        identity: Mapping[str, Any] | None = None,
        timeout_seconds: float = 600.0,
    ):
        """Args:
        keep: number of newest checkpoints to keep.
        keep_period: also keep every multiple of this; 0 or None keeps no multiples.
        identity: of the run, in JSON types; every checkpoint says whose it is.
        timeout_seconds: how long the processes wait for each other in a save.
        """
        import orbax.checkpoint as ocp
        from orbax.checkpoint._src.serialization import tensorstore_utils

        # Orbax logs the bytes of each save by reading all counters of TensorStore, which never
        # frees them again: some 40 KB a save with thirty arrays.
        tensorstore_utils.get_tensorstore_raw_bytes = lambda direction=None: 0

        self._folder = pathlib.Path(model_dir).absolute()
        self._keep, self._keep_period = keep, keep_period
        self._identity = dict(identity or {})
        # Of the save that is being written.
        self._facts: dict[str, Any] = {}
        # With its processes named, Orbax waits for them by messages and not by a computation. So a
        # save may run beside the steps.
        processes = ocp.options.MultiprocessingOptions(
            active_processes=set(range(jax.process_count()))
        )
        wait_for_all = ocp.multihost.get_barrier_sync_fn(processes=processes.active_processes)

        def meet(*, key: str, timeout_ms: int) -> None:
            # Each process has written its files, and none has gone on to the manifest.
            if WRITTEN in key:
                self._write_part()
            wait_for_all(key=key, timeout_ms=timeout_ms)

        # Folders made by another thread of Orbax would hide an error, and that thread would wait
        # for minutes for a word that never comes.
        asynchronous = ocp.AsyncOptions(
            timeout_secs=math.ceil(timeout_seconds),
            create_directories_asynchronously=False,
            barrier_sync_fn=meet,
            post_finalization_callback=self._write_manifest,
        )
        items = ocp.CompositeCheckpointHandler(
            composite_options=ocp.CompositeOptions(
                multiprocessing_options=processes, async_options=asynchronous
            )
        )
        self._orbax = ocp.AsyncCheckpointer(
            items, async_options=asynchronous, multiprocessing_options=processes
        )
        self._thread: threading.Thread | None = None
        self._ended: EndedSave | None = None

    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return max(checkpoint_steps(str(self._folder)), default=None)

    def save(
        self,
        step: int,
        state: Any,
        run: Mapping[str, Any],
        *,
        best_steps: Collection[int] = (),
        last_facts: Callable[[], Mapping[str, Any]] = dict,
        make_room: bool = False,
    ) -> None:
        """Start to save; returns at once, and `state` may be donated.

        The copy of `state` lies in the memory of the host, never in that of the device.

        Args:
          run: the facts, as JSON values.
          best_steps: steps whose checkpoints are kept, however old they are.
          last_facts: called in the thread before anything is written; adds to `run`. What it
            raises ends the save.
          make_room: remove the checkpoints that this one replaces before it is written, and not
            afterwards. The newest always stays.

        Raises:
          RuntimeError: nobody has asked how the save before ended.
        """
        if self._thread is not None:
            raise RuntimeError(f"step {step}: a save is in progress, or its end was not asked for")
        state = jax.device_put(
            state,
            jax.tree.map(lambda array: array.sharding.with_memory_kind("pinned_host"), state),
        )

        def write() -> None:
            began = time.perf_counter()
            error = not_removed = None
            try:
                self._write(step, state, {**run, **last_facts()}, best_steps, make_room)
                not_removed = self._remove_old(best_steps)
            except BaseException as caught:  # handed to the thread that asks
                error = caught
            self._ended = EndedSave(step, time.perf_counter() - began, error, not_removed)

        # A thread that hangs on a dead file system does not hold the end of the process. Orbax's
        # own threads inherit that.
        self._thread = threading.Thread(target=write, name="save", daemon=True)
        self._thread.start()

    def ended(self, *, wait_seconds: float = 0.0) -> EndedSave | None:
        """How the last save ended, once; None if none has ended since the last call.

        Args:
          wait_seconds: how long to wait for one that is in progress.
        """
        if self._thread is None:
            return None
        self._thread.join(wait_seconds)
        if self._thread.is_alive():
            return None
        self._thread = None
        return self._ended

    def restore(self, step: int, target: Any) -> tuple[Any, dict]:
        """The state of a step in the shapes, dtypes and shardings of `target`, and item `run`."""
        import orbax.checkpoint as ocp

        self._join()
        restored = self._orbax.restore(
            self._folder / f"{PREFIX}_{step}",
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), run=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.run

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints after `step`, so that a run that goes on from it can save them.

        A pinned one is not removed: its folder becomes `abandoned_checkpoint_<step>`.
        """
        self._join()
        from_writer(lambda: self._forget_after(step))

    def close(self) -> None:
        """Wait for a save in progress, and release Orbax's threads."""
        self._join()
        self._orbax.close()

    def _write(
        self,
        step: int,
        state: Any,
        run: dict[str, Any],
        best_steps: Collection[int],
        make_room: bool,
    ) -> None:
        import orbax.checkpoint as ocp

        if is_writer():
            self._remove_unfinished()
        if make_room:
            self._remove_old(best_steps, coming=step)
        self._facts = {"step": step, "tokens": run["tokens"], "identity": self._identity}
        self._orbax.save(
            self._folder / f"{PREFIX}_{step}",
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                run=ocp.args.JsonSave({**run, manifest.PROMISE: True}),
            ),
        )
        self._orbax.wait_until_finished()

    def _unfinished(self) -> pathlib.Path:
        return self._folder / f"{PREFIX}_{self._facts['step']}{UNFINISHED}"

    def _write_part(self) -> None:
        """Leave the digests of this process's arrays, so that process 0 need not read them."""
        process = jax.process_index()
        for item in self._unfinished().glob("state*"):
            manifest.write_part(item, process, f"ocdbt.process_{process}")

    def _write_manifest(self) -> None:
        """Make the manifest the last file of the folder that Orbax is about to rename."""
        manifest.write(self._unfinished(), self._facts)

    def _remove_old(
        self, best_steps: Collection[int], *, coming: int | None = None
    ) -> OSError | None:
        """Remove what need not be kept, as if the step `coming` were there too.

        Returns:
          The error that kept one from being removed; the next save tries again.
        """
        if not is_writer():
            return None
        there = checkpoint_steps(str(self._folder))
        steps = set(there) if coming is None else {*there, coming}
        spared = {*best_steps, max(there, default=-1)}
        try:
            for step in let_go(steps, newest=self._keep, period=self._keep_period, kept=spared):
                self._remove(there[step])
            self._remove_unfinished()
        except OSError as error:
            return error
        return None

    def _remove(self, checkpoint: pathlib.Path) -> None:
        if not (checkpoint / PIN_FILE).exists():
            checkpoint.rename(checkpoint.with_name(checkpoint.name + UNFINISHED))

    def _remove_unfinished(self) -> None:
        """Remove what was begun, or was to be removed, when a process was killed or a save failed.

        Only between saves: the folder has one owner, and nobody else writes one.
        """
        for folder in self._folder.glob(f"{PREFIX}_*{UNFINISHED}"):
            for wait_seconds in (*STRAGGLER_SECONDS, None):
                try:
                    shutil.rmtree(folder)
                    break
                except OSError:
                    # Threads of a save that failed may still write other files of it.
                    if wait_seconds is None:
                        raise
                    time.sleep(wait_seconds)

    def _forget_after(self, step: int) -> None:
        self._remove_unfinished()
        for later, folder in checkpoint_steps(str(self._folder)).items():
            if later > step:
                self._remove(folder)
                if folder.exists():
                    set_aside(folder, "abandoned")
        self._remove_unfinished()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
