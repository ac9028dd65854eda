"""Runs trials as child processes, some at a time, and records them in sweep.json."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from t5x_style.errors import EXIT_AGAIN, EXIT_PREEMPTED, EXIT_USAGE, Preempted, UsageError
from t5x_style.files import OWNER_FILE, local_path, owned
from t5x_style.sweeps.grid import Trial, gin_flag
from t5x_style.sweeps.record import SweepRecord, TrialEntry, read_sweep
from t5x_style.sweeps.results import trial_result

TRAIN = (sys.executable, "-m", "t5x_style", "train")
GUARD = Path(__file__).with_name("guard.py")
POLL_SECONDS = 0.1
GRACE_SECONDS = 60.0  # for a trial to save after SIGTERM


@dataclasses.dataclass
class _Running:
    entry: TrialEntry
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
) -> list[TrialEntry]:
    """Runs the trials that have not finished yet, and returns the results of all.

    The command of a trial is `program`, `arguments`, a --gin flag per grid value, and a flag for
    MODEL_DIR, which is `sweep_dir/<trial name>`. Its output goes to `sweep_dir/<trial name>.log`. A
    trial that fails is reported, and the others continue. After a kill, finished trials are kept;
    the others start again in their directories, where `train` resumes.

    Args:
      trials: in the order in which they start.
      sweep_dir: is created if it does not exist.
      arguments: the same for all trials: run files and fixed bindings.
      identity: a hash of the text of the run files; trials with another one are not comparable.
      concurrent_trials: how many run at a time.
      program: the command that trains.

    Raises:
      UsageError: another sweep runs in sweep_dir, or it has finished trials of other run files or
        bindings.
      Preempted: the machine asked this process to stop; the trials were asked to save.
    """
    folder = local_path(sweep_dir, "--sweep_dir")
    with owned(folder / OWNER_FILE, f"--sweep_dir = {folder}"), _stop_on_sigterm():
        record = _record(trials, folder, list(arguments), identity)
        record.write(folder)
        _run_all(
            [entry for entry in record.trials if entry.status != "finished"],
            lambda entry: [*program, *_trial_arguments(entry, folder, arguments)],
            folder,
            concurrent_trials,
            lambda: record.write(folder),
        )
    return list(record.trials)


def _record(
    trials: Sequence[Trial], folder: Path, arguments: list[str], identity: str
) -> SweepRecord:
    """The record of this sweep, with the finished trials of an earlier start."""
    earlier = read_sweep(folder)
    finished = {
        entry.name: entry
        for entry in (earlier.trials if earlier else ())
        if entry.status == "finished"
    }
    if earlier and finished and (earlier.arguments, earlier.identity) != (arguments, identity):
        raise UsageError(
            f"{folder} holds {len(finished)} finished trials of other run files or bindings"
            f" ({' '.join(earlier.arguments)}): take another sweep_dir"
        )
    entries = [
        finished.get(trial.name) or TrialEntry(trial.name, dict(trial.values)) for trial in trials
    ]
    return SweepRecord(arguments, identity, entries)


def _trial_arguments(entry: TrialEntry, folder: Path, arguments: Sequence[str]) -> list[str]:
    values = [gin_flag(name, value) for name, value in entry.values.items()]
    return [*arguments, *values, gin_flag("MODEL_DIR", str(folder / entry.name))]


def _run_all(
    waiting: Sequence[TrialEntry],
    command: Callable[[TrialEntry], list[str]],
    folder: Path,
    concurrent_trials: int,
    save: Callable[[], None],
) -> None:
    queue, running, done = list(waiting), list[_Running](), 0
    try:
        while queue or running:
            while queue and len(running) < concurrent_trials:
                running.append(_start(queue.pop(0), command, folder))
                save()
            time.sleep(POLL_SECONDS)
            for trial in [trial for trial in running if trial.process.poll() is not None]:
                running.remove(trial)
                _close(trial, folder)
                save()
                done += 1
                _report(trial.entry, done, len(waiting))
    finally:
        _stop(running)
        for trial in running:
            _close(trial, folder)
        save()


def _start(entry: TrialEntry, command: Callable[[TrialEntry], list[str]], folder: Path) -> _Running:
    log_path = _log_path(entry, folder)
    log = log_path.open("a", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, str(GUARD), str(os.getpid()), *command(entry)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C must not reach the trials: this process asks them to save instead.
        start_new_session=True,
    )
    entry.status = "running"
    print(f"{entry.name}: started, see {log_path}", flush=True)
    return _Running(entry, process, log, time.monotonic())


def _log_path(entry: TrialEntry, folder: Path) -> Path:
    return folder / f"{entry.name}.log"


def _close(trial: _Running, folder: Path) -> None:
    """Writes the end of a trial and its result into its entry."""
    trial.log.close()
    status = trial.process.returncode
    entry = trial.entry
    entry.seconds = round(time.monotonic() - trial.started, 2)
    entry.result = trial_result(folder / entry.name)
    entry.reason = None
    if status == 0:
        entry.status = "finished"
    elif status == EXIT_PREEMPTED or status == -signal.SIGTERM:
        entry.status = "preempted"
    else:
        # It hung, for instance, and can go on.
        entry.status = "preempted" if status == EXIT_AGAIN else "failed"
        entry.reason = _cause(_log_path(entry, folder), status)


def _cause(log: Path, status: int) -> str:
    """The last error in the log of a trial, or else its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    kind = "its configuration is refused" if status == EXIT_USAGE else f"status {status}"
    return f"{(errors or lines)[-1].strip()} ({kind})" if lines else kind


def _report(entry: TrialEntry, done: int, total: int) -> None:
    reason = f": {entry.reason}" if entry.reason else ""
    loss, steps = (entry.result.get(key) for key in ("train_loss", "train_loss_steps"))
    reached = f", loss {loss:.4f}" if loss is not None else ""
    if reached and steps and steps > 1:
        reached += f", mean of the last {steps:,.0f} steps"
    print(
        f"[{done}/{total}] {entry.name}: {entry.status} after {entry.seconds:.0f} s"
        f"{reached}{reason}",
        flush=True,
    )


def _stop(running: Sequence[_Running]) -> None:
    """Asks the trials to save and stop. Kills those that are late, or all at a second interrupt."""
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
        raise Preempted("the trials were asked to save; start the sweep again to continue")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
