"""Saving while a run goes on: what became whole is told, what failed is told and tried again."""

import contextlib
import errno
import os
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax

from t5x_style.accounting import Ledger
from t5x_style.checkpoints.checkpointer import Checkpointer, EndedSave
from t5x_style.errors import Fault, StartAgain
from t5x_style.reporting import RunWriter, SilentWriter

FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0
# How long one look at a save that is waited for lasts. A watchdog sees the loop move between two.
LOOK_SECONDS = 1.0
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class Saver:
    """Starts the saves of a run, and writes the events of their ends.

    A save that fails is tried again, with the state of then, after 1, 2, 4 ... seconds. One failure
    of a run of several processes ends all of them, because all must save the same step.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        writer: RunWriter | SilentWriter,
        ledger: Ledger,
        *,
        patience_seconds: float,
        timeout_seconds: float,
    ):
        """Args:
        patience_seconds: how long saves may fail, one after the other, before the run ends.
        timeout_seconds: how long one save may take.
        """
        self._checkpointer, self._writer, self._ledger = checkpointer, writer, ledger
        self._patience, self._timeout = patience_seconds, timeout_seconds
        # The step, tokens and fields of the save in progress.
        self._pending: tuple[int, int, dict[str, Any]] | None = None
        self._started = 0.0
        self._failures = 0
        self._failing_since = 0.0
        self._retry_at = 0.0
        self._no_room = False
        self._hangs = False

    def save(
        self,
        step: int,
        tokens: int,
        state: Any,
        record: Callable[[], Mapping[str, Any]],
        *,
        best_steps: Collection[int] = (),
        **facts: Any,
    ) -> None:
        """Start to save, after the save before has ended.

        Args:
          record: makes the checkpoint's item `run`.
          best_steps: steps whose checkpoints are kept, however old they are.
          facts: further fields of the event `saved`.

        Raises:
          Fault: as `look`.
        """
        began = time.perf_counter()
        self._wait()
        with self._ledger.time("save"):
            flushed = self._writer.start_flush()
            self._checkpointer.save(
                step,
                state,
                record(),
                best_steps=best_steps,
                # A resumed run does not write its lines again, so they must survive whenever the
                # checkpoint does. Those that the disk does not take are in the checkpoint itself.
                last_facts=lambda: {"unwritten": flushed()},
                make_room=self._no_room,
            )
        self._started = time.perf_counter()
        held = self._started - began
        self._pending = step, tokens, {"held_seconds": held, **facts}

    def look(self) -> bool:
        """Tell how a save ended, if one has; once a step.

        Returns:
          Whether a save that failed is to be tried again now.

        Raises:
          StartAgain: a save takes longer than the time-out; or one failed, and the run has several
            processes.
          Fault: saving is forbidden, or has failed for longer than the patience.
        """
        self._tell(self._checkpointer.ended())
        return (
            self._failures > 0 and self._pending is None and time.perf_counter() >= self._retry_at
        )

    def finish(self, save_again: Callable[[], None]) -> None:
        """Return when the last save is whole; `save_again` starts another after a failure.

        Raises:
          Fault: as `look`.
        """
        self._wait()
        while self._failures:
            while time.perf_counter() < self._retry_at:
                with self._ledger.time("save"):
                    time.sleep(min(LOOK_SECONDS, max(0.0, self._retry_at - time.perf_counter())))
            save_again()
            self._wait()

    def settle(self) -> None:
        """Tell how the save in progress ends. If it fails, it is not tried again.

        Raises:
          Fault: as `look`.
        """
        self._wait()
        self._failures = 0

    def close(self) -> None:
        """Tell how the last save ended. Its failure ends nothing more: the run ends already."""
        with contextlib.suppress(Fault):
            self._wait()
        if not self._hangs:
            self._checkpointer.close()

    def _wait(self) -> None:
        """Tell how the save in progress ends, if there is one."""
        while self._pending is not None:
            with self._ledger.time("save"):
                ended = self._checkpointer.ended(wait_seconds=LOOK_SECONDS)
            self._tell(ended)

    def _tell(self, ended: EndedSave | None) -> None:
        """Write the event of a save that has ended, and decide what follows from a failure."""
        if self._pending is None:
            return
        step, tokens, facts = self._pending
        if ended is None:
            if time.perf_counter() - self._started > self._timeout:
                self._pending, self._hangs = None, True
                reason = f"the save takes longer than train.save_timeout = {self._timeout:g} s"
                self._writer.event("save_failed", step=step, tokens=tokens, reason=reason)
                raise StartAgain(self._with_newest(step, reason), event="save_failed")
            return
        self._pending = None
        if ended.error is None:
            self._failures, self._no_room = 0, False
            facts |= {"write_seconds": ended.seconds}
            self._writer.event("saved", step=step, tokens=tokens, **facts)
            if ended.not_removed is not None:
                reason = f"an older checkpoint could not be removed: {ended.not_removed}"
                self._writer.event("warned", step=step, tokens=tokens, reason=reason)
            return
        self._failed(step, tokens, ended.error)

    def _failed(self, step: int, tokens: int, error: BaseException) -> None:
        now = time.perf_counter()
        if not self._failures:
            self._failing_since = now
        self._failures += 1
        reason = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        self._writer.event(
            "save_failed", step=step, tokens=tokens, reason=reason, failures=self._failures
        )
        if _means(error, FORBIDDEN):
            raise Fault(self._with_newest(step, reason)) from error
        if jax.process_count() > 1:
            raise StartAgain(self._with_newest(step, reason), event="save_failed") from error
        failing = now - self._failing_since
        wait = min(FIRST_RETRY_SECONDS * 2 ** (self._failures - 1), LONGEST_RETRY_SECONDS)
        if failing + wait > self._patience:
            reason = (
                f"{reason} ({self._failures} failures in {failing:.0f} s; train.save_patience = "
                f"{self._patience:g} s)"
            )
            raise Fault(self._with_newest(step, reason)) from error
        self._no_room = _means(error, NO_ROOM)
        self._retry_at = now + wait

    def _with_newest(self, step: int, reason: str) -> str:
        newest = self._checkpointer.latest_step()
        there = "there is no whole one" if newest is None else f"the newest is of step {newest:,}"
        return f"the checkpoint of step {step:,} could not be saved ({there}): {reason}"


def _means(error: BaseException, numbers: Collection[int]) -> bool:
    """Whether an error is one of these of the system; TensorStore gives only the system's words."""
    return any(
        getattr(error, "errno", None) == number or os.strerror(number) in str(error)
        for number in numbers
    )
