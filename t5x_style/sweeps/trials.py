"""Runs trials as child processes, some at a time, and keeps the account of them in sweep.json."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from t5x_style.errors import EXIT_PREEMPTED, EXIT_USAGE, Preempted, UsageError
from t5x_style.files import locked, write_whole
from t5x_style.sweeps.grid import Trial, gin_flag
from t5x_style.sweeps.results import trial_result

TRAIN = (sys.executable, "-m", "t5x_style", "train")
GUARD = Path(__file__).with_name("guard.py")
POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0  # for a trial to save after SIGTERM


@dataclasses.dataclass
class _Running:
    entry: dict[str, Any]
    process: subprocess.Popen
    log: TextIO
    started: float


def run_trials(
    trials: Sequence[Trial],
    sweep_dir: str | Path,
    *,
    arguments: Sequence[str],
    identity: str,
    concurrent_trials: int = 1,
    program: Sequence[str] = TRAIN,
) -> list[dict[str, Any]]:
    """Runs the trials that have not finished yet, and says what each came to.

    Each trial is `program`, `arguments`, a --gin flag per grid value and one for MODEL_DIR, which
    is `sweep_dir/<trial name>`; what it prints goes to `sweep_dir/<trial name>.log`. A trial that
    fails is reported and the others go on. Killed and called again, finished trials stay as they
    are and the others are started again in their directory, where `train` resumes.

    Args:
      trials: in the order in which they start.
      sweep_dir: is made if it does not exist.
      arguments: what all trials share: run files and fixed bindings.
      identity: stands for all that makes trials comparable (a hash of what the run files say).
      concurrent_trials: how many at a time.
      program: the command that trains.

    Returns:
      The trials as in sweep.json: `name`, `values`, `status` (waiting, running, finished, failed,
      preempted), `reason` (the error its log names, if it failed), `seconds` (of its last start),
      `result` (see trial_result).

    Raises:
      UsageError: another sweep is at work in sweep_dir, or it holds finished trials of other run
        files or bindings.
      Preempted: the machine asked us to stop; trials were told to save.
    """
    folder = Path(sweep_dir)
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"arguments": list(arguments), "identity": identity}

    def refuse() -> None:
        raise UsageError(f"another sweep is at work in {folder}")

    with locked(folder / "sweep.lock", refuse), _stop_on_sigterm():
        entries = _entries(trials, folder, shared)

        def keep() -> None:
            write_whole(folder / "sweep.json", json.dumps({**shared, "trials": entries}, indent=1))

        waiting = [entry for entry in entries if entry["status"] != "finished"]
        keep()
        _run_all(
            waiting,
            lambda entry: [*program, *_trial_arguments(entry, folder, arguments)],
            folder,
            concurrent_trials,
            keep,
        )
    return entries


def _entries(
    trials: Sequence[Trial], folder: Path, shared: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """One entry per trial, as it was left by an earlier start if there was one."""
    path = folder / "sweep.json"
    earlier = json.loads(path.read_text()) if path.exists() else {}
    finished = {
        entry["name"]: entry for entry in earlier.get("trials", []) if entry["status"] == "finished"
    }
    if finished and any(earlier[key] != shared[key] for key in shared):
        raise UsageError(
            f"{folder} holds {len(finished)} finished trials of other run files or bindings"
            f" ({' '.join(earlier['arguments'])}): take another sweep_dir"
        )
    fresh = {"status": "waiting", "reason": None, "seconds": None, "result": {}}
    return [
        finished.get(trial.name) or {"name": trial.name, "values": dict(trial.values), **fresh}
        for trial in trials
    ]


def _trial_arguments(entry: Mapping[str, Any], folder: Path, arguments: Sequence[str]) -> list[str]:
    values = [gin_flag(name, value) for name, value in entry["values"].items()]
    return [*arguments, *values, gin_flag("MODEL_DIR", str(folder / entry["name"]))]


def _run_all(
    waiting: Sequence[dict[str, Any]],
    command: Callable[[Mapping[str, Any]], list[str]],
    folder: Path,
    concurrent_trials: int,
    keep: Callable[[], None],
) -> None:
    queue, running, done = list(waiting), list[_Running](), 0
    try:
        while queue or running:
            while queue and len(running) < concurrent_trials:
                running.append(_start(queue.pop(0), command, folder))
                keep()
            time.sleep(POLL_SECONDS)
            for trial in [trial for trial in running if trial.process.poll() is not None]:
                running.remove(trial)
                _close(trial, folder)
                keep()
                done += 1
                _report(trial.entry, done, len(waiting))
    finally:
        _stop(running)
        for trial in running:
            _close(trial, folder)
        keep()


def _start(
    entry: dict[str, Any], command: Callable[[Mapping[str, Any]], list[str]], folder: Path
) -> _Running:
    log = (folder / f"{entry['name']}.log").open("a", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(GUARD), str(os.getpid()), *command(entry)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # An interrupt at the keyboard is ours to pass on, as a request to save.
        start_new_session=True,
    )
    entry["status"] = "running"
    print(f"{entry['name']}: started, see {folder / entry['name']}.log", flush=True)
    return _Running(entry, process, log, time.monotonic())


def _close(trial: _Running, folder: Path) -> None:
    """Writes into a trial's entry how it ended and what it came to."""
    trial.log.close()
    status = trial.process.returncode
    entry = trial.entry
    entry["seconds"] = round(time.monotonic() - trial.started, 2)
    entry["result"] = trial_result(folder / entry["name"])
    entry["reason"] = None
    if status == 0:
        entry["status"] = "finished"
    elif status == EXIT_PREEMPTED or status == -signal.SIGTERM:
        entry["status"] = "preempted"
    else:
        entry["status"] = "failed"
        entry["reason"] = _cause(folder / f"{entry['name']}.log", status)


def _cause(log: Path, status: int) -> str:
    """The last error that a trial's log names, or its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    kind = "its configuration is refused" if status == EXIT_USAGE else f"status {status}"
    return f"{(errors or lines)[-1].strip()} ({kind})" if lines else kind


def _report(entry: Mapping[str, Any], done: int, of: int) -> None:
    reason = f": {entry['reason']}" if entry["reason"] else ""
    loss = entry["result"].get("train_loss")
    reached = f", loss {loss:.4f}" if loss is not None else ""
    print(
        f"[{done}/{of}] {entry['name']}: {entry['status']} after {entry['seconds']:.0f} s"
        f"{reached}{reason}",
        flush=True,
    )


def _stop(running: Sequence[_Running]) -> None:
    """Asks the trials to save and leave; ends those that have not in time or at a second asking."""
    for trial in running:
        trial.process.terminate()
    deadline = time.monotonic() + GRACE_SECONDS
    try:
        for trial in running:
            with contextlib.suppress(subprocess.TimeoutExpired):
                trial.process.wait(max(0.0, deadline - time.monotonic()))
    finally:
        for trial in running:
            trial.process.kill()
            trial.process.wait()


@contextlib.contextmanager
def _stop_on_sigterm() -> Iterator[None]:
    def stop(number, frame):
        raise Preempted("the trials were asked to save; start the sweep again to go on")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
