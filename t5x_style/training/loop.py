"""The training loop, top to bottom."""

import collections
import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from t5x_style.accounting import chip_of_device_kind
from t5x_style.accounting.audit.audit_record import SKIPPED_PREFIX
from t5x_style.data.stores.token_store import StoreChanged
from t5x_style.errors import Preempted
from t5x_style.hosts import lost_processes_named, pass_step, preemption_requested
from t5x_style.reporting import Progress
from t5x_style.step.batches import abstract_batch, global_batch
from t5x_style.step.model_state import State
from t5x_style.step.monitors import MONITORS, NOISE
from t5x_style.step.step import Batch, LossSums, Metrics, packed_batch
from t5x_style.training.early_stopping import PlateauState
from t5x_style.training.folder import finished_run, record_end
from t5x_style.training.recovery.recovery import Rewind
from t5x_style.training.recovery.spikes import LAG
from t5x_style.training.rewind import observe, pass_over, rewind, tell_divergence
from t5x_style.training.run import Run
from t5x_style.training.session import Session, clear_the_way, losses_record, open_session

# Steps queued on the device: enough to hide the host's work, and few enough to save within two
# steps of a preemption.
STEPS_IN_FLIGHT = LAG - 1
# A line has these of its own step. Its losses are means over all steps since the line before.
STEP_METRICS = ("learning_rate", "grad_norm", "param_norm", *MONITORS)


def train(run: Run, began: float | None = None) -> dict[str, Any]:
    """Train, or continue training; all files of the run are in `run.model_dir`.

    Within a step, the loop dispatches it, reads the next batch while it runs, and then writes the
    line of the step BEFORE it, whose numbers are known by now. Only an evaluation, a checkpoint and
    the end wait for the step in flight.

    Args:
      began: the unix time since which the run's seconds count, such as the start of the process;
        now if not given.

    Returns:
      `line`, the last training line; `evaluation`, the last evaluation line; `seconds` by cause;
      `resumed_from`, the step of the checkpoint it resumed from, or None; the keys of `Run.end`.

    Raises:
      UsageError: the folder holds another run, or the mesh does not fit; before any work.
      Fault: the numbers went wrong, and no checkpoint is left to go back to; saves failed for too
        long; or a store has changed.
      StartAgain: a save of several processes failed, or one takes too long.
      Preempted: a signal asked to leave (see `signals`); the state is saved.
    """
    began = time.time() if began is None else began
    clear_the_way(run)
    done = finished_run(run, began)
    if done is not None:
        return done
    session = open_session(run, began)
    try:
        with preemption_requested() as leave, lost_processes_named():
            while True:
                try:
                    return run_loop(run, session, leave)
                except Rewind as error:
                    stretch = error.stretch
                # Out here nothing holds the state that is given up, so two never need room.
                rewind(run, session, stretch)
    finally:
        session.close()


def run_loop(run: Run, session: Session, leave: Callable[[], str | None]) -> dict[str, Any]:
    """From the session's step to the end of the run, or until `leave()` names a signal.

    Returns and raises as `train`.
    """
    plan, ledger, writer = run.plan, session.ledger, session.writer
    progress = Progress(plan.tokens, own_law=run.own_law.name if run.own_law else None)
    resumed_from = session.step if session.resumed else None
    lines = _Lines(run, session, progress)
    evaluation: dict[str, float] | None = {}
    plateau = run.plateau(session.evaluations)
    step, state = session.step, session.state
    last = step == plan.steps

    if not session.resumed or session.evaluation_is_due:
        evaluation = _evaluate(run, session, step, state, progress, leave)
        if evaluation is None:
            where = f"in the evaluation of step {step:,}: nothing to save, start again"
            raise _preempted(run, session, step, f"signal {leave()} {where}")
        plateau = run.plateau(session.evaluations)
        if plateau and not session.resumed:
            _save(run, session, step, state, plateau, evaluation_is_due=False)
        last = last or (session.resumed and plateau is not None and plateau.stop)
    batch = None if last else _read(run, session, step)
    in_flight: collections.deque[tuple[int, Metrics]] = collections.deque()
    lines.restart_clock(step)

    # A hidden copy between host and device is a bug: every copy below is explicit.
    with jax.transfer_guard("disallow"):
        while not last:
            with ledger.time("step"):
                if session.recovery.skips(step + 1):
                    state, metrics = pass_over(run, session, step + 1, state), None
                else:
                    limits = session.limits_of(step + 1, len(in_flight))
                    compiled = session.steps[plan.shape(step)]
                    state, metrics, session.sums = compiled(state, batch, session.sums, limits)
            step += 1
            if step < plan.steps:
                with ledger.time("data"):
                    batch = _read(run, session, step)
            with ledger.time("step"):
                if metrics is not None:
                    in_flight.append((step, metrics))
                # A line says what was not learnt up to its step.
                while in_flight and in_flight[0][0] <= max(lines.pending, step - STEPS_IN_FLIGHT):
                    done, of_done = in_flight.popleft()
                    jax.block_until_ready(of_done["loss"])
                    observe(run, session, state, done, of_done)
                lines.write_pending()
            last = step == plan.steps
            pass_step(step)
            signal_name = leave()
            evaluate_now = step % run.eval_period == 0 or last
            # The last line has the steps that are too few for one of their own: its loss is the
            # result of the run.
            line_now = step % run.log_period == 0 and plan.steps - step >= run.log_period
            # An evaluation may end the run, and the last step of a run has a line.
            if line_now or last or (evaluate_now and run.early_stopping):
                lines.pend(step, metrics)
            # A save that failed is tried again with the state of now.
            retry = session.saver.look()
            save_now = step % run.checkpoint_period == 0 or last or retry or bool(signal_name)
            if not (evaluate_now or save_now):
                continue

            with ledger.time("step"):
                jax.block_until_ready(metrics)
                while in_flight:
                    observe(run, session, state, *in_flight.popleft())
                lines.write_pending()
            if evaluate_now:
                evaluation = _evaluate(run, session, step, state, progress, leave)
                if evaluation is None:
                    signal_name, save_now, last = leave(), True, False
                else:
                    plateau = run.plateau(session.evaluations)
                    save_now = save_now or (plateau is not None and plateau.best_step == step)
                    if plateau and plateau.stop:
                        save_now = last = True
            save_began = time.perf_counter()
            due = evaluation is None
            save = functools.partial(_save, run, session, step, state, plateau, due)
            if save_now:
                save()
            if signal_name and not last:
                session.saver.finish(save)
                held = time.perf_counter() - save_began
                where = f"at step {step:,}: saved, start again to continue"
                raise _preempted(run, session, step, f"signal {signal_name} {where}", held)
            lines.restart_clock(step)

    session.saver.finish(functools.partial(_save, run, session, step, state, plateau, False))
    end = run.end(plateau, step)
    skipped = run.tokens_of(session.recovery.not_learnt(step))
    record_end(run, writer, step, ledger.seconds, end, skipped, session.recovery.skipped)
    progress.close()
    if not lines.last and session.resumed:  # nothing was left to do but the last evaluation
        writer.flush()
        return finished_run(run) or {}
    return {
        "line": lines.last,
        "evaluation": evaluation,
        "seconds": ledger.seconds,
        "resumed_from": resumed_from,
        **end,
    }


def _read(run: Run, session: Session, step: int) -> Batch | None:
    """The batch after `step` steps; each process reads only the rows of its own devices.

    None for a step that is passed over.
    """
    if session.recovery.skips(step + 1):
        return None

    def rows(numbers: np.ndarray) -> np.ndarray:
        return packed_batch(run.reader.rows(numbers))

    shape = run.plan.shape(step)
    like = abstract_batch(*shape, session.batch_sharding, run.spec.packing)
    with _stores_watched(run, session, step):
        return global_batch(rows, run.plan.rows_before(step), like)


@contextlib.contextmanager
def _stores_watched(run: Run, session: Session, step: int) -> Iterator[None]:
    """Refuse stores that have changed, before and in the block.

    Raises:
      StoreChanged: once its event is written.
    """
    tokens = run.plan.tokens_before(step)
    try:
        for notice in session.verification.check():
            session.writer.event("warned", step=step, tokens=tokens, reason=notice)
        yield
    except StoreChanged as error:
        session.writer.event("store_changed", step=step, tokens=tokens, reason=str(error))
        raise


def _preempted(
    run: Run, session: Session, step: int, reason: str, held_seconds: float = 0.0
) -> Preempted:
    """The error of a run that was asked to leave, once its event is written."""
    tokens = run.plan.tokens_before(step)
    session.writer.event(
        "preempted", step=step, tokens=tokens, reason=reason, held_seconds=held_seconds
    )
    return Preempted(reason)


def _evaluate(
    run: Run,
    session: Session,
    step: int,
    state: State,
    progress: Progress,
    leave: Callable[[], str | None],
) -> dict[str, float] | None:
    """Evaluate, write the line, and print a note; empty without validation splits.

    Returns:
      None if it was left, because `leave()` names a signal.
    """
    with session.ledger.time("evaluate"):
        line = session.evaluator(state["parameters"], leave)
    if not line:
        return line
    tokens = run.plan.tokens_before(step)
    session.evaluations.append({"step": step, "tokens": tokens, **line})
    session.writer.metrics(session.evaluations[-1])
    scores = (
        f"{key.split('/')[1]} {value:.4f}"
        for key, value in line.items()
        if key.endswith("/bits_per_byte")
    )
    progress.note(f"evaluated at step {step:,}: bits per byte {', '.join(scores)}")
    if broken := [key for key, value in line.items() if not math.isfinite(value)]:
        reason = f"the evaluation of step {step:,} is not finite: {', '.join(broken)}"
        session.writer.event("warned", step=step, tokens=tokens, reason=reason)
        progress.note(reason)
    plateau = run.plateau(session.evaluations)
    if plateau and plateau.advise:
        advice = f"early stopping advises to stop now: {plateau.reason}"
        session.writer.event("warned", step=step, tokens=tokens, reason=advice)
        progress.note(advice)
    return line


def _save(
    run: Run,
    session: Session,
    step: int,
    state: State,
    plateau: PlateauState | None,
    evaluation_is_due: bool,
) -> None:
    """Start to save a checkpoint; the lines up to it are on disk before it is.

    Args:
      evaluation_is_due: the evaluation of the step was left, and is made after a resume.
    """
    tokens = run.plan.tokens_before(step)

    def record() -> dict[str, Any]:
        return {
            "tokens": tokens,
            "ledger": session.ledger.state(),
            "booked_until": time.time(),
            "losses": losses_record(run, session.line_step, session.sums),
            "evaluation_is_due": evaluation_is_due,
            "recovery": session.recovery.to_json(step),
        }

    best_steps = [] if plateau is None else [plateau.best_step]
    best = {}
    if plateau and plateau.best_step == step:
        best = {"best_score": plateau.best_score}
    # What changed ids may have taught is not saved.
    with _stores_watched(run, session, step):
        session.saver.save(step, tokens, state, record, best_steps=best_steps, **best)


class _Lines:
    """Training lines. A step's line is written during the next step, so that no step waits."""

    def __init__(self, run: Run, session: Session, progress: Progress):
        self._run, self._session, self._progress = run, session, progress
        kind = session.mesh.devices.flat[0].device_kind
        self._chip = run.chip or chip_of_device_kind(kind)
        devices_per_chip = self._chip.devices_per_chip if self._chip else 1
        self._chips = max(1, session.mesh.size // devices_per_chip)
        self._pending: tuple[int, Metrics | None, int, LossSums] | None = None
        self.last: dict[str, float | None] = {}

    def restart_clock(self, step: int) -> None:
        """Measure the speed from `step` on, after work that is not training."""
        self._clock = (step, time.perf_counter(), self._session.ledger.seconds["data"])

    @property
    def pending(self) -> int:
        """The step of the remembered line; -1 if there is none."""
        return -1 if self._pending is None else self._pending[0]

    def pend(self, step: int, metrics: Metrics | None) -> None:
        """Remember the line of `step`; its `metrics` may still be computed, or None if passed over.

        The sums of losses begin again with the next step.
        """
        session = self._session
        self._pending = (step, metrics, step - session.line_step, session.sums)
        session.line_step, session.sums = step, session.no_sums

    def write_pending(self) -> None:
        """Write the remembered line; waits for its step if necessary."""
        if self._pending is None:
            return
        step, metrics, loss_steps, sums = self._pending
        self._pending = None
        run, plan = self._run, self._run.plan
        values, sums = jax.device_get((metrics, sums))
        nats, z_nats, learnt = sums.astype(np.float64)
        rows, tokens = plan.rows_before(step), plan.tokens_before(step)
        line: dict[str, float | None] = {"step": step, "tokens": tokens, "loss_steps": loss_steps}
        line["loss"] = _mean(nats.sum(), learnt.sum())
        line["z_loss"] = _mean(z_nats.sum(), learnt.sum())
        line |= {name: values and float(values[name]) for name in STEP_METRICS}
        line |= {name: float(values[name]) for name in NOISE if values and name in values}
        since, then, data_then = self._clock
        now, data_now = time.perf_counter(), self._session.ledger.seconds["data"]
        learnt_then = plan.tokens_before(since)
        steps_over, tokens_over = self._session.recovery.passed_over(since, step)
        if ran := step - since - steps_over:
            speed = (tokens - learnt_then - tokens_over) / (now - then)
            line["step_seconds"] = (now - then) / ran
            line["data_wait_seconds"] = (data_now - data_then) / ran
            line["tokens_per_second"] = speed
            line |= self._run.auditor.utilisation(
                speed, self._chips, self._chip, since=learnt_then, until=tokens
            )
        skipped = run.tokens_of(self._session.recovery.not_learnt(step))
        by_source = run.reader.tokens_by_source(rows).tolist()
        epochs = run.reader.epochs(rows).tolist()
        for index, name in enumerate(run.reader.names):
            line[f"tokens/{name}"] = by_source[index]
            line[f"share/{name}"] = by_source[index] / tokens
            line[f"epochs/{name}"] = epochs[index]
            line[f"loss/{name}"] = _mean(nats[index], learnt[index])
        line |= {f"{SKIPPED_PREFIX}{name}": count for name, count in skipped.items()}
        line |= run.auditor.line_at(tokens, sum(skipped.values()))
        line |= self._session.ledger.line()
        self._session.writer.metrics(line)
        tell_divergence(run, self._session, self.last, line)
        self._progress.show(line)
        self._clock = (step, now, data_now)
        self.last = line


def _mean(nats: float, tokens: float) -> float | None:
    """Nats per token; None where no token was learnt from."""
    return float(nats / tokens) if tokens else None
