"""Watches the numbers of the steps, passes over steps, and takes a run back to a checkpoint."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from t5x_style.checkpoints import checkpoint_steps, find_newest
from t5x_style.checkpoints.beginning import whose_is
from t5x_style.data.rows.documents import documents_of_rows
from t5x_style.errors import Fault
from t5x_style.hosts import from_writer, is_writer
from t5x_style.step.model_state import State, not_finite
from t5x_style.step.step import ROW_NATS, SEEN, Metrics
from t5x_style.training.derived import derive
from t5x_style.training.folder import missing_files_writer, write_files
from t5x_style.training.recovery.recovery import Rewind
from t5x_style.training.recovery.spikes import Pair, Stretch, spread, steps_of
from t5x_style.training.recovery.steps import joined, steps_text
from t5x_style.training.run import Run
from t5x_style.training.session import Session, saved_losses, write_refused

# Of the rows of an update that was not applied, so many are named.
_ROWS = 4


def observe(run: Run, session: Session, state: State, step: int, metrics: Metrics) -> None:
    """Look at the numbers of a step when it is done; every step once, in order.

    Args:
      state: the newest one.

    Raises:
      Rewind: the run goes back to an older checkpoint.
    """
    loss, norm, parameters, applied = jax.device_get(metrics[SEEN]).tolist()
    if not applied:
        row_nats = jax.device_get(metrics[ROW_NATS])
        tell_left_out(run, session, step, f"loss {loss}, gradient norm {norm}", row_nats)
    if not math.isfinite(parameters):
        lose_parameters(run, session, step, state)
    watch(run, session, step, loss, norm, bool(applied))


def watch(run: Run, session: Session, step: int, loss: float, norm: float, applied: bool) -> None:
    """Take in the numbers of a step; an event says that a spike begins.

    Raises:
      Rewind: the run goes back.
    """
    window, tokens = session.recovery.watch.values, run.plan.tokens_before(step)
    if session.recovery.observe(step, loss, norm, applied):
        session.writer.event("spike", step=step, tokens=tokens, **_spike((loss, norm), window))


def tell_left_out(
    run: Run, session: Session, step: int, numbers: str, row_nats: np.ndarray
) -> None:
    """Write the event of an update that was not applied, with the documents of its step.

    Args:
      numbers: loss and gradient norm as text.
      row_nats: float32 [B], the loss of each row. Rows that are not finite are named first, then
        those of the largest losses.
    """
    if not is_writer():
        return
    worst = np.argsort(-np.where(np.isfinite(row_nats), row_nats, np.inf), kind="stable")[:_ROWS]
    first = run.plan.rows_before(step - 1)
    rows = [first + index for index in worst.tolist()]
    documents = documents_of_rows(run.reader, run.stores.train, rows)
    for row, nats in zip(documents, row_nats[worst].tolist(), strict=True):
        row["finite"] = math.isfinite(nats)
    session.writer.event(
        "skipped",
        step=step,
        tokens=run.plan.tokens_before(step),
        count=1,
        reason=f"{numbers}: the update was not applied",
        documents=documents,
    )


def tell_divergence(
    run: Run, session: Session, before: Mapping[str, Any], line: Mapping[str, Any]
) -> None:
    """Write an event for each limit that a training line passes and the one before did not."""
    for reason in run.monitors.warnings(before, line):
        session.writer.event("warned", step=line["step"], tokens=line["tokens"], reason=reason)


def lose_parameters(run: Run, session: Session, step: int, state: State) -> NoReturn:
    """Give up parameters that are not finite: no update mends them, and they are not saved.

    Raises:
      Rewind: the run goes back.
    """
    names = ", ".join(not_finite(state["parameters"]))
    reason = f"parameters are not finite: {names}"
    tokens = run.plan.tokens_before(step)
    session.writer.event("warned", step=step, tokens=tokens, reason=reason)
    raise Rewind(Stretch(step, step, bad=1))


def _spike(numbers: Pair, window: tuple[Pair, ...]) -> dict[str, Any]:
    """The fields of the event: how far loss and gradient norm lie above those before."""
    fields: dict[str, Any] = {}
    words = []
    columns = zip(*window, strict=True)
    for name, value, before in zip(("loss", "grad_norm"), numbers, columns, strict=True):
        median, deviation = spread(before)
        fields |= {
            name: value,
            f"{name}_median": median,
            f"{name}_deviations": (value - median) / deviation,
        }
        words.append(
            f"{name} {value:.4g}, {fields[f'{name}_deviations']:.1f} deviations above the median "
            f"{median:.4g}"
        )
    return {**fields, "reason": f"{'; '.join(words)} of {len(window):,} steps"}


def pass_over(run: Run, session: Session, step: int, state: State) -> State:
    """The state after a step of which nothing is learnt: its counter alone moves on."""
    for first, count in session.recovery.skipped if is_writer() else ():
        if step == first:
            row, sequences = run.plan.rows_before(step - 1), run.plan.shape(step - 1)[0]
            session.writer.event(
                "skipped",
                step=step,
                tokens=run.plan.tokens_before(step),
                first=first,
                count=count,
                reason=f"{steps_text(((first, count),))}: passed over; documents of the first rows",
                documents=documents_of_rows(
                    run.reader,
                    run.stores.train,
                    range(row, row + min(_ROWS, sequences)),
                ),
            )
    return {**state, "step": session.place_step(step)}


def rewind(run: Run, session: Session, stretch: Stretch) -> None:
    """Take the session back to the newest checkpoint before a stretch of bad steps.

    Lines and checkpoints after it are removed, and its work is booked as lost. When the run comes
    to the stretch again, it passes over it.

    Raises:
      Fault: there is no such checkpoint, or the run went back too often.
    """
    recovery, program, ledger = session.recovery, session.program, session.ledger
    steps = steps_of(stretch)
    reason = (
        f"{steps_text((steps,))} went wrong ({stretch.left_out:,} updates not applied, "
        f"{stretch.spikes:,} spikes)"
    )
    with ledger.time("restore"):
        session.saver.settle()
        target = _checkpoint_before(run, session, stretch, reason)
        session.state, saved = session.checkpointer.restore(target, program.state)
        session.checkpointer.forget_after(target)
        session.step, session.resumed = target, True
        session.evaluation_is_due = saved.get("evaluation_is_due", False)
        session.recovery = recovery.back(stretch, saved.get("recovery", {}), target)
        session.line_step, sums = saved_losses(run, saved, target)
        session.sums = program.place(sums)
        lost_before = ledger.seconds["lost"]
        ledger.lose_since(saved["ledger"])
        if is_writer():
            derived = dataclasses.replace(derive(run), skipped_steps=session.recovery.skipped)
            write_files(run, derived)
            session.writer.rewind(target, missing_files_writer(run, derived))
        session.evaluations = from_writer(lambda: session.writer.evaluations)
        session.writer.event(
            "rewound",
            step=target,
            tokens=run.plan.tokens_before(target),
            from_step=stretch.last,
            first=steps[0],
            count=steps[1],
            lost_seconds=ledger.seconds["lost"] - lost_before,
            reason=reason,
        )


def _checkpoint_before(run: Run, session: Session, stretch: Stretch, reason: str) -> int:
    """The step of the checkpoint to go back to: the newest one before the stretch that is whole.

    Raises:
      Fault: the run ends instead.
    """
    recovery = session.recovery
    last = stretch.first - 1 - recovery.spikes.margin
    why = recovery.repeats(stretch)
    found = find_newest(run.model_dir, whose_is(run.model_dir), last=last)
    for refused in found.refused:
        write_refused(run, session.writer, refused)
    if why is None and found.step is None:
        there = from_writer(lambda: sorted(checkpoint_steps(run.model_dir)))
        steps = ", ".join(f"{step:,}" for step in there) or "none"
        why = f"there is no whole checkpoint of step {last:,} or before (there is {steps})"
    if why is not None or found.step is None:
        tokens = run.plan.tokens_before(stretch.last)
        session.writer.event("warned", step=stretch.last, tokens=tokens, reason=f"{reason}; {why}")
        raise Fault(
            f"{reason}; {why}: lower the learning rate, look at the data of these steps, or pass "
            "over them from an older checkpoint, with train.resume_step and train.skip_steps = "
            f"{list(joined(recovery.skipped, [steps_of(stretch)]))}"
        )
    return found.step
