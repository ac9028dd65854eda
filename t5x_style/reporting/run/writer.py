"""Writes a run's metrics.jsonl, events.jsonl and TensorBoard event files while it trains.

The calling thread only queues; one writer thread encodes and writes. A resumed run first cuts
metrics.jsonl back to the step that it resumes from, so that the file reads as if the run had never
stopped. events.jsonl keeps the whole history.
"""

import json
import math
import numbers
import os
import pathlib
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

from t5x_style.errors import Fault
from t5x_style.files import local_path, write_whole

# The files of a run directory. Training writes the first two before step 0.
PLAN_FILE = "plan.json"
CONFIG_FILE = "config.gin"
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
EVENT_KINDS = (
    "started",
    "resumed",
    "blend_changed",
    "held_out_replaced",
    "saved",
    "spike",
    "rewound",
    "skipped",
    "preempted",
    "warned",
    "finished",
)
BEGINNINGS = ("started", "resumed")
EVALUATION_PREFIX = "eval/"
# Of every source, in an evaluation line. A user's own metrics have other names.
EVALUATION_MEASURES = ("loss", "perplexity", "bits_per_byte", "tokens")
FLUSH_SECONDS = 1.0

_PLAIN = frozenset((int, float, bool, type(None)))


class RunWriter:
    """Writes one run's files under `model_dir`. Used from one thread, in one process of a run.

    Attributes:
      lost_seconds: wall time of the work that kills threw away and that is in no checkpoint's
        ledger: the lines cut now, and those cut since the checkpoint was written.
    """

    lost_seconds: float

    def __init__(self, model_dir: str | os.PathLike, *, resume_step: int | None):
        """Opens the files and cuts the lines after `resume_step`.

        Args:
          model_dir: made if it does not exist.
          resume_step: the step of the checkpoint that the run resumes from; lines of later steps
            are cut. With None the run starts from nothing, and every line is cut.

        Raises:
          UsageError: if `model_dir` has a scheme, such as gs://.
          Fault: if metrics.jsonl or events.jsonl cannot be read or written.
        """
        self._dir = local_path(model_dir, "model_dir")
        self._resume_step = resume_step
        try:
            self._dir.mkdir(parents=True, exist_ok=True)
            self.lost_seconds = _cut(self._dir, resume_step)
            # Both stay open until close().
            self._metrics = open(self._dir / METRICS_FILE, "a", encoding="utf-8")  # noqa: SIM115
            self._events = open(self._dir / EVENTS_FILE, "a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise Fault(f"cannot write a run under {self._dir}: {error}") from error
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._error: Exception | None = None
        self._tensorboard: dict[str, Any] = {}
        self._unflushed_training: dict[str, Any] | None = None
        self._thread = threading.Thread(target=self._run, name="run-writer", daemon=True)
        self._thread.start()

    def metrics(self, line: Mapping[str, object]) -> None:
        """Queues one training or evaluation line.

        A line with any key under 'eval/' is an evaluation line. `time` (unix seconds) is added.
        NaN and infinities are written as null: JSON cannot express them. TensorBoard gets every
        evaluation line, and the last training line of every second.

        Raises:
          TypeError: for a value that is no plain number, bool or None.
          Fault: if an earlier line could not be written.
        """
        for key, value in line.items():
            if value.__class__ not in _PLAIN and not isinstance(value, numbers.Real):
                raise TypeError(f"metric {key!r} is {value!r}: a number or None is needed")
        self._put("metrics", {**line, "time": time.time()})

    def event(self, kind: str, *, step: int, tokens: int, **fields: object) -> None:
        """Queues one event, which is written within moments.

        Args:
          kind: one of EVENT_KINDS. 'started' and 'resumed' get `lost_seconds` added, because the
            process may be killed again before a checkpoint includes them.
          fields: further JSON values, such as `reason`.

        Raises:
          ValueError: for another kind.
        """
        if kind not in EVENT_KINDS:
            raise ValueError(f"no event {kind!r}: one of {', '.join(EVENT_KINDS)}")
        if kind in BEGINNINGS and self.lost_seconds:
            fields["lost_seconds"] = self.lost_seconds
        self._put(
            "event", {"event": kind, "step": step, "tokens": tokens, "time": time.time(), **fields}
        )

    def flush(self) -> None:
        """Returns when everything queued is on disk.

        Call it before a checkpoint is written: a kill must not lose lines up to the checkpoint's
        step, because the resumed run will not write them again.
        """
        done = threading.Event()
        self._put("flush", done)
        done.wait()
        self._raise_error()

    def close(self) -> None:
        """Writes the rest of the queue and closes the files. A second call does nothing."""
        if self._thread.is_alive():
            self._queue.put(("close", None))
            self._thread.join()
        self._raise_error()

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
        """The writer thread. After an error it only drains the queue, so that no caller hangs."""
        flush_at = None
        while True:
            try:
                timeout = None if flush_at is None else max(0.0, flush_at - time.monotonic())
                kind, payload = self._queue.get(timeout=timeout)
            except queue.Empty:
                kind, payload = "tick", None
            try:
                if self._error is None:
                    self._handle(kind, payload)
                    # With many lines the queue may never be empty.
                    if kind == "metrics" and flush_at and time.monotonic() >= flush_at:
                        kind = "tick"
                        self._handle(kind, None)
            except Exception as error:  # handed to the calling thread by _raise_error
                self._error = error
            if kind == "flush":
                payload.set()
            if kind == "close":
                return
            if kind != "metrics":
                flush_at = None
            elif flush_at is None:
                flush_at = time.monotonic() + FLUSH_SECONDS

    def _handle(self, kind: str, payload: Any) -> None:
        if kind == "metrics":
            line = _jsonable(payload)
            self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
            if any(key.startswith(EVALUATION_PREFIX) for key in line):
                self._summarise("eval", line)
            else:
                self._unflushed_training = line
            return
        if kind == "event":
            self._events.write(json.dumps(_jsonable(payload), allow_nan=False) + "\n")
        # Metrics before events: an event on disk has its lines on disk.
        self._metrics.flush()
        self._events.flush()
        if self._unflushed_training is not None:
            self._summarise("train", self._unflushed_training)
            self._unflushed_training = None
        for writer in self._tensorboard.values():
            writer.flush()
        if kind in ("flush", "close"):
            os.fsync(self._metrics.fileno())
            os.fsync(self._events.fileno())
        if kind == "close":
            for open_file in (self._metrics, self._events, *self._tensorboard.values()):
                open_file.close()

    def _summarise(self, folder: str, line: Mapping[str, Any]) -> None:
        """One TensorBoard record with all of the line's numbers, in `folder`."""
        # Half a second of import: on this thread, and not before the first step.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        if folder not in self._tensorboard:
            (self._dir / folder).mkdir(exist_ok=True)
            # The default file name has whole seconds: a quick restart would overwrite the file.
            writer = EventsWriter(str(self._dir / folder / "events"), f".{time.time_ns()}")
            if self._resume_step is not None:
                # Makes TensorBoard drop the points that were cut from metrics.jsonl.
                start = SessionLog(status=SessionLog.START)
                writer.write_event(
                    Event(wall_time=time.time(), step=self._resume_step + 1, session_log=start)
                )
            self._tensorboard[folder] = writer
        values = [
            Summary.Value(tag=key, simple_value=float(value))
            for key, value in line.items()
            if value is not None and key not in ("step", "time")
        ]
        self._tensorboard[folder].write_event(
            Event(wall_time=line["time"], step=int(line["step"]), summary=Summary(value=values))
        )


class SilentWriter:
    """The `RunWriter` of the processes that do not write."""

    lost_seconds = 0.0

    def metrics(self, line: Mapping[str, object]) -> None:
        """Process 0 writes the same line."""

    def event(self, kind: str, *, step: int, tokens: int, **fields: object) -> None:
        """Process 0 writes the same event."""

    def flush(self) -> None:
        """Nothing is queued."""

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


def read_lines(path: pathlib.Path) -> list[dict]:
    """The lines of a .jsonl file that a run appends to; none if there is no file.

    A last line that a kill cut short is left out.

    Raises:
      Fault: for a broken line anywhere else, with its number.
    """
    if not path.exists():
        return []
    lines = []
    raw = path.read_bytes().split(b"\n")
    for number, text in enumerate(raw, start=1):
        if not text:
            continue
        try:
            line = json.loads(text)
            if not isinstance(line, dict):
                raise ValueError("not an object")
        except ValueError as error:
            if number == len(raw):
                break
            raise Fault(f"{path}:{number}: not a line of JSON ({error})") from error
        lines.append(line)
    return lines


def _cut(model_dir: pathlib.Path, resume_step: int | None) -> float:
    """Drops the metric lines after `resume_step`; returns RunWriter.lost_seconds."""
    path = model_dir / METRICS_FILE
    lines = read_lines(path)
    events_path = model_dir / EVENTS_FILE
    events = read_lines(events_path)
    _end_with_newline(events_path)
    last = -math.inf if resume_step is None else resume_step
    kept = [line for line in lines if line["step"] <= last]
    cut = [line for line in lines if line["step"] > last]
    text = "".join(json.dumps(line) + "\n" for line in kept).encode()
    if path.exists() and path.read_bytes() != text:
        write_whole(path, text)
    lost_before = 0.0
    for event in reversed(events):
        if event["event"] == "saved" and event["step"] <= last:
            break
        if "lost_seconds" in event:
            lost_before = event["lost_seconds"]
            break
    if not cut:
        return lost_before
    # The lost work began after the last kept line, or when its process started, whichever is
    # later: the pause between a kill and the restart is no lost work.
    began = [line["time"] for line in kept[-1:]]
    began += [
        event["time"]
        for event in events
        if event["event"] in BEGINNINGS and event["time"] <= cut[0]["time"]
    ]
    return lost_before + cut[-1]["time"] - max(began, default=cut[0]["time"])


def _end_with_newline(path: pathlib.Path) -> None:
    """Drops an event that a kill cut short, so that the next one starts on a line of its own."""
    if path.exists():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole != len(content):
            os.truncate(path, whole)
