"""Writes the small files of a run's folder at its start and its end, and reads an ended run."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from t5x_style.accounting import Ledger
from t5x_style.accounting.audit.audit_record import skipped_tokens
from t5x_style.checkpoints.find import checkpoint_steps, restore_facts
from t5x_style.data.tokenizers.tokenizer import VOCABULARY_FILES
from t5x_style.errors import Fault
from t5x_style.files import write_whole
from t5x_style.hosts import from_writer, is_writer
from t5x_style.reporting import (
    CONFIG_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    PLAN_FILE,
    DerivedRun,
    RunWriter,
    SilentWriter,
    is_evaluation,
    missing_lines,
    not_in,
    read_derived,
    read_log,
    warn,
)
from t5x_style.training.derived import derive
from t5x_style.training.identity import identity, refuse_another_run
from t5x_style.training.recovery.steps import Steps
from t5x_style.training.run import Run


def write_files(run: Run, derived: DerivedRun) -> None:
    """Write what a run's folder has besides logs and checkpoints.

    plan.json comes first: after a kill it says that the other files are a run's.

    Raises:
      Fault: the folder cannot be written.
    """
    try:
        write_plan(run, derived)
        run.stores.tokenizer.write_copy(run.model_dir)
        write_whole(pathlib.Path(run.model_dir) / CONFIG_FILE, run.config_text)
    except OSError as error:
        raise Fault(f"cannot write a run under {run.model_dir}: {error}") from error


def missing_files_writer(run: Run, derived: DerivedRun) -> Callable[[], list[str]]:
    """A function that writes those of today's files that somebody has removed since.

    It returns their names, and raises Fault as `write_files`.
    """
    folder = pathlib.Path(run.model_dir)
    names = [PLAN_FILE, CONFIG_FILE, *VOCABULARY_FILES]
    names = [name for name in names if (folder / name).exists()]

    def write_missing() -> list[str]:
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            write_files(run, derived)
        return missing

    return write_missing


def write_plan(run: Run, derived: DerivedRun) -> None:
    text = json.dumps(derived.to_json(), indent=1) + "\n"
    write_whole(pathlib.Path(run.model_dir) / PLAN_FILE, text)


def finished_run(run: Run, began: float | None = None) -> dict[str, Any] | None:
    """The result of `loop.train` at the end of this run, read from its files.

    Args:
      began: the unix time since which the seconds of this start count; now if not given.

    Returns:
      None if the run has not ended, by its plan or by its early stopping.

    Raises:
      UsageError: `model_dir` holds another run.
    """
    began = time.time() if began is None else began
    return from_writer(lambda: _finished_run(run, began))


def _finished_run(run: Run, began: float) -> dict[str, Any] | None:
    checkpoints = checkpoint_steps(run.model_dir)
    step = max(checkpoints, default=None)
    if step is None or step > run.plan.steps:
        return None
    if step < run.plan.steps and run.early_stopping is None:
        return None
    before = read_derived(run.model_dir)
    refuse_another_run(before.identity, identity(run), run)
    folder = pathlib.Path(run.model_dir)
    log = read_log(folder / METRICS_FILE)
    ends = [
        event
        for event in read_log(folder / EVENTS_FILE).fields
        # A run that was extended also has the event of its earlier end.
        if event["event"] == "finished" and event["step"] == step
    ]
    lines = [line for line in log.fields if line["step"] <= step]
    # After a kill behind the last checkpoint, or on a full disk, that has what is missing here.
    whole = ends and any(line["step"] == step and not is_evaluation(line) for line in lines)
    saved = {} if whole else restore_facts(checkpoints[step])
    unwritten = not_in(log, (saved.get("unwritten") or {}).get(METRICS_FILE, ()))
    lines += map(json.loads, unwritten)
    evaluations = [line for line in lines if is_evaluation(line)]
    training = [line for line in lines if not is_evaluation(line)]
    # The last step of a run has a line, unless somebody has cut or removed the file.
    has_line = bool(training) and training[-1]["step"] == step
    if has_line or not ends:
        plateau = run.plateau(evaluations)
        end = run.end(plateau, step)
        # Early stopping ends a run at a step that has a training line, an evaluation and a
        # checkpoint. If the rule is new and would have ended the run earlier, the run continues to
        # the next evaluation.
        stopped = plateau is not None and plateau.stop and plateau.step == step and has_line
    else:
        end = {name: ends[-1][name] for name in ("best_step", "reason") if name in ends[-1]}
        stopped = "reason" in end
    if step < run.plan.steps and not stopped:
        return None
    if not ends and run.evaluated and not any(line["step"] == step for line in evaluations):
        return None  # the evaluation of the last step was left
    if not ends:
        skipped = skipped_tokens(training[-1] if has_line else {})
        seconds = _end_again(run, step, saved, began, end, skipped, before.skipped_steps)
    else:
        seconds = ends[-1].get("seconds", {})
        if unwritten:
            RunWriter(run.model_dir, resume_step=step, unwritten=saved["unwritten"]).close()
        for fault in (*log.faults, *missing_lines(training, step)):
            warn(f"{folder / METRICS_FILE}: {fault}")
    line = training[-1] if has_line else {"step": step, "tokens": run.plan.tokens_before(step)}
    return {
        "line": line,
        "evaluation": evaluations[-1] if evaluations else {},
        "seconds": seconds,
        "resumed_from": step,
        **end,
    }


def _end_again(
    run: Run,
    step: int,
    saved: Mapping[str, Any],
    began: float,
    end: dict[str, Any],
    skipped: Mapping[str, int],
    skipped_steps: Steps,
) -> dict[str, float]:
    """Write what is missing of the end of a run whose last checkpoint is there.

    Args:
      saved: the checkpoint's item `run`.
      skipped, skipped_steps: as in `record_end`.

    Returns:
      Its seconds by cause.
    """
    ledger = Ledger(saved.get("ledger", {}))
    with RunWriter(
        run.model_dir,
        resume_step=step,
        began=began,
        booked_until=saved.get("booked_until"),
        last_line_step=step,
        unwritten=saved.get("unwritten"),
    ) as writer:
        for cause, value in writer.unbooked.items():
            ledger.add(cause, value)
        ledger.add("start", max(0.0, time.time() - began))
        record_end(run, writer, step, ledger.seconds, end, skipped, skipped_steps)
    return ledger.seconds


def record_end(
    run: Run,
    writer: RunWriter | SilentWriter,
    step: int,
    seconds: Mapping[str, float],
    end: dict[str, Any],
    skipped: Mapping[str, int],
    skipped_steps: Steps,
) -> None:
    """Record the end of a run and the tokens of each source: an event, and in plan.json.

    Args:
      skipped: {source: tokens that nothing was learnt from}.
      skipped_steps: those that were passed over.
    """
    tokens = run.plan.tokens_before(step)
    accounts = run.accounts(step, skipped)
    sources = {name: dataclasses.asdict(account) for name, account in accounts.items()}
    achieved = {"step": step, "tokens": tokens, "sources": sources}
    if is_writer():
        derived = dataclasses.replace(derive(run), achieved=achieved, skipped_steps=skipped_steps)
        try:
            write_plan(run, derived)
        except OSError as error:
            raise Fault(
                f"cannot write {PLAN_FILE} at the end of the run ({error}). Its checkpoint of step "
                f"{step:,} is whole: make room, and start again"
            ) from error
    writer.event("finished", step=step, tokens=tokens, sources=sources, seconds=seconds, **end)
