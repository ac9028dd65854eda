"""Faults of checkpoints: damaged, gone, of another run; and faults while one is written."""

import errno
import os
import pathlib
import random
import shutil
from collections.abc import Callable

from tests.chaos.home import SAVE_PERIOD, STEPS
from tests.chaos.hooks import write_error
from tests.chaos.lives import last_lines
from tests.chaos.records import check, checkpoints, events
from tests.chaos.trial import AGAIN, STOPPED, Trial, kind

REFUSED = (("refused",),)
FAILED = (("save_failed",),)
FAULT = 1
USAGE = 2


# ---- The newest is damaged -----------------------------------------------------------------------


def flip(file: pathlib.Path, drawn: random.Random) -> str:
    """Turn one bit of a file over; which one."""
    content = bytearray(file.read_bytes())
    place, bit = drawn.randrange(len(content)), drawn.randrange(8)
    content[place] ^= 1 << bit
    file.write_bytes(content)
    return f"bit {bit} of byte {place} of {file.name}"


def files_of(folder: pathlib.Path, *patterns: str) -> list[pathlib.Path]:
    """The files below a folder that match one of the patterns and have a byte, in a fixed order."""
    found = {path for pattern in patterns for path in folder.rglob(pattern)}
    return sorted(path for path in found if path.is_file() and path.stat().st_size)


def _damage(trial: Trial, damage: Callable[[pathlib.Path], str | None]) -> None:
    """A stopped run whose newest checkpoint is damaged; started again, it uses the one before."""
    trial.copy(trial.lab.stopped())
    whole = checkpoints(trial.model_dir)
    newest = whole.pop(STOPPED)
    note = damage(newest)
    trial.notes.append(note or "")
    trial.trusted = whole
    trial.strike()
    trial.finish()
    refused = events(trial.model_dir, "refused")
    check(
        [event["step"] for event in refused] == [STOPPED],
        f"the events `refused` name the steps {[event['step'] for event in refused]}",
    )
    check(newest.name in str(refused[0]["folder"]), f"the folder is {refused[0]['folder']!r}")
    check(refused[0]["reason"], "no reason is given")
    aside = [path.name for path in trial.model_dir.iterdir() if str(STOPPED) in path.name]
    check(aside, "the damaged checkpoint is not kept aside")


@kind("bit flip in a checkpoint's data", "checkpoint", tells=REFUSED)
def _(trial: Trial) -> None:
    """The damaged checkpoint is named and moved aside, and the whole one before it is used."""
    files = lambda folder: files_of(folder, "d/*")  # noqa: E731
    _damage(trial, lambda folder: flip(trial.random.choice(files(folder)), trial.random))


@kind("bit flip in a checkpoint's metadata", "checkpoint", tells=REFUSED)
def _(trial: Trial) -> None:
    """As with its data: also where the numbers would be right."""
    names = ("_METADATA", "metadata", "_sharding", "array_metadatas/*")
    files = lambda folder: files_of(folder, *names)  # noqa: E731
    _damage(trial, lambda folder: flip(trial.random.choice(files(folder)), trial.random))


@kind("bit flip in a checkpoint's manifest", "checkpoint", tells=REFUSED)
def _(trial: Trial) -> None:
    """As with its data: our manifest, and those of the format."""
    files = lambda folder: files_of(folder, "[Mm][Aa][Nn][Ii][Ff][Ee][Ss][Tt]*")  # noqa: E731
    _damage(trial, lambda folder: flip(trial.random.choice(files(folder)), trial.random))


@kind("newest checkpoint truncated", "checkpoint", tells=REFUSED)
def _(trial: Trial) -> None:
    """As with a bit flip: one file is cut."""

    def cut(folder: pathlib.Path) -> str:
        file = trial.random.choice(files_of(folder / "state", "*"))
        os.truncate(file, trial.random.randrange(file.stat().st_size))
        return f"{file.name} cut to {file.stat().st_size} bytes"

    _damage(trial, cut)


@kind("newest checkpoint emptied", "checkpoint", tells=REFUSED)
def _(trial: Trial) -> None:
    """As with a bit flip: the folder is there, and nothing in it."""

    def empty(folder: pathlib.Path) -> None:
        shutil.rmtree(folder)
        folder.mkdir()

    _damage(trial, empty)


@kind("an item of the newest checkpoint is gone", "checkpoint", tells=REFUSED)
def _(trial: Trial) -> None:
    """As with a bit flip: `state`, `run` or one file is not there."""

    def remove(folder: pathlib.Path) -> str:
        item = trial.random.choice([folder / "state", folder / "run", *files_of(folder, "d/*")])
        shutil.rmtree(item) if item.is_dir() else item.unlink()
        return str(item.relative_to(folder))

    _damage(trial, remove)


@kind("something else has a checkpoint's name", "checkpoint", repeats=0)
def _(trial: Trial) -> None:
    """A folder or a file of the name of a newer checkpoint does not hide the whole one."""
    trial.copy(trial.lab.stopped())
    path = trial.model_dir / f"checkpoint_{trial.random.randint(STOPPED + 1, STEPS)}"
    trial.trusted = checkpoints(trial.model_dir)
    if trial.random.random() < 0.5:
        path.mkdir()
    else:
        path.write_text("x")
    trial.notes.append(f"{path.name}, a {'folder' if path.is_dir() else 'file'}")
    trial.strike()
    trial.finish()


@kind("another run's checkpoint", "checkpoint", tells=REFUSED, repeats=0)
def _(trial: Trial) -> None:
    """A checkpoint of the same shape from another run is refused by its identity."""

    def other(made: Trial) -> None:
        [life] = made.start_all(1, SEED=7, TRAIN_STEPS=25)
        check(life.end() == 0, f"the other run fails:\n{last_lines(life.errors())}")

    theirs = trial.lab.run("another", other)
    trial.copy(trial.lab.stopped())
    trial.trusted = checkpoints(trial.model_dir)
    step = trial.random.choice([step for step in checkpoints(theirs) if step > STOPPED])
    shutil.copytree(theirs / f"checkpoint_{step}", trial.model_dir / f"checkpoint_{step}")
    trial.strike()
    trial.finish()


@kind("all checkpoints gone", "checkpoint", repeats=STOPPED)
def _(trial: Trial) -> None:
    """The start is refused and touches no line; `train.from_scratch` means it, and keeps them."""
    trial.copy(trial.lab.stopped())
    for path in checkpoints(trial.model_dir).values():
        shutil.rmtree(path)
    lines = (trial.model_dir / "metrics.jsonl").read_bytes()
    trial.strike()
    life = trial.start()
    status = life.end()
    check(status in (FAULT, USAGE), f"exit status {status}: from scratch without a word")
    check("from_scratch" in life.errors(), f"the way out is not told: {life.errors()[-300:]}")
    check((trial.model_dir / "metrics.jsonl").read_bytes() == lines, "lines are lost")
    trial.finish(train__from_scratch=True)
    kept = [path for path in trial.model_dir.rglob("*") if path.is_file()]
    check(any(lines in path.read_bytes() for path in kept), "the old lines are not kept aside")


# ---- A save fails --------------------------------------------------------------------------------


def _saves(trial: Trial) -> list[int]:
    """The steps of the events `saved` and `save_failed` rise, and none is both."""
    failed = [event["step"] for event in events(trial.model_dir, "save_failed")]
    saved = [event["step"] for event in events(trial.model_dir, "saved")]
    check(len(set(saved)) == len(saved), f"saved twice: {saved}")
    check(saved == sorted(saved), f"not in order: {saved}")
    return failed


@kind("one I/O error in one save", "save", tells=FAILED, repeats=0)
def _(trial: Trial) -> None:
    """The failure is an event, training goes on, and the save is tried again."""
    first = SAVE_PERIOD * trial.random.randint(1, STEPS // SAVE_PERIOD - 1)
    trial.notes.append(f"save {first}")
    trial.ends(trial.start(write_error(first, 1, errno.EIO)))
    check(_saves(trial), "no step failed")
    trial.conclude()


@kind("several I/O errors in a row", "save", tells=FAILED, repeats=0)
def _(trial: Trial) -> None:
    """Every failure is an event, and the run has its last checkpoint at the end."""
    first = SAVE_PERIOD * trial.random.randint(1, STEPS // SAVE_PERIOD - 2)
    trial.notes.append(f"save {first}")
    times = trial.random.randint(2, 3)
    trial.ends(trial.start(write_error(first, times, errno.EIO)))
    check(len(_saves(trial)) == times, f"{times} failures, the events are {_saves(trial)}")
    check(STEPS in checkpoints(trial.model_dir), "the last step is not saved")
    trial.conclude()


@kind("the disk is full for a while", "save", tells=FAILED, repeats=0)
def _(trial: Trial) -> None:
    """Lines wait and saves are tried again: when there is room again, nothing is missing."""
    step = trial.step(SAVE_PERIOD + 1, STEPS - 3 * SAVE_PERIOD)
    if not trial.own_disk(megabytes=4):
        trial.notes.append("no disk of its own: errors of Orbax's thread")
        trial.ends(trial.start(write_error(step, 2, errno.ENOSPC)))
        trial.conclude()
        return
    later = trial.hold("data", step)
    life = trial.start(later)
    life.reaches("data")
    filler = trial.model_dir.parent / "filler"
    fill(filler, leave=trial.random.choice([0, 16384]))
    trial.strike()
    life.release("data")
    life.wait(lambda: b"save_failed" in life.errors().encode() or life.poll() is not None
              or _failed(trial), "a failed save")  # fmt: skip
    filler.unlink()
    trial.ends(life)
    trial.conclude()


def _failed(trial: Trial) -> bool:
    return bool(events(trial.model_dir, "save_failed"))


def fill(file: pathlib.Path, leave: int) -> None:
    """Fill the disk with a file, but for `leave` bytes."""
    with open(file, "wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            os.truncate(file, max(0, stream.tell() - leave))


@kind("I/O error in one of two", "save", ends=(0, AGAIN), tells=FAILED, processes=2)
def _(trial: Trial) -> None:
    """All save again, or all end within `save_timeout`: nobody waits for the other."""
    first = SAVE_PERIOD * trial.random.randint(2, STEPS // SAVE_PERIOD - 1)
    index = trial.random.randrange(2)
    trial.notes.append(f"save {first} in process {index}")
    hooks = [(write_error(first, 1, errno.EIO),) if one == index else () for one in range(2)]
    lives = trial.start_all(2, *hooks, train__save_timeout=10.0)
    trial.strike(first)
    trial.ends(*lives)
    if lives[0].poll() == 0:
        trial.conclude()
    else:
        trial.finish(train__save_timeout=10.0)


@kind("permission on MODEL_DIR lost", "save", ends=(FAULT,))
def _(trial: Trial) -> None:
    """It ends within seconds, with the reason; with the permission back, the run goes on."""
    life = trial.start(trial.hold("data", trial.step(last=STEPS - SAVE_PERIOD)))
    life.reaches("data")
    trial.strike()
    with trial.locked(trial.model_dir):
        life.release("data")
        trial.ends(life, seconds=45.0)
        words = life.errors().strip().splitlines()[-1:]
        check(words and words[0].startswith("error: "), f"the last line is {words}")
    trial.finish()
