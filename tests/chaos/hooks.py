"""A command line in a process of its own, with the hooks of a fault.

Hooks are JSON, [[name, {argument: value}], ...]. Faults come from outside wherever files and
signals can bring them. A hook does the rest: it stops the process at a chosen place, or breaks what
no file system breaks at a chosen moment. A hook is a function here, called before the verb.
"""

import functools
import json
import os
import pathlib
import threading
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from tests.chaos.home import BINDINGS, UNUSED_ID

Hook = tuple[str, dict[str, Any]]


def hold(place: str, at: int, folder: str) -> Hook:
    """Wait at a place until the file that says so is removed, once.

    Args:
      place: `compile` of a train step; `data`, before the batch after step `at` is read; `save`,
        while the checkpoint of step `at` is being written; `evaluate`, in evaluation number `at`,
        from 0.
      at: the step or the number; of `compile` it has no meaning.
      folder: of the file, which is called like the place.
    """
    return "hold", {"place": place, "at": at, "folder": folder}


def stuck(at: int) -> Hook:
    """The main thread never comes back from reading the batch after step `at`."""
    return "stuck", {"at": at}


def write_error(first: int, times: int, code: int) -> Hook:
    """Writing a checkpoint fails with an `OSError` so many times.

    Args:
      first: the step of the first checkpoint that cannot be written.
      times: number of failures. code: of the error, as in `errno`.
    """
    return "write_error", {"first": first, "times": times, "code": code}


def clock_set_back(at: int, seconds: float) -> Hook:
    """The clock of the machine is set back before the batch after step `at` is read."""
    return "clock_set_back", {"at": at, "seconds": seconds}


def poison(steps: list[int], factor: float) -> Hook:
    """The losses of some steps are multiplied: by nan, or by a number as in a spike.

    The rows of these steps get an id that no text has, and the loss is multiplied where it is. So
    the fault is in the data, and a run that passes over these rows is rid of it.
    """
    return "poison", {"steps": steps, "factor": factor}


# ---- In the child --------------------------------------------------------------------------------


def _before(owner: Any, name: str, call: Callable[..., None]) -> None:
    """`call` gets the arguments of a function before that is called."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def both(*arguments: Any, **named: Any) -> Any:
        call(*arguments, **named)
        return function(*arguments, **named)

    setattr(owner, name, both)


def _before_batch(at: int, call: Callable[[], None]) -> None:
    from t5x_style.data import BatchReader

    def look(_: Any, indices: Any) -> None:
        if int(min(indices)) // BINDINGS["BATCH_SIZE"] == at:
            call()

    _before(BatchReader, "rows", look)


def _before_commit(call: Callable[[int], None]) -> None:
    """`call` gets the step of a checkpoint, in Orbax's thread that writes it."""
    from orbax.checkpoint._src.checkpointers import async_checkpointer

    def look(directory: Any, *_: Any, **__: Any) -> None:
        call(int(pathlib.Path(directory).name.split(".")[0].rpartition("_")[2]))

    _before(async_checkpointer, "_background_wait_for_commit_futures", look)


def _hold(place: str, at: int, folder: str) -> None:
    mark, done = pathlib.Path(folder, place), []

    def wait() -> None:
        if not done:
            done.append(True)
            mark.touch()
            while mark.exists():
                time.sleep(0.002)

    if place == "data":
        _before_batch(at, wait)
    elif place == "save":
        _before_commit(lambda step: wait() if step == at else None)
    elif place == "evaluate":
        from t5x_style.training.evaluation import Evaluator

        calls: list[bool] = []

        def look(*_: Any, **__: Any) -> None:
            calls.append(True)
            if len(calls) == at + 1:
                wait()

        _before(Evaluator, "__call__", look)
    elif place == "compile":
        from t5x_style.step.program import StepProgram

        _before(StepProgram, "compile", lambda *_, **__: wait())
    else:
        raise ValueError(place)


def _stuck(at: int) -> None:
    def sleep() -> None:
        while True:
            time.sleep(1000)

    _before_batch(at, sleep)


def _write_error(first: int, times: int, code: int) -> None:
    left, lock = [times], threading.Lock()

    def fail(step: int) -> None:
        with lock:
            if step < first or not left[0]:
                return
            left[0] -= 1
        raise OSError(code, f"{os.strerror(code)} (a fault of the test)")

    _before_commit(fail)


def _clock_set_back(at: int, seconds: float) -> None:
    true = time.time

    def turn() -> None:
        time.time = lambda: true() - seconds

    _before_batch(at, turn)


def _poison(steps: list[int], factor: float) -> None:
    import jax.numpy as jnp

    from t5x_style.data import BatchReader
    from t5x_style.step import step as module

    read, loss = BatchReader.rows, module.next_token_loss

    def rows(reader: Any, indices: Any) -> Any:
        found = read(reader, indices)
        # The batch with index n belongs to step n + 1.
        if int(min(indices)) // BINDINGS["BATCH_SIZE"] + 1 in steps:
            found.tokens[:, -1] = UNUSED_ID
        return found

    def poisoned(hidden: Any, matrix: Any, targets: Any, *rest: Any, **named: Any) -> Any:
        total, (nll, *others) = loss(hidden, matrix, targets, *rest, **named)
        by = jnp.where(jnp.any(targets == UNUSED_ID), factor, 1.0)
        return total * by, (nll * by, *others)

    BatchReader.rows = rows  # type: ignore[method-assign]
    mock.patch.object(module, "next_token_loss", poisoned).start()


def main(hooks: str, *arguments: str) -> int:
    """The exit status of a command line, run with some hooks."""
    os.setsid()  # so that all that this process starts can be found
    for name, named in json.loads(hooks):
        globals()[f"_{name}"](**named)
    from t5x_style.commands.main import main as command

    return command(arguments)
