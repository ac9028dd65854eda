"""Faults of processes: killed, asked to leave, stopped, stuck, alone among others."""

import contextlib
import os
import pathlib
import re
import signal
import socket
import time

from tests.chaos.home import EVAL_PERIOD, SAVE_PERIOD, STEPS
from tests.chaos.hooks import clock_set_back, stuck
from tests.chaos.records import check, difference, events
from tests.chaos.trial import AGAIN, APART, PREEMPTED, Trial, kind
from tests.hosts.test_lifeline import free_port

KILLED = (-signal.SIGKILL,)
INTERRUPTED = 130
# The watchdog is told to wait so long at least, and not a minute.
PATIENCE = {"train__watchdog": "@Watchdog()", "Watchdog__min_seconds": 6.0}
HANG_SECONDS = 60.0


# ---- Killed --------------------------------------------------------------------------------------


def _kill(trial: Trial, place: str, at: int) -> None:
    life = trial.start(trial.hold(place, at))
    life.reaches(place)
    if place == "data":  # anywhere in the steps that follow
        life.release(place)
        time.sleep(trial.random.uniform(0.0, 0.03))
    trial.strike()
    life.signal(signal.SIGKILL)
    trial.ends(life)
    trial.finish()


@kind("SIGKILL in training", "killed", ends=KILLED)
def _(trial: Trial) -> None:
    """The next start goes on from the newest whole checkpoint, bit for bit."""
    _kill(trial, "data", trial.step())


@kind("SIGKILL in a save", "killed", ends=KILLED)
def _(trial: Trial) -> None:
    """No event calls the half checkpoint saved; the one before it is used; no half one is left."""
    _kill(trial, "save", SAVE_PERIOD * trial.random.randint(2, STEPS // SAVE_PERIOD - 1))


@kind("SIGKILL in an evaluation", "killed", ends=KILLED)
def _(trial: Trial) -> None:
    """The evaluation is made again, and its line is in the log once."""
    _kill(trial, "evaluate", trial.random.randint(1, STEPS // EVAL_PERIOD - 1))


@kind("SIGKILL in start-up", "killed", ends=KILLED)
def _(trial: Trial) -> None:
    """A start that is killed before its first step leaves the run as it was."""
    if trial.random.random() < 0.5:
        trial.copy(trial.lab.stopped())
    _kill(trial, "compile", 0)


# ---- Asked to leave ------------------------------------------------------------------------------


def _leave(trial: Trial, number: int, place: str, at: int) -> None:
    life = trial.start(trial.hold(place, at))
    life.reaches(place)
    trial.strike()
    life.signal(number)
    life.release(place)
    trial.ends(life)


@kind(
    "SIGTERM in training", "asked to leave", ends=(PREEMPTED,), tells=(("preempted",),), repeats=0
)
def _(trial: Trial) -> None:
    """The state is saved at once, and the next start repeats no step."""
    _leave(trial, signal.SIGTERM, "data", trial.step())
    trial.finish()


@kind(
    "SIGTERM in an evaluation",
    "asked to leave",
    ends=(PREEMPTED,),
    tells=(("preempted",),),
    repeats=0,
)
def _(trial: Trial) -> None:
    """The evaluation is left between two batches, and the next start makes it up."""
    _leave(trial, signal.SIGTERM, "evaluate", trial.random.randint(1, STEPS // EVAL_PERIOD - 1))
    trial.finish()


@kind("SIGTERM in start-up", "asked to leave", ends=(PREEMPTED,), repeats=0)
def _(trial: Trial) -> None:
    """It ends with the status of a preemption, and says that nothing was there to save."""
    if trial.random.random() < 0.5:
        trial.copy(trial.lab.stopped())
    life = trial.start(trial.hold("compile"))
    life.reaches("compile")
    trial.strike()
    life.signal(signal.SIGTERM)
    life.release("compile")
    trial.ends(life)
    words = life.errors().strip().splitlines()[-1:]
    check(words and words[0].startswith("preempted: "), f"the last line is {words}")
    trial.finish()


@kind("SIGINT", "asked to leave", ends=(PREEMPTED,), tells=(("preempted",),), repeats=0)
def _(trial: Trial) -> None:
    """The first Ctrl-C saves and leaves."""
    _leave(trial, signal.SIGINT, "data", trial.step())
    trial.finish()


@kind("SIGINT twice", "asked to leave", ends=(INTERRUPTED,))
def _(trial: Trial) -> None:
    """The second Ctrl-C leaves at once, without a save."""
    life = trial.start(trial.hold("data", trial.step()))
    life.reaches("data")
    trial.strike()
    life.signal(signal.SIGINT)
    time.sleep(0.3)  # so that the two are not one
    life.signal(signal.SIGINT)
    trial.ends(life, seconds=20.0)
    trial.finish()


@kind("SIGHUP", "asked to leave", ends=(PREEMPTED,), tells=(("preempted",),), repeats=0)
def _(trial: Trial) -> None:
    """A closed terminal saves and leaves."""
    _leave(trial, signal.SIGHUP, "data", trial.step())
    trial.finish()


# ---- Stopped and stuck ---------------------------------------------------------------------------


@kind("SIGSTOP and SIGCONT", "stopped", repeats=0)
def _(trial: Trial) -> None:
    """A process that is stopped for a second goes on as if nothing had been."""
    life = trial.start(trial.hold("data", trial.step()))
    life.reaches("data")
    life.release("data")
    time.sleep(trial.random.uniform(0.0, 0.03))
    trial.strike()
    life.signal(signal.SIGSTOP)
    time.sleep(1.0)
    life.signal(signal.SIGCONT)
    trial.ends(life)
    trial.conclude()


@kind("main thread stuck", "stopped", ends=(AGAIN,), tells=(("hung",),))
def _(trial: Trial) -> None:
    """The process dumps its stacks, names the phase, and ends with "start me again"."""
    step = trial.step()
    trial.bindings = PATIENCE
    life = trial.start(trial.hold("data", step - 1), stuck(step))
    life.reaches("data")
    trial.strike(step)
    life.release("data")
    with trial.idle():
        trial.ends(life, seconds=HANG_SECONDS)
    errors = life.errors()
    check("Thread 0x" in errors, "no stacks are dumped")
    check(re.search(r"\bdata\b", errors), "the phase is not named")
    trial.finish()


@kind("main thread of one of two stuck", "stopped", ends=(AGAIN,), tells=(("hung",),), processes=2)
def _(trial: Trial) -> None:
    """Both dump their stacks, say who is in which phase, and end with "start me again"."""
    trial.bindings = PATIENCE
    step, index = trial.step(), trial.random.randrange(2)
    hooks = [(trial.hold("data", step - 1),) if one == 0 else () for one in range(2)]
    hooks[index] += (stuck(step),)
    lives = trial.start_all(2, *hooks)
    lives[0].reaches("data")
    trial.strike(step)
    lives[0].release("data")
    with trial.idle():
        trial.ends(*lives, seconds=HANG_SECONDS)
    for life in lives:
        check("Thread 0x" in life.errors(), "no stacks are dumped")
    trial.finish()


@kind("SIGSTOP of one of two", "stopped", ends=(AGAIN,), processes=2)
def _(trial: Trial) -> None:
    """The other ends with "start me again" and names it; so does that one once it goes on."""
    trial.bindings = {**PATIENCE, "Hosts__silent_seconds": 6.0}
    lives = trial.start_all(2, (trial.hold("data", trial.step()),))
    lives[0].reaches("data")
    trial.strike()
    stopped = trial.random.randrange(2)
    lives[stopped].signal(signal.SIGSTOP)
    lives[0].release("data")
    with trial.idle():
        trial.ends(lives[1 - stopped], seconds=HANG_SECONDS, look=False)
    lives[stopped].signal(signal.SIGCONT)
    trial.ends(lives[stopped])
    check(f"process {stopped}" in lives[1 - stopped].errors(), "the stopped one is not named")
    trial.finish()


# ---- Several processes ---------------------------------------------------------------------------


@kind("SIGKILL of one of two", "several", ends=(AGAIN, *KILLED), tells=(("lost",),), processes=2)
def _(trial: Trial) -> None:
    """The other names it, ends with "start me again" within seconds, and the run goes on."""
    lives = trial.start_all(2, (trial.hold("data", trial.step()),))
    lives[0].reaches("data")
    trial.strike()
    killed = trial.random.randrange(2)
    lives[killed].signal(signal.SIGKILL)
    lives[0].release("data")
    trial.ends(*lives, seconds=30.0)
    check(f"process {killed}" in lives[1 - killed].errors(), "the killed one is not named")
    trial.finish()


@kind("SIGTERM to one of two", "several", ends=(PREEMPTED,), tells=(("preempted",),), repeats=0,
      processes=2)  # fmt: skip
def _(trial: Trial) -> None:
    """Both leave at one step, which is saved once."""
    lives = trial.start_all(2, (trial.hold("data", trial.step(last=STEPS // 2)),))
    lives[0].reaches("data")
    trial.strike()
    lives[trial.random.randrange(2)].signal(signal.SIGTERM)
    time.sleep(2.0)  # JAX looks once a second
    lives[0].release("data")
    trial.ends(*lives)
    check(len(events(trial.model_dir, "preempted")) == 1, "not one event `preempted`")
    trial.finish()


@kind("a stranger at the meeting port", "several", repeats=0, processes=2)
def _(trial: Trial) -> None:
    """What connects and is no process of the run takes no place and no memory; the run goes on."""
    # The stranger comes before process 1 does: that is not started yet.
    port = free_port()
    first = trial.start_one(0, 2, port)
    stranger = None
    deadline = time.monotonic() + 60.0
    while stranger is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            stranger = socket.create_connection(("localhost", port), timeout=5.0)
    check(stranger, "process 0 does not listen")
    assert stranger is not None
    before = _memory(first.pid)
    trial.strike(0)
    sent = 0
    with contextlib.suppress(OSError):
        if trial.random.random() < 0.5:
            stranger.sendall(b'{"index": 1, "processes": 2, "who": "stranger"}\n' * 3)
        while sent < 64:
            stranger.sendall(b"x" * 2**20)
            sent += 1
    time.sleep(0.2)
    grown = _memory(first.pid) - before
    check(grown < 24, f"{sent} MB of a stranger made process 0 larger by {grown:.0f} MB")
    stranger.close()
    trial.ends(first, trial.start_one(1, 2, port))
    trial.conclude()


def _memory(pid: int) -> float:
    """Resident megabytes."""
    pages = pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


# ---- Time and owners -----------------------------------------------------------------------------


@kind("the clock is set back", "time and owners", repeats=0)
def _(trial: Trial) -> None:
    """Nothing depends on the clock of the machine: no step, no line, no second of the account."""
    life = trial.start(clock_set_back(trial.step(), trial.random.choice([60.0, 3600.0, 1e6])))
    trial.ends(life)
    trial.conclude()
    for event in events(trial.model_dir, "finished"):
        check(min(event["seconds"].values()) >= 0.0, f"negative seconds: {event['seconds']}")


@kind("two trainings on one MODEL_DIR", "time and owners", repeats=0)
def _(trial: Trial) -> None:
    """The second is refused with the name of the first, which goes on undisturbed."""
    life = trial.start(trial.hold("data", trial.step()))
    life.reaches("data")
    second = trial.start()
    trial.strike()
    status = second.end()
    check(status == 2, f"exit status {status} of the second:\n{second.errors()[-500:]}")
    check(f"process {life.pid} " in second.errors(), f"no owner is named: {second.errors()[-300:]}")
    life.release("data")
    trial.ends(life)
    trial.conclude()


@kind("another number of processes", "several", processes=2, curve=False, repeats=0)
def _(trial: Trial) -> None:
    """What one process has saved, two go on with, and the curve is the same but for rounding."""
    trial.copy(trial.lab.stopped())
    trial.strike()
    trial.finish()
    found = difference(trial.model_dir, trial.lab.base(), STEPS, apart=APART)
    check(found is None, f"not the curve of one process: {found}")
