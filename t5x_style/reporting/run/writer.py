"""Writes a run's metrics.jsonl, events.jsonl and TensorBoard event files while it trains.

The calling thread only queues; one writer thread encodes and writes. A resumed run first cuts
metrics.jsonl back to the step that it resumes from, so that the file reads as if the run had never
stopped. events.jsonl keeps the whole history.

A run does not end for a log. What cannot be written waits in memory; see `log_file`. What of an
earlier start cannot be read is moved aside; see `log_lines`.
"""

import contextlib
import json
import math
import numbers
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5x_style.errors import Fault
from t5x_style.files import local_path
from t5x_style.reporting.logs.lives import BEGINNINGS, beat, last_beat, unbooked_seconds
from t5x_style.reporting.logs.log_file import LogFile, News
from t5x_style.reporting.logs.log_lines import (
    EVENTS_FILE,
    METRICS_FILE,
    is_evaluation,
    mend,
    missing_lines,
    not_in,
    read_log,
)
from t5x_style.reporting.run.console import warn

# Training writes these two before step 0.
PLAN_FILE = "plan.json"
CONFIG_FILE = "config.gin"
EVENT_KINDS = (
    "started",
    "resumed",
    "blend_changed",
    "held_out_replaced",
    "saved",
    "save_failed",
    "refused",
    "spike",
    "rewound",
    "skipped",
    "preempted",
    "store_changed",
    "hung",
    "lost",
    "warned",
    "logs_broken",
    "logs_rewritten",
    "finished",
)
# Of every source, in an evaluation line. A user's own metrics have other names.
EVALUATION_MEASURES = ("loss", "perplexity", "bits_per_byte", "tokens")
FLUSH_SECONDS = 1.0

_PLAIN = frozenset((int, float, bool, type(None)))


class RunWriter:
    """Writes one run's files under `model_dir`. Used from one thread, in one process of a run.

    Attributes:
      evaluations: the evaluation lines up to the step of the start.
      unbooked: seconds by cause that are in no checkpoint's ledger: see `lives.unbooked_seconds`.
    """

    evaluations: list[dict[str, Any]]
    unbooked: dict[str, float]

    def __init__(
        self,
        model_dir: str | os.PathLike,
        *,
        resume_step: int | None,
        began: float | None = None,
        booked_until: float | None = None,
        last_line_step: int | None = None,
        unwritten: Mapping[str, Sequence[str]] | None = None,
        write_missing_files: Callable[[], list[str]] = list,
    ):
        """Opens the files, mends them, and cuts the lines after `resume_step`.

        Args:
          model_dir: made if it does not exist.
          resume_step: the step of the checkpoint that the run resumes from; lines of later steps
            are cut. With None the run starts from nothing, and every line is cut.
          began: the unix time at which this start began; now if not given.
          booked_until: the unix time up to which the checkpoint's ledger goes, where it has one.
          last_line_step: the step of the last training line before the checkpoint, where that is
            known. An event says whether lines up to it are missing.
          unwritten: what `flush` returned before the checkpoint was written.
          write_missing_files: called about every second, on another thread. It writes those of the
            folder's other files again that were removed, and returns their names.

        Raises:
          UsageError: if `model_dir` has a scheme, such as gs://.
          Fault: if metrics.jsonl or events.jsonl cannot be read or written.
        """
        self._dir = local_path(model_dir, "model_dir")
        self._resume_step = resume_step
        self._began = time.time() if began is None else began
        self._write_missing_files = write_missing_files
        self._news: list[News] = []
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            self._open(booked_until, last_line_step, unwritten or {})
            # Both stay open until close().
            self._files = [LogFile(self._dir / name) for name in (METRICS_FILE, EVENTS_FILE)]
        except OSError as error:
            raise Fault(f"cannot write a run under {self._dir}: {error}") from error
        self._metrics, self._events = self._files
        for file in self._files:
            for text in self._unwritten.get(file.path.name, ()):
                file.append(text)
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._error: Exception | None = None
        self._tensorboard: dict[str, Any] = {}
        self._tensorboard_failed = False
        self._unflushed_training: dict[str, Any] | None = None
        # The last step and its tokens, for an event of the writer's own.
        self._now: dict[str, Any] = {"step": resume_step or 0, "tokens": 0}
        self._thread = threading.Thread(target=self._run, name="run-writer", daemon=True)
        self._thread.start()

    def _open(
        self,
        booked_until: float | None,
        last_line_step: int | None,
        unwritten: Mapping[str, Sequence[str]],
    ) -> None:
        """Mend both files, and find out what happened before this start."""
        metrics_path, events_path = self._dir / METRICS_FILE, self._dir / EVENTS_FILE
        metrics = read_log(metrics_path, only=("step", "time", "loss_steps"))
        events = read_log(events_path)
        signs = [fields["time"] for fields in metrics.fields[-1:]]
        last_step = -math.inf if self._resume_step is None else self._resume_step
        faults = mend(metrics_path, metrics, last_step) + mend(events_path, events, math.inf)
        self._unwritten = {
            METRICS_FILE: not_in(metrics, unwritten.get(METRICS_FILE, ())),
            EVENTS_FILE: not_in(events, unwritten.get(EVENTS_FILE, ())),
        }
        lines = [*metrics.fields, *map(json.loads, self._unwritten[METRICS_FILE])]
        self.evaluations = [line for line in lines if is_evaluation(line)]
        training = [line for line in lines if not is_evaluation(line)]
        if self._resume_step is not None:
            missing = missing_lines(training, last_line_step)
            faults += [f"{METRICS_FILE}: {fault}" for fault in missing]
        before = {event.get("reason") for event in events.fields}
        for fault in faults:
            warn(fault)
            # What is missing is missing at every later start, too.
            if fault not in before:
                self._news.append(News("logs_broken", fault))
        self.unbooked, self._pause = unbooked_seconds(
            events.fields,
            resume_step=self._resume_step,
            booked_until=booked_until,
            last_sign=max([*signs, last_beat(self._dir)]),
            began=self._began,
        )

    def metrics(self, line: Mapping[str, object]) -> None:
        """Queues one training or evaluation line.

        A line with any key under 'eval/' is an evaluation line. `time` (unix seconds) is added.
        NaN and infinities are written as null: JSON cannot express them. TensorBoard gets every
        evaluation line, and the last training line of every second.

        Raises:
          TypeError: for a value that is no plain number, bool or None.
        """
        for key, value in line.items():
            if value.__class__ not in _PLAIN and not isinstance(value, numbers.Real):
                raise TypeError(f"metric {key!r} is {value!r}: a number or None is needed")
        self._put("metrics", {**line, "time": time.time()})

    def event(self, kind: str, *, step: int, tokens: int, **fields: object) -> None:
        """Queues one event, which is written within moments.

        Args:
          kind: one of EVENT_KINDS. 'started' and 'resumed' get two fields more: `began`, the unix
            time at which the start began, and `pause_seconds`, how long no process had the run.
          fields: further JSON values, such as `reason`.

        Raises:
          ValueError: for another kind.
        """
        if kind not in EVENT_KINDS:
            raise ValueError(f"no event {kind!r}: one of {', '.join(EVENT_KINDS)}")
        if kind in BEGINNINGS:
            fields |= {"began": self._began, "pause_seconds": self._pause}
        place = {"step": step, "tokens": tokens, "time": time.time()}
        self._put("event", {"event": kind, **place, **fields})
        news, self._news = self._news, []
        for found, reason in news:
            self._put("event", {"event": found, **place, "reason": reason})

    def event_at_once(self, kind: str, *, step: int, tokens: int, **fields: object) -> None:
        """As `event`; returns when it is on disk. For a process that is about to end."""
        self.event(kind, step=step, tokens=tokens, **fields)
        self.flush()

    def flush(self) -> dict[str, list[str]]:
        """Returns when everything queued is on disk, or has been tried.

        Call it before a checkpoint is written: a kill must not lose lines up to the checkpoint's
        step, because the resumed run will not write them again.

        Returns:
          {file name: lines} that cannot be written and wait in memory, for the checkpoint to keep;
          empty while the disk is well. They go to `unwritten` when the run resumes from it.
        """
        return self.start_flush()()

    def start_flush(self) -> Callable[[], dict[str, list[str]]]:
        """Starts a `flush` of what is queued now; the result, called from any thread, ends it."""
        done = threading.Event()
        waiting: dict[str, list[str]] = {}
        self._put("flush", (done, waiting))

        def flushed() -> dict[str, list[str]]:
            done.wait()
            self._raise_error()
            return waiting

        return flushed

    def rewind(self, step: int, write_missing_files: Callable[[], list[str]]) -> None:
        """Cuts the lines after `step`, as a start from its checkpoint does: the run has gone back.

        Lines up to it that the disk has not taken go on waiting. Arguments and errors are those of
        a start.
        """
        waiting = self.flush()
        kept = [text for text in waiting.get(METRICS_FILE, ()) if json.loads(text)["step"] <= step]
        self._queue.put(("close", None))
        self._thread.join()
        RunWriter.__init__(
            self,
            self._dir,
            resume_step=step,
            began=self._began,
            booked_until=time.time(),
            unwritten={**waiting, METRICS_FILE: kept},
            write_missing_files=write_missing_files,
        )

    def close(self) -> None:
        """Writes the rest of the queue and closes the files. A second call does nothing.

        Raises:
          Fault: lines cannot be written, and nothing else has ended the run.
        """
        if not self._thread.is_alive():
            return
        self._queue.put(("close", None))
        self._thread.join()
        self._raise_error()
        lost = [
            f"{len(file.waiting) + file.dropped:,} lines of {file.path} ({file.error.strerror})"
            for file in self._files
            if file.error is not None
        ]
        if lost:
            text = f"the disk did not take {' and '.join(lost)}"
            # The error that ends the run already is the one to report.
            if sys.exception() is None:
                raise Fault(f"{text}: make room, and start again")
            warn(text)

    def __enter__(self) -> "RunWriter":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _put(self, kind: str, payload: object) -> None:
        self._raise_error()
        if not self._thread.is_alive():
            raise ValueError("this RunWriter is closed")
        self._queue.put((kind, payload))

    def _raise_error(self) -> None:
        if self._error is not None:
            raise Fault(f"cannot write to {self._dir}: {self._error}") from self._error

    def _run(self) -> None:
        """The writer thread. After an error it only drains the queue, so that no caller hangs.

        Such an error is none of the disk: a line that JSON cannot express.
        """
        write_at = time.monotonic()
        while True:
            kind: str = "tick"
            payload: Any = None
            # With many lines the queue may never be empty.
            if (left := write_at - time.monotonic()) > 0:
                with contextlib.suppress(queue.Empty):
                    kind, payload = self._queue.get(timeout=left)
            try:
                if self._error is None:
                    self._handle(kind, payload)
            except Exception as error:  # handed to the calling thread by _raise_error
                self._error = error
            if kind == "tick":
                write_at = time.monotonic() + FLUSH_SECONDS
            if kind == "flush":
                payload[0].set()
            if kind == "close":
                return

    def _handle(self, kind: str, payload: Any) -> None:
        if kind in ("metrics", "event"):
            line = _jsonable(payload)
            self._now = {"step": line["step"], "tokens": line.get("tokens", 0)}
            file = self._metrics if kind == "metrics" else self._events
            file.append(json.dumps(line, allow_nan=False))
            if kind == "metrics":
                if is_evaluation(line):
                    self._summarise("eval", line)
                else:
                    self._unflushed_training = line
                return
        self._write(synced=kind in ("flush", "close"))
        if self._unflushed_training is not None:
            self._summarise("train", self._unflushed_training)
            self._unflushed_training = None
        self._flush_tensorboard(close=kind == "close")
        if kind == "flush":
            failing = [file for file in self._files if file.error]
            payload[1].update({file.path.name: list(file.waiting) for file in failing})
        if kind == "close":
            for file in self._files:
                file.close()

    def _write(self, *, synced: bool) -> None:
        """Write what waits, metrics first: an event on disk has its lines on disk."""
        news = self._folder_again()
        beat(self._dir)
        for file in self._files:
            news += file.write(synced=synced)
        if news:
            for kind, reason in news:
                warn(reason)
                event = {"event": kind, **self._now, "time": time.time(), "reason": reason}
                self._events.append(json.dumps(event))
            self._events.write(synced=synced)

    def _folder_again(self) -> list[News]:
        news, where = [], "while the run was writing there"
        try:
            if not self._dir.is_dir():
                self._dir.mkdir(parents=True)
                # TensorBoard's files lie in no folder any more. New ones begin with the next line.
                self._tensorboard.clear()
                text = f"{self._dir} was removed {where}. Checkpoints that were in it are gone"
                news.append(News("logs_rewritten", text))
            if names := self._write_missing_files():
                text = f"{', '.join(names)} of {self._dir} was removed {where}, and is made again"
                news.append(News("logs_rewritten", text))
        except (OSError, Fault):
            # The logs say why the folder cannot be written. This is tried again.
            pass
        return news

    def _summarise(self, folder: str, line: Mapping[str, Any]) -> None:
        """One TensorBoard record with all of the line's numbers, in `folder`.

        A record that cannot be written is left out: its line is in metrics.jsonl.
        """
        # Half a second of import: on this thread, and not before the first step.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=key, simple_value=float(value))
            for key, value in line.items()
            if value is not None and key not in ("step", "time")
        ]
        event = Event(wall_time=line["time"], step=int(line["step"]), summary=Summary(value=values))
        try:
            if folder not in self._tensorboard:
                (self._dir / folder).mkdir(exist_ok=True)
                # The default file name has whole seconds: a quick restart would overwrite the file.
                prefix = str(self._dir / folder / "events")
                writer = EventsWriter(prefix, f".{time.time_ns()}")
                if self._resume_step is not None:
                    # Makes TensorBoard drop the points that were cut from metrics.jsonl.
                    start = SessionLog(status=SessionLog.START)
                    step = self._resume_step + 1
                    first = Event(wall_time=time.time(), step=step, session_log=start)
                    writer.write_event(first)
                self._tensorboard[folder] = writer
            self._tensorboard[folder].write_event(event)
        except OSError as error:
            self._leave_tensorboard(folder, error)

    def _flush_tensorboard(self, *, close: bool) -> None:
        for folder, writer in list(self._tensorboard.items()):
            try:
                writer.flush()
                if close:
                    writer.close()
            except OSError as error:
                self._leave_tensorboard(folder, error)

    def _leave_tensorboard(self, folder: str, error: OSError) -> None:
        """Go on without TensorBoard's file; the next line begins another one."""
        self._tensorboard.pop(folder, None)
        if not self._tensorboard_failed:
            warn(f"TensorBoard's files in {self._dir / folder} miss points: {error}")
        self._tensorboard_failed = True


class SilentWriter:
    """The `RunWriter` of the processes that do not write."""

    def __init__(self, model_dir: str | os.PathLike):
        self._events_path = local_path(model_dir, "model_dir") / EVENTS_FILE

    evaluations: tuple[dict[str, Any], ...] = ()
    unbooked: Mapping[str, float] = {}

    def metrics(self, line: Mapping[str, object]) -> None:
        """Process 0 writes the same line."""

    def event(self, kind: str, *, step: int, tokens: int, **fields: object) -> None:
        """Process 0 writes the same event."""

    def event_at_once(self, kind: str, *, step: int, tokens: int, **fields: object) -> None:
        """Writes the event: process 0 cannot."""
        place = {"step": step, "tokens": tokens, "time": time.time()}
        with open(self._events_path, "a", encoding="utf-8") as events:
            events.write(json.dumps({"event": kind, **place, **fields}) + "\n")

    def flush(self) -> dict[str, list[str]]:
        """Nothing is queued."""
        return {}

    def start_flush(self) -> Callable[[], dict[str, list[str]]]:
        """Nothing is queued."""
        return dict

    def rewind(self, step: int, write_missing_files: Callable[[], list[str]]) -> None:
        """Process 0 cuts the files."""

    def close(self) -> None:
        """Nothing is open."""


def _jsonable(value: Any) -> Any:
    """The value as strict JSON: plain numbers, non-finite ones as None."""
    if isinstance(value, Mapping):
        return {str(key): _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(inner) for inner in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise TypeError(f"{value!r} is no JSON value")
