"""Faults of a run's own files: its logs, its plan, its folder."""

import shutil

from tests.chaos.home import STEPS
from tests.chaos.records import check, checkpoints, curve, events
from tests.chaos.trial import STOPPED, Trial, kind

FAULT = 1
USAGE = 2
LOGS = ("metrics.jsonl", "events.jsonl")
TOLD = (("logs_broken", "logs_rewritten"),)


# ---- Logs and plan -------------------------------------------------------------------------------


@kind("a log is unlinked while training", "files", tells=TOLD, repeats=0)
def _(trial: Trial) -> None:
    """It is noticed at a flush, and the file is written again from memory, all lines of it."""
    life = trial.start(trial.hold("data", trial.step()))
    life.reaches("data")
    name = trial.random.choice(LOGS)
    trial.notes.append(name)
    trial.strike()
    (trial.model_dir / name).unlink()
    life.release("data")
    trial.ends(life)
    trial.conclude()


def _break_line(trial: Trial, name: str, line: bytes | None, where: int) -> None:
    """Replace a line of a log of a stopped run; None leaves the first half of it."""
    trial.copy(trial.lab.stopped())
    file = trial.model_dir / name
    lines = file.read_bytes().split(b"\n")
    lines[where] = lines[where][: len(lines[where]) // 2] if line is None else line
    file.write_bytes(b"\n".join(lines))
    trial.notes.append(f"line {where + 1} of {name}")


def _line_of_step(trial: Trial, step: int) -> int:
    """The index of a training line in metrics.jsonl of the stopped run."""
    lines = (trial.lab.stopped() / "metrics.jsonl").read_bytes().split(b"\n")
    return next(n for n, line in enumerate(lines) if b'"step": %d,' % step in line)


def _lines_but(trial: Trial, missing: set[int]) -> None:
    """The curve is the undisturbed one, but for the missing training lines."""
    own, theirs = curve(trial.model_dir), curve(trial.lab.base())
    wanted = {step: loss for step, loss in theirs[0].items() if step not in missing}
    check(own[0] == wanted, "the lines that are left are not those of an undisturbed run")
    check(own[1] == theirs[1], "the evaluations are not those of an undisturbed run")


@kind("garbage in a line of a log", "files", tells=TOLD, curve=False, repeats=0)
def _(trial: Trial) -> None:
    """The broken line is moved aside and told, and the run goes on with the others."""
    garbage = trial.random.choice([b"\0" * 40, b"{}", b"[1]", b'{"step": ', b"\xff\xfe junk", b"1"])
    name, step = trial.random.choice(LOGS), trial.random.randint(2, STOPPED - 2)
    where = _line_of_step(trial, step) if name == LOGS[0] else 1
    _break_line(trial, name, garbage, where)
    trial.strike()
    trial.finish()
    _lines_but(trial, {step} if name == LOGS[0] else set())


@kind("half a line at the end of a log", "files", repeats=0)
def _(trial: Trial) -> None:
    """A torn last line, as a power cut leaves it, is repaired in silence.

    It is a line past the newest checkpoint, so no line is missing.
    """
    trial.copy(trial.lab.stopped())
    file = trial.model_dir / trial.random.choice(LOGS)
    trial.notes.append(file.name)
    tail = file.read_bytes().split(b"\n")[-2]
    with open(file, "ab") as stream:
        stream.write(tail[: trial.random.randint(1, len(tail) - 1)])
    trial.strike()
    trial.finish()


@kind("a hole in metrics.jsonl", "files", tells=TOLD, curve=False, repeats=0)
def _(trial: Trial) -> None:
    """Lines that are missing are told, and the run goes on."""
    trial.copy(trial.lab.stopped())
    file = trial.model_dir / LOGS[0]
    lines = file.read_bytes().split(b"\n")
    first = trial.random.randint(2, 8)
    # Between two evaluations, so that only training lines are missing.
    missing = set(range(first, min(first + 4, 10)))
    kept = [line for line in lines if not any(b'"step": %d,' % step in line for step in missing)]
    file.write_bytes(b"\n".join(kept))
    trial.notes.append(f"steps {sorted(missing)}")
    trial.strike()
    trial.finish()
    _lines_but(trial, missing)


@kind("MODEL_DIR is removed while training", "files", ends=(0, FAULT), curve=False)
def _(trial: Trial) -> None:
    """The folder is made again with all files, and told; or the run ends with the reason."""
    life = trial.start(trial.hold("data", trial.step(last=STEPS - 12)))
    life.reaches("data")
    trial.strike()
    # The run may make a file again before its folder is gone, as under `rm -rf`.
    shutil.rmtree(trial.model_dir, ignore_errors=True)
    life.release("data")
    # Older events may be written again whose checkpoints are gone.
    trial.ends(life, look=False)
    if life.poll() == 0:
        for name in ("plan.json", "config.gin", *LOGS):
            check((trial.model_dir / name).is_file(), f"exit status 0, and {name} is not there")
        check(events(trial.model_dir, "logs_rewritten", "logs_broken"), "the removal is not told")
        check(STEPS in checkpoints(trial.model_dir), "the last step is not saved")
        return
    words = life.errors().strip().splitlines()[-1]
    check(words.startswith("error: ") and str(trial.model_dir) in words, f"last line: {words}")


@kind("plan.json is cut", "files", ends=(0, FAULT, USAGE), repeats=0)
def _(trial: Trial) -> None:
    """The run goes on; or the start is refused, names the file, and harms nothing."""
    trial.copy(trial.lab.stopped())
    file = trial.model_dir / "plan.json"
    whole = file.read_bytes()
    file.write_bytes(trial.random.choice([b"", b"{}", whole[: trial.random.randrange(len(whole))]]))
    trial.notes.append(f"{file.stat().st_size} of {len(whole)} bytes")
    trial.strike()
    life = trial.start()
    trial.ends(life)
    if life.poll() == 0:
        trial.conclude()
        return
    words = life.errors().strip().splitlines()[-1]
    check(words.startswith("error: ") and "plan.json" in words, f"last line: {words}")
    file.write_bytes(whole)
    trial.finish()
