"""Where a start of a run begins: at its newest whole checkpoint, at an older one, or anew.

What is in the way is moved aside under a free name. Nothing is deleted.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_style.checkpoints.find import (
    Found,
    Refused,
    Whose,
    checkpoint_steps,
    find_newest,
    has_parameters_alone,
    listed,
    named_checkpoints,
    set_aside,
)
from t5x_style.errors import Fault, UsageError
from t5x_style.files import local_path
from t5x_style.hosts import from_writer
from t5x_style.reporting import (
    EVENTS_FILE,
    METRICS_FILE,
    PLAN_FILE,
    DerivedRun,
    move_logs_aside,
    read_derived,
    read_log,
)
from t5x_style.reporting.logs.lives import BEGINNINGS
from t5x_style.reporting.logs.log_lines import move_aside

# The first or last part of the names of what is moved aside.
DAMAGED = "damaged"
ABANDONED = "abandoned"
BEFORE = "before"


@dataclasses.dataclass(frozen=True)
class Beginning:
    """What a start of a run found in its folder.

    Attributes:
      step: of the whole checkpoint that the run goes on from; None: it begins anew.
      refused: checkpoints that are damaged, or of another run.
      later: the steps of the checkpoints that `resume_step` leaves behind.
      anew: whether the files of an earlier run are in the way.
      notices: what a person should know, in words.
      asked_step: the `resume_step` of this start.
    """

    step: int | None = None
    refused: tuple[Refused, ...] = ()
    later: tuple[int, ...] = ()
    anew: bool = False
    notices: tuple[str, ...] = ()
    asked_step: int | None = None


NOTHING_THERE = Beginning()


def find_beginning(
    model_dir: str,
    *,
    checkpoint_period: int,
    resume_step: int | None = None,
    from_scratch: bool = False,
) -> Beginning:
    """Where a run goes on. All processes call this; nothing is changed.

    Args:
      checkpoint_period: steps between checkpoints.
      resume_step: go back to the checkpoint of this step, unless the last start did so.
      from_scratch: whether the run may begin anew where it cannot go on.

    Raises:
      UsageError: there is no whole checkpoint of `resume_step`; or the run cannot go on, and may
        not begin anew; or it has parameters alone.
      Fault: plan.json is damaged.
    """
    asked_step = resume_step
    if resume_step is not None and from_writer(lambda: _last_asked(model_dir)) == resume_step:
        resume_step = None
    found = Found(None, False, ())
    if not from_scratch or from_writer(lambda: _has_plan(model_dir)):
        found = find_newest(
            model_dir,
            whose_is(model_dir),
            first=resume_step or 0,
            last=resume_step,
        )
    named = from_writer(lambda: [step for step, _ in named_checkpoints(model_dir)])
    if found.step is None and resume_step is not None:
        others = ", ".join(f"{step:,}" for step in reversed(named) if step != resume_step)
        raise UsageError(
            f"train.resume_step = {resume_step}: MODEL_DIR = {model_dir} has no whole checkpoint "
            f"of that step{listed(found.refused)}; it has those of steps {others or 'none'}"
        )
    if found.step is None:
        missing = from_writer(lambda: _missing(model_dir, named, found, checkpoint_period))
        if missing is not None and not from_scratch:
            raise UsageError(
                f"MODEL_DIR = {model_dir}: {missing}.\nBring back a whole checkpoint; or set "
                "train.from_scratch = True, which moves what is there aside and begins anew; or "
                "name another MODEL_DIR"
            )
        return Beginning(
            refused=found.refused, anew=missing is not None, notices=tuple(found.notices)
        )
    checkpoint = checkpoint_steps(model_dir)[found.step]
    if from_writer(lambda: has_parameters_alone(checkpoint)):
        raise UsageError(
            f"MODEL_DIR = {model_dir} has parameters alone, which no run can go on from: they were "
            "exported. Name another MODEL_DIR, and this one as INITIAL_CHECKPOINT_PATH"
        )
    notices = found.notices
    if from_scratch:
        notices.append(
            "train.from_scratch = True is for a run that cannot go on, and this one goes on from "
            f"step {found.step:,}: to begin anew, name another MODEL_DIR"
        )
    later = () if resume_step is None else tuple(step for step in named if step > resume_step)
    return Beginning(found.step, found.refused, later, False, tuple(notices), asked_step)


def whose_is(model_dir: str) -> Whose:
    """Whose a checkpoint is, compared with the plan.json of a folder."""
    return lambda manifest: another_run(manifest["identity"], read_derived(model_dir))


def another_run(identity: Mapping[str, Any], own: DerivedRun) -> str | None:
    """Whose a checkpoint is; None if it is of this run.

    A run that changed its blend has checkpoints of each, and sources that were added. What only one
    of the two has was not recorded by the version that wrote the other.

    Args:
      identity: of the run that wrote the checkpoint; empty if that is not known.
      own: the plan.json of this run.
    """
    blends = [version["asked"] for version in own.blend]
    differences = []
    for name, value in sorted(identity.items()):
        here = own.identity.get(name, value)
        if name == "blend":
            here = value if value in blends else here
        if isinstance(value, dict) and isinstance(here, dict):
            parts = [
                (f"{name}.{part}", value[part], here.get(part))
                for part in sorted(value)
                if part in here or name == "stores"
            ]
        else:
            parts = [(name, value, here)]
        differences += [
            f"{part} {there!r} and not {own_value!r}"
            for part, there, own_value in parts
            if there != own_value
        ]
    return f"is of another run, with {', '.join(differences)}" if differences else None


def make_way(model_dir: str, beginning: Beginning) -> list[str]:
    """Move aside what is in the way of a start, in process 0.

    Returns:
      What was moved where, in words.
    """
    folder = local_path(model_dir, "MODEL_DIR")
    paths = dict(named_checkpoints(model_dir))
    refused = {checkpoint.step for checkpoint in beginning.refused}
    moves = dict.fromkeys(refused, DAMAGED) | dict.fromkeys(beginning.later, ABANDONED)
    if beginning.anew:
        moves |= dict.fromkeys(paths.keys() - refused, BEFORE)
    moved = {paths[step]: set_aside(paths[step], what) for step, what in sorted(moves.items())}
    if beginning.anew:
        # The events go last: if a kill comes in between, they say what the next start has to do.
        if (plan := folder / PLAN_FILE).exists():
            moved[plan] = move_aside(plan, BEFORE)
        for path in move_logs_aside(folder, BEFORE):
            moved[path.with_name(path.name.partition(f".{BEFORE}")[0])] = path
    return [f"moved {before.name} to {after.name}" for before, after in moved.items()]


def _last_asked(model_dir: str) -> int | None:
    """The `resume_step` of the last start.

    A run that is killed and started again by the same command keeps what it has learnt since.
    """
    events = read_log(local_path(model_dir, "MODEL_DIR") / EVENTS_FILE).fields
    begun = [event for event in events if event["event"] in BEGINNINGS]
    return begun[-1].get("resume_step") if begun else None


def _has_plan(model_dir: str) -> bool:
    try:
        read_derived(model_dir)
    except (UsageError, Fault):
        return False
    return True


def _missing(model_dir: str, named: list[int], found: Found, checkpoint_period: int) -> str | None:
    """What an earlier start has left without a checkpoint to go on from; None if nothing."""
    folder = local_path(model_dir, "MODEL_DIR")
    if found.refused:
        return f"none of its checkpoints can be used:{listed(found.refused)}"
    if named:
        return f"it has checkpoints and no {PLAN_FILE} that can be read"
    events = read_log(folder / EVENTS_FILE).fields
    saved = [event["step"] for event in events if event["event"] == "saved"]
    if saved:
        return (
            f"{EVENTS_FILE} says that a checkpoint of step {saved[-1]:,} was saved, and there is "
            "no checkpoint"
        )
    lines = read_log(folder / METRICS_FILE, only=("step",)).fields
    # A start that is killed before its first save begins anew by itself.
    if not events and lines and lines[-1]["step"] > checkpoint_period:
        return f"{METRICS_FILE} goes to step {lines[-1]['step']:,}, and there is no checkpoint"
    return None
