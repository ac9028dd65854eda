"""Faults of the numbers of a run, and of the data under it."""

import json
import math
import os
import pathlib
import shutil
import signal
from collections.abc import Sequence

import numpy as np

from tests.chaos.home import NAMES, SAVE_PERIOD, STEPS
from tests.chaos.hooks import poison
from tests.chaos.lives import last_lines
from tests.chaos.records import check, checkpoints, curve, difference, events
from tests.chaos.trial import Trial, kind

FAULT = 1
USAGE = 2
SKIPPED = (("skipped",),)
# A window that a run of forty steps fills, and every checkpoint, to go back to any of them.
SPIKES = {
    "train__spikes": "@Spikes()", "Spikes__window": 12, "Spikes__margin": 2,
    "train__keep_checkpoints": STEPS // SAVE_PERIOD,
}  # fmt: skip


# ---- Numbers -------------------------------------------------------------------------------------


def _poisoned(trial: Trial, steps: Sequence[int], factor: float, **bindings: object) -> int:
    """Train with poisoned steps; the exit status. The lines before them are as they must be."""
    trial.notes.append(f"steps {steps[0]} to {steps[-1]}")
    trial.hooks, trial.bindings = (poison(list(steps), factor),), {**SPIKES, **bindings}
    life = trial.start()
    trial.ends(life)
    own, theirs = curve(trial.model_dir)[0], curve(trial.lab.base())[0]
    for step in range(1, steps[0]):
        # The poisoned program is another one, so the last bits may differ.
        near = step in own and math.isclose(own[step], theirs[step], rel_tol=1e-5)
        check(near, f"the line of step {step}, before the fault, is not the undisturbed one")
    status = life.poll()
    assert status is not None
    if status:
        words = life.errors().strip().splitlines()[-1]
        check(words.startswith("error: "), f"last line: {words}")
    return status


def _named(trial: Trial, name: str, step: int) -> dict:
    """The event of some kind that names a step."""
    found = events(trial.model_dir, name)
    steps = [event["step"] for event in found]
    check(step in steps, f"the events `{name}` name steps {steps}, it was {step}")
    return found[steps.index(step)]


@kind("NaN in one step", "numbers", tells=SKIPPED, curve=False, repeats=0)
def _(trial: Trial) -> None:
    """The update is not applied, the step and its documents are named, and the run goes on."""
    step = trial.step()
    _poisoned(trial, [step], math.nan)
    check(_named(trial, "skipped", step).get("documents"), "no document is named")
    trial.conclude()


@kind("infinity in a few steps", "numbers", tells=SKIPPED, curve=False, repeats=0)
def _(trial: Trial) -> None:
    """As with one NaN: each of the steps is left out."""
    first = trial.step()
    steps = range(first, first + trial.random.randint(2, 5))
    _poisoned(trial, steps, math.inf)
    for step in steps:
        _named(trial, "skipped", step)
    trial.conclude()


@kind("NaN in many steps", "numbers", tells=(("rewound",), *SKIPPED), curve=False)
def _(trial: Trial) -> None:
    """The run goes back to a checkpoint before them, passes over them, and comes to its end."""
    first = trial.step(SAVE_PERIOD + 3, 24)
    _poisoned(trial, range(first, first + 10), math.nan)
    trial.conclude()


@kind("NaN from a step on", "numbers", ends=(0, FAULT), tells=SKIPPED, curve=False)
def _(trial: Trial) -> None:
    """The run does not go in a circle: it ends with the reason, or has passed over all of them."""
    first = trial.step(SAVE_PERIOD + 3, 24)
    if _poisoned(trial, range(first, STEPS + 1), math.nan) == 0:
        trial.conclude()
    own = curve(trial.model_dir)[0]
    learnt = [step for step in own if step >= first and math.isfinite(own[step] or math.nan)]
    check(not learnt, f"losses of the steps {learnt}, which have none")


@kind("a spike, with a warning", "numbers", tells=(("spike",),), curve=False, repeats=0)
def _(trial: Trial) -> None:
    """A spike is an event with its step."""
    step = trial.step(16)
    _poisoned(trial, [step], 30.0)
    _named(trial, "spike", step)
    trial.conclude()


@kind("a spike, left out", "numbers", tells=(("spike",), *SKIPPED), curve=False, repeats=0)
def _(trial: Trial) -> None:
    """Where the configuration says so, the update of a spike is not applied."""
    step = trial.step(16)
    _poisoned(trial, [step], 30.0, Spikes__action="'skip'")
    _named(trial, "skipped", step)
    own, theirs = curve(trial.model_dir)[0], curve(trial.lab.base())[0]
    later = max(abs(own[n] - theirs[n]) for n in range(step + 1, STEPS + 1))
    check(later < 0.2, f"the loss is {later:.2f} away after a spike that was left out")
    trial.conclude()


REWIND = {"Spikes__action": "'rewind'", "Spikes__patience": 2}
REWOUND = (22, 23, 24)


@kind("a spike, gone back for", "numbers", tells=(("spike",), ("rewound",)), curve=False)
def _(trial: Trial) -> None:
    """The run goes back to a checkpoint before the spike, and passes over its steps."""
    first = trial.step(18, 28)
    _poisoned(trial, range(first, first + 3), 30.0, **REWIND)
    _passed_over(trial, first)
    trial.conclude()


def _passed_over(trial: Trial, first: int) -> None:
    """Steps of a stretch have no loss, and what is passed over is in plan.json."""
    own = curve(trial.model_dir)[0]
    check(own.get(first) is None, f"step {first} has a loss, though it is passed over")
    stretches = json.loads((trial.model_dir / "plan.json").read_text())["skipped_steps"]
    check(first in [start for start, _ in stretches], f"plan.json has the stretches {stretches}")


@kind("SIGKILL after going back", "numbers", ends=(-signal.SIGKILL,), curve=False)
def _(trial: Trial) -> None:
    """What the run decided is decided again, bit for bit, whenever it was killed."""

    def make(whole: Trial) -> None:
        whole.hooks, whole.bindings = (poison([*REWOUND], 30.0),), {**SPIKES, **REWIND}
        [life] = whole.start_all(1)
        check(life.end() == 0, f"the run fails:\n{last_lines(life.errors())}")

    base = trial.lab.run("gone_back", make)
    trial.hooks, trial.bindings = (poison([*REWOUND], 30.0),), {**SPIKES, **REWIND}
    life = trial.start(trial.hold("data", trial.step(30, 36)))
    life.reaches("data")
    trial.strike()
    life.signal(signal.SIGKILL)
    trial.ends(life)
    trial.finish()
    found = difference(trial.model_dir, base, STEPS)
    check(found is None, f"not the curve of the run without the kill: {found}")


# ---- Data ----------------------------------------------------------------------------------------


def _own_stores(trial: Trial) -> pathlib.Path:
    """The tokens of a train store that this trial alone has."""
    trial.lab.base()  # builds the stores
    own = trial.model_dir.parent / "stores"
    shutil.copytree(trial.lab.home / "stores", own)
    trial.cache_dir = own
    name = trial.random.choice(NAMES)
    [tokens] = own.glob(f"{name}-train*/tokens.bin")
    trial.notes.append(tokens.parent.name)
    return tokens


def _mend(trial: Trial) -> None:
    shutil.rmtree(trial.cache_dir)
    trial.cache_dir = trial.lab.home / "stores"


def _blames(errors: str, tokens: pathlib.Path) -> None:
    """The last line names the store."""
    words = errors.strip().splitlines()[-1]
    check(words.startswith("error: ") and tokens.parent.name.partition("-")[0] in words,
          f"last line: {words}")  # fmt: skip


@kind("bits flipped in a token store", "data", ends=(FAULT, USAGE))
def _(trial: Trial) -> None:
    """The store is verified after the start; the run ends and names it before it is finished."""
    tokens = _own_stores(trial)
    content = np.fromfile(tokens, np.uint8)
    content[::2] ^= 1
    content.tofile(tokens)
    trial.copy(trial.lab.stopped())
    trial.strike()
    life = trial.start()
    trial.ends(life)
    _blames(life.errors(), tokens)
    _mend(trial)
    trial.trusted = checkpoints(trial.lab.stopped())
    for step, path in checkpoints(trial.model_dir).items():
        if step not in trial.trusted:  # it has learnt from the wrong tokens
            shutil.rmtree(path)
    trial.finish()


@kind("token ids past the vocabulary", "data", ends=(FAULT, USAGE))
def _(trial: Trial) -> None:
    """The first such batch ends the run, by name of the store and row; none of it is learnt."""
    tokens = _own_stores(trial)
    ids = np.fromfile(tokens, np.uint16)
    ids[trial.random.randrange(3) :: 7] = trial.random.choice([384, 4000, 65535])
    ids.tofile(tokens)
    trial.copy(trial.lab.stopped())
    trial.strike()
    life = trial.start()
    trial.ends(life)
    _blames(life.errors(), tokens)
    _mend(trial)
    trial.finish()


@kind("a token store is cut while training", "data", ends=(FAULT, -7))
def _(trial: Trial) -> None:
    """It ends with the store's name, or with a stack where the system sends a signal."""
    tokens = _own_stores(trial)
    life = trial.start(trial.hold("data", trial.step()))
    life.reaches("data")
    trial.strike()
    os.truncate(tokens, 0)
    life.release("data")
    trial.ends(life)
    if life.poll() == -7:
        check("Current thread" in life.errors() or "Fatal Python error" in life.errors(),
              f"no stack:\n{last_lines(life.errors())}")  # fmt: skip
    else:
        _blames(life.errors(), tokens)
    _mend(trial)
    trial.finish()
