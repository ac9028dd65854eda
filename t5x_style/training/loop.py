"""The training loop, top to bottom."""

import collections
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from t5x_style.accounting import chip_of_device_kind
from t5x_style.errors import Fault, Preempted
from t5x_style.hosts import preemption_requested
from t5x_style.reporting import Progress
from t5x_style.step.batches import abstract_batch, global_batch
from t5x_style.step.model_state import State
from t5x_style.step.step import Batch, LossSums, Metrics, packed_batch
from t5x_style.training.early_stopping import PlateauState
from t5x_style.training.run import Run
from t5x_style.training.session import (
    Session,
    finished_run,
    losses_record,
    open_session,
    record_end,
)

# Steps queued on the device: enough to hide the host's work, and few enough to save within two
# steps of a preemption.
STEPS_IN_FLIGHT = 2
# A line has these of its own step. Its losses are means over all steps since the line before.
STEP_METRICS = ("learning_rate", "grad_norm", "param_norm")


def train(run: Run) -> dict[str, Any]:
    """Train, or continue training; all files of the run are in `run.model_dir`.

    Within a step, the loop dispatches it, reads the next batch while it runs, and then writes the
    line of the step BEFORE it, whose numbers are known by now. Only an evaluation, a checkpoint and
    the end wait for the step in flight.

    Returns:
      `line`, the last training line; `evaluation`, the last evaluation line; `seconds` by cause;
      `resumed_from`, the step of the checkpoint it resumed from, or None; the keys of `Run.end`.

    Raises:
      UsageError: the folder holds another run, or the mesh does not fit; before any work.
      Fault: the loss or the gradient is not finite.
      Preempted: SIGTERM was received; the state is saved.
    """
    done = finished_run(run)
    if done is not None:
        return done
    session = open_session(run)
    try:
        with preemption_requested() as leave:
            return run_loop(run, session, leave)
    finally:
        session.close()


def run_loop(run: Run, session: Session, leave: Callable[[int], bool]) -> dict[str, Any]:
    """From the session's step to the end of the run, unless `leave(step)` asks to save and exit.

    Returns and raises as `train`.
    """
    plan, ledger, writer = run.plan, session.ledger, session.writer
    progress = Progress(plan.tokens, own_law=run.own_law.name if run.own_law else None)
    resumed_from = session.step if session.resumed else None
    lines = _Lines(run, session, progress)
    evaluation: dict[str, float] = {}
    plateau = run.plateau(session.evaluations)
    step, state = session.step, session.state

    if not session.resumed:
        evaluation = _evaluate(run, session, step, state, progress)
        plateau = run.plateau(session.evaluations)
        if plateau:
            _save(run, session, step, state, plateau)
    batch = _read(run, session, step)
    in_flight: collections.deque[jax.Array] = collections.deque()
    lines.restart_clock(step)

    # A hidden copy between host and device is a bug: every copy below is explicit.
    with jax.transfer_guard("disallow"):
        while step < plan.steps:
            with ledger.time("step"):
                compiled = session.steps[plan.shape(step)]
                state, metrics, session.sums = compiled(state, batch, session.sums)
            step += 1
            if step < plan.steps:
                with ledger.time("data"):
                    batch = _read(run, session, step)
            with ledger.time("step"):
                lines.write_pending()
                in_flight.append(metrics["loss"])
                if len(in_flight) > STEPS_IN_FLIGHT:
                    in_flight.popleft().block_until_ready()
            last = step == plan.steps
            leave_now = leave(step)
            evaluate_now = step % run.eval_period == 0 or last
            # The last line has the steps that are too few for one of their own: its loss is the
            # result of the run.
            line_now = step % run.log_period == 0 and plan.steps - step >= run.log_period
            # An evaluation may end the run, and the last step of a run has a line.
            if line_now or last or (evaluate_now and run.early_stopping):
                lines.pend(step, metrics)
            save_now = step % run.checkpoint_period == 0 or last or leave_now
            if not (evaluate_now or save_now):
                continue

            with ledger.time("step"):
                jax.block_until_ready(metrics)
                lines.write_pending()
                lines.refuse_not_finite(step, metrics)
            if evaluate_now:
                evaluation = _evaluate(run, session, step, state, progress)
                plateau = run.plateau(session.evaluations)
                if plateau and plateau.best_step == step:
                    save_now = True
                if plateau and plateau.stop:
                    save_now = last = True
            if save_now:
                _save(run, session, step, state, plateau)
            if last:
                break
            if leave_now:
                session.checkpointer.wait()
                tokens = plan.tokens_before(step)
                reason = "signal SIGTERM"
                writer.event("preempted", step=step, tokens=tokens, reason=reason)
                raise Preempted(f"{reason} at step {step:,}: saved, start again to continue")
            lines.restart_clock(step)

    session.checkpointer.wait()
    end = run.end(plateau, step)
    record_end(run, writer, step, ledger.seconds, end)
    progress.close()
    return {
        "line": lines.last,
        "evaluation": evaluation,
        "seconds": ledger.seconds,
        "resumed_from": resumed_from,
        **end,
    }


def _read(run: Run, session: Session, step: int) -> Batch:
    """The batch of a step; each process reads only the rows of its own devices."""

    def rows(numbers: np.ndarray) -> np.ndarray:
        return packed_batch(run.reader.rows(numbers))

    shape = run.plan.shape(step)
    like = abstract_batch(*shape, session.batch_sharding, run.spec.packing)
    return global_batch(rows, run.plan.rows_before(step), like)


def _evaluate(
    run: Run, session: Session, step: int, state: State, progress: Progress
) -> dict[str, float]:
    """Evaluate, write the line, and print a note; empty without validation splits."""
    with session.ledger.time("evaluate"):
        line = session.evaluator(state["parameters"])
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
    plateau = run.plateau(session.evaluations)
    if plateau and plateau.advise:
        advice = f"early stopping advises to stop now: {plateau.reason}"
        session.writer.event("warned", step=step, tokens=tokens, reason=advice)
        progress.note(advice)
    return line


def _save(
    run: Run, session: Session, step: int, state: State, plateau: PlateauState | None
) -> None:
    """Save a checkpoint, after the lines up to it are on disk."""
    tokens = run.plan.tokens_before(step)
    with session.ledger.time("save"), jax.transfer_guard("allow"):
        # A resumed run does not write these lines again, so they must survive whenever the
        # checkpoint does.
        session.writer.flush()
        record = {
            "tokens": tokens,
            "ledger": session.ledger.state(),
            "losses": losses_record(run, session.line_step, session.sums),
        }
        best_step = plateau.best_step if plateau else None
        session.checkpointer.save(step, state, record, best_step)
        best = {}
        if plateau and plateau.best_step == step:
            best = {"best_score": plateau.best_score}
        session.writer.event("saved", step=step, tokens=tokens, **best)


class _Lines:
    """Training lines. A step's line is written during the next step, so that no step waits."""

    def __init__(self, run: Run, session: Session, progress: Progress):
        self._run, self._session, self._progress = run, session, progress
        kind = session.mesh.devices.flat[0].device_kind
        self._chip = run.chip or chip_of_device_kind(kind)
        devices_per_chip = self._chip.devices_per_chip if self._chip else 1
        self._chips = max(1, session.mesh.size // devices_per_chip)
        self._pending: tuple[int, Metrics, int, LossSums] | None = None
        self.last: dict[str, float | None] = {}

    def restart_clock(self, step: int) -> None:
        """Measure the speed from `step` on, after work that is not training."""
        self._clock = (step, time.perf_counter(), self._session.ledger.seconds["data"])

    def pend(self, step: int, metrics: Metrics) -> None:
        """Remember the line of `step`; its `metrics` may still be computed.

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
        self.refuse_not_finite(step, values)
        nats, z_nats, learnt = sums.astype(np.float64)
        rows, tokens = plan.rows_before(step), plan.tokens_before(step)
        line: dict[str, float | None] = {"step": step, "tokens": tokens, "loss_steps": loss_steps}
        line["loss"] = _mean(nats.sum(), learnt.sum())
        line["z_loss"] = _mean(z_nats.sum(), learnt.sum())
        line |= {name: float(values[name]) for name in STEP_METRICS}
        since, then, data_then = self._clock
        now, data_now = time.perf_counter(), self._session.ledger.seconds["data"]
        if step > since:
            learnt_then = plan.tokens_before(since)
            speed = (tokens - learnt_then) / (now - then)
            line["step_seconds"] = (now - then) / (step - since)
            line["data_wait_seconds"] = (data_now - data_then) / (step - since)
            line["tokens_per_second"] = speed
            line |= self._run.auditor.utilisation(
                speed, self._chips, self._chip, since=learnt_then, until=tokens
            )
        by_source = run.reader.tokens_by_source(rows).tolist()
        epochs = run.reader.epochs(rows).tolist()
        for index, name in enumerate(run.reader.names):
            line[f"tokens/{name}"] = by_source[index]
            line[f"share/{name}"] = by_source[index] / tokens
            line[f"epochs/{name}"] = epochs[index]
            line[f"loss/{name}"] = _mean(nats[index], learnt[index])
        line |= run.auditor.line_at(tokens)
        line |= self._session.ledger.line()
        self._session.writer.metrics(line)
        self._progress.show(line)
        self._clock = (step, now, data_now)
        self.last = line

    def refuse_not_finite(self, step: int, metrics: Metrics) -> None:
        """Stop at a loss or gradient norm that is not finite, before the state is saved."""
        loss, norm = (float(jax.device_get(metrics[name])) for name in ("loss", "grad_norm"))
        if math.isfinite(loss) and math.isfinite(norm):
            return
        tokens = self._run.plan.tokens_before(step)
        reason = f"loss {loss}, gradient norm {norm}"
        self._session.writer.event("warned", step=step, tokens=tokens, reason=reason)
        saved = self._session.checkpointer.latest_step()
        newest = "none was saved" if saved is None else f"the newest is of step {saved:,}"
        raise Fault(
            f"{reason} at step {step:,}, which is not saved (checkpoints: {newest}): lower the "
            "learning rate, or look at the data of this step"
        )


def _mean(nats: float, tokens: float) -> float | None:
    """Nats per token; None where no token was learnt from."""
    return float(nats / tokens) if tokens else None
