"""Opens a run for the loop: state on the mesh, compiled steps, files."""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from t5x_style.accounting import Ledger
from t5x_style.checkpoints import Checkpointer, Refused, Saver, checkpoint_steps
from t5x_style.checkpoints.beginning import make_way
from t5x_style.checkpoints.initial_weights import initial_parameters
from t5x_style.data import evaluation_set
from t5x_style.data.stores.verification import Verification
from t5x_style.data.tokenizers.tokenizer import VOCABULARY_FILES
from t5x_style.errors import Fault, UsageError
from t5x_style.files import local_path
from t5x_style.hosts import enter_phase, from_writer, is_writer, write_ends_by
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.reporting import (
    CONFIG_FILE,
    EVENTS_FILE,
    METRICS_FILE,
    PLAN_FILE,
    DerivedRun,
    RunWriter,
    SilentWriter,
    read_derived,
    read_log,
    warn,
)
from t5x_style.signals import recorded
from t5x_style.step.model_state import State, fresh_state, not_finite
from t5x_style.step.program import StepProgram, step_program
from t5x_style.step.step import NO_LIMITS, Limits, LossSums
from t5x_style.training.derived import derive
from t5x_style.training.evaluation import Evaluator
from t5x_style.training.folder import missing_files_writer, write_files
from t5x_style.training.identity import identity, refuse_another_run
from t5x_style.training.recovery.recovery import Recovery
from t5x_style.training.run import Run


@dataclasses.dataclass
class Session:
    """One start of a run, until it ends or is stopped.

    Attributes:
      state: the train state; the loop replaces it with every step.
      step: number of steps done.
      resumed: whether the state is from a checkpoint of this run.
      evaluation_is_due: whether the evaluation of that step was left.
      sums: of the losses since the last training line; the loop replaces them with every step.
      no_sums: with which they begin after a line.
      line_step: the step of that line; 0 before the first.
      recovery: the steps that are passed over, and what decides on going back.
      program: places arrays, and has the shapes of the state.
      steps: compiled train step by (sequences, sequence length). Another shape is an error, so
        nothing is compiled again without notice.
      evaluator: the compiled evaluation.
      evaluations: the evaluation lines so far, those of earlier starts included.
      batch_sharding: the placement of a batch.
      verification: of the bytes of the stores, while the run reads them.
      ledger, writer, checkpointer: for seconds, lines and states.
      saver: saves by `checkpointer` while the run goes on.
    """

    state: State
    step: int
    resumed: bool
    evaluation_is_due: bool
    sums: LossSums
    no_sums: LossSums
    line_step: int
    recovery: Recovery
    program: StepProgram
    steps: Mapping[tuple[int, int], Any]
    evaluator: Evaluator
    evaluations: list[dict[str, Any]]
    batch_sharding: NamedSharding
    mesh: Mesh
    verification: Verification
    ledger: Ledger
    writer: RunWriter | SilentWriter
    checkpointer: Checkpointer
    saver: Saver

    def __post_init__(self):
        # As values, and as they were placed.
        self._limits = (NO_LIMITS, self.program.place(NO_LIMITS))

    def limits_of(self, step: int, in_flight: int) -> Limits:
        """The limits of an update that is applied, on the mesh: see `Recovery.limits_of`."""
        values = self.recovery.limits_of(step, in_flight)
        if not np.array_equal(values, self._limits[0]):
            with jax.transfer_guard("allow"):
                self._limits = (values, self.program.place(values))
        return self._limits[1]

    def place_step(self, step: int) -> jax.Array:
        """The counter of a state after `step` steps, int32 []."""
        with jax.transfer_guard("allow"):
            return self.program.place(np.array(step, np.int32))

    def close(self) -> None:
        """Wait until checkpoints and lines are written, and close them."""
        self.verification.close()
        try:
            # Whatever ended the run, a save takes its time.
            with self.ledger.time("save"):
                self.saver.close()
        finally:
            self.writer.close()


def clear_the_way(run: Run) -> None:
    """Move aside what a start cannot use: see `Beginning`.

    Raises:
      UsageError: `model_dir` holds another run, in which nothing may be moved.
    """

    def moved() -> list[str]:
        if run.beginning.step is not None:
            refuse_another_run(read_derived(run.model_dir).identity, identity(run), run)
        return make_way(run.model_dir, run.beginning)

    for move in from_writer(moved):
        if is_writer():
            warn(f"{run.model_dir}: {move}")


def open_session(run: Run, began: float | None = None) -> Session:
    """Resume a run from its newest checkpoint, or start it.

    Args:
      began: the unix time since which the run's seconds count; now if not given.

    Raises:
      UsageError: before anything is written, if `model_dir` holds another run, the mesh does not
        fit the machine, or `initial_checkpoint_path` does not fit the architecture.
    """
    now = time.time()
    ledger, began = Ledger(observer=enter_phase), now if began is None else min(began, now)
    ledger.add("start", now - began)
    ledger.begin()
    with ledger.time("start"):
        return _open_session(run, ledger, began)


def _open_session(run: Run, ledger: Ledger, began: float) -> Session:
    derived = derive(run)
    # One process reads the folder: a shared folder may show an older state to another host.
    resume_step, blend_before = from_writer(lambda: existing_run(run, derived.identity))
    step = resume_step or 0
    mesh = make_mesh(run.topology)
    with in_force(run.topology, mesh):
        # The abstract step: nothing is allocated before the checks have passed.
        program = step_program(run.step_spec, run.topology, mesh)
        checkpointer = Checkpointer(
            run.model_dir,
            keep=run.keep_checkpoints,
            keep_period=run.keep_period,
            identity=derived.identity,
            timeout_seconds=run.save_timeout,
        )
        state, saved = _first_state(run, program, checkpointer, resume_step, ledger)
        line_step, sums = saved_losses(run, saved, step)
        recovery = Recovery.resumed(
            run.spikes, run.plan, run.skip_steps, saved.get("recovery", {}), step
        )
        derived = dataclasses.replace(derived, skipped_steps=recovery.skipped)

        writer: RunWriter | SilentWriter = SilentWriter(run.model_dir)
        if is_writer():
            write_files(run, derived)
            writer = RunWriter(
                run.model_dir,
                resume_step=resume_step,
                began=began,
                booked_until=saved.get("booked_until"),
                last_line_step=line_step if "losses" in saved else None,
                unwritten=saved.get("unwritten"),
                write_missing_files=missing_files_writer(run, derived),
            )
        evaluations = from_writer(lambda: writer.evaluations)
        for seconds in (saved.get("ledger", {}), writer.unbooked):
            for cause, value in seconds.items():
                ledger.add(cause, value)
        _announce(run, derived, blend_before, writer, mesh, resume_step)

        def write_end(kind: str, step: int, reason: str) -> None:
            tokens = run.plan.tokens_before(step)
            writer.event_at_once(kind, step=step, tokens=tokens, reason=reason)

        write_ends_by(write_end)

        def record_leaving(reason: str) -> None:
            tokens = run.plan.tokens_before(step)
            writer.event("preempted", step=step, tokens=tokens, reason=reason, held_seconds=0.0)
            writer.close()

        # Every program of the run is compiled here.
        with recorded(record_leaving), ledger.time("compile"):
            steps = {shape: program.compile(*shape) for shape in run.plan.shapes_from(step)}
            evaluator = _evaluator(run, program, mesh)
    return Session(
        state=state,
        step=step,
        resumed=resume_step is not None,
        evaluation_is_due=saved.get("evaluation_is_due", False),
        sums=program.place(sums),
        no_sums=program.place(np.zeros_like(sums)),
        line_step=line_step,
        recovery=recovery,
        program=program,
        steps=steps,
        evaluator=evaluator,
        evaluations=evaluations,
        batch_sharding=program.batch_sharding,
        mesh=mesh,
        verification=Verification(
            [*run.stores.train.values(), *run.evaluated.values()],
            index=jax.process_index(),
            processes=jax.process_count(),
        ),
        ledger=ledger,
        writer=writer,
        checkpointer=checkpointer,
        saver=Saver(
            checkpointer,
            writer,
            ledger,
            patience_seconds=run.save_patience,
            timeout_seconds=run.save_timeout,
        ),
    )


def _first_state(
    run: Run,
    program: StepProgram,
    checkpointer: Checkpointer,
    resume_step: int | None,
    ledger: Ledger,
) -> tuple[State, Mapping[str, Any]]:
    """The state from the checkpoint, from the weights of another run, or from the seed.

    Returns:
      The state, and the checkpoint's item `run`; empty without a checkpoint.
    """
    if resume_step is None:
        parameters = None
        if run.initial_checkpoint_path is not None:
            with ledger.time("restore"):
                parameters = initial_parameters(
                    run.initial_checkpoint_path, run.stores.tokenizer, program.model.abstract
                )
                if names := not_finite(parameters):
                    raise UsageError(
                        f"INITIAL_CHECKPOINT_PATH = {run.initial_checkpoint_path} has parameters "
                        f"that are not finite: {', '.join(names)}"
                    )
        state = fresh_state(program.model, program.optimizer, program.state, run.seed, parameters)
        return state, {}
    with ledger.time("restore"):
        state, saved = checkpointer.restore(resume_step, program.state)
    planned = run.plan.tokens_before(resume_step)
    if saved["tokens"] != planned:
        raise UsageError(
            f"MODEL_DIR = {run.model_dir} had {saved['tokens']:,} training tokens at step "
            f"{resume_step:,}; with steps of {run.plan} it would have {planned:,}: past "
            f"phases cannot be changed{_way_on(run)}"
        )
    return state, saved


def _way_on(run: Run) -> str:
    if run.earlier is None:
        return ""
    return (
        f".\nBATCH_SIZE = {run.earlier.batch_size_from_here(run.plan)} keeps them and goes on with "
        f"the new size; TRAIN_TOKENS = {run.earlier.plan.tokens:_} keeps the horizon. Or name "
        f"another MODEL_DIR"
    )


def losses_record(run: Run, line_step: int, sums: LossSums) -> dict[str, Any]:
    """The losses since the last training line, in JSON types, for a checkpoint.

    A run that goes on from it writes the line that it would have written without a stop. Float32
    passes through JSON without a change.
    """
    by_source = dict(zip(run.reader.names, jax.device_get(sums).T.tolist(), strict=True))
    return {"line_step": line_step, "sums": by_source}


def saved_losses(run: Run, saved: Mapping[str, Any], step: int) -> tuple[int, np.ndarray]:
    """The step of the last training line, and the sums float32 [3, sources] since then.

    A new source has none. A checkpoint of an older version has none either. The next line then
    says that it is about fewer steps.
    """
    losses = saved.get("losses", {"line_step": step, "sums": {}})
    sums = [losses["sums"].get(name, (0.0, 0.0, 0.0)) for name in run.reader.names]
    return losses["line_step"], np.array(sums, np.float32).T


def _announce(
    run: Run,
    derived: DerivedRun,
    blend_before: dict[str, Any] | None,
    writer: RunWriter | SilentWriter,
    mesh: Mesh,
    resume_step: int | None,
) -> None:
    """Write the events of a start: started or resumed, a changed blend, replaced text, warnings.

    Args:
      blend_before: the blend asked for at the last start; None if there was none.
    """
    step = resume_step or 0
    tokens = run.plan.tokens_before(step)
    writer.event(
        "started" if resume_step is None else "resumed",
        step=step,
        tokens=tokens,
        devices=mesh.size,
        device_kind=mesh.devices.flat[0].device_kind,
        mesh=run.topology.mesh_shape,
        jax=jax.__version__,
        config_changes=list(run.config_changes),
        sources=derived.to_json()["sources"],
        initial_checkpoint=run.initial_checkpoint_path if resume_step is None else None,
        resume_step=run.beginning.asked_step,
    )
    _announce_beginning(run, writer, step, tokens)
    *earlier, newest = run.blend
    changed = blend_before is not None and blend_before != newest.asked
    if earlier and newest.step == step and changed:
        row = run.plan.rows_before(step)
        writer.event(
            "blend_changed",
            step=step,
            tokens=tokens,
            old=earlier[-1].shares(row),
            new=newest.shares(row),
            new_at_end=newest.shares(run.plan.rows),
        )
    for change in run.replaced:
        writer.event(
            "held_out_replaced",
            step=step,
            tokens=tokens,
            source=change.source,
            old=change.before,
            new=change.after,
        )
    for notice in derived.notices:
        writer.event("warned", step=step, tokens=tokens, reason=notice)


def write_refused(run: Run, writer: RunWriter | SilentWriter, refused: Refused) -> None:
    """Write the event that a checkpoint is not used."""
    writer.event(
        "refused",
        step=refused.step,
        tokens=run.plan.tokens_before(min(refused.step, run.plan.steps)),
        folder=refused.name,
        reason=refused.reason,
    )


def _announce_beginning(run: Run, writer: RunWriter | SilentWriter, step: int, tokens: int) -> None:
    """Write the events about the checkpoints that this start does not go on from."""
    beginning = run.beginning
    for refused in beginning.refused:
        write_refused(run, writer, refused)
    if beginning.later:
        reason = f"train.resume_step = {step}"
        from_step = max(beginning.later)
        writer.event("rewound", step=step, tokens=tokens, from_step=from_step, reason=reason)
    told = {str(refused) for refused in beginning.refused}
    for notice in beginning.notices:
        if notice not in told:
            writer.event("warned", step=step, tokens=tokens, reason=notice)


def _evaluator(run: Run, program: StepProgram, mesh: Mesh) -> Evaluator:
    """The evaluation of every source with a validation split, in rows of the last phase."""
    tokenizer, last = run.stores.tokenizer, run.plan.phases[-1]
    sets = {
        name: evaluation_set(store, tokenizer, last.sequence_length, run.eval_tokens)
        for name, store in run.evaluated.items()
    }
    return Evaluator(
        program.model,
        mesh,
        sets,
        run.topology,
        batch_size=last.sequences // run.topology.microbatches,
        eos_id=tokenizer.eos_id,
        packing=run.spec.packing,
        metrics=run.metrics,
    )


def refuse_foreign_files(model_dir: str, *, from_scratch: bool = False) -> None:
    """Check, before any work, that a run would write over no file that no run has written.

    A start writes plan.json first. So a folder with that is a run's, however early it was killed.
    One with an event of a save is a run's as well: see `find_beginning`.

    Args:
      from_scratch: whether a run may begin anew without the plan.json of its checkpoints.

    Raises:
      UsageError: there are files of a run's names, and no run.
      Fault: there are checkpoints, and plan.json is missing or damaged.
    """
    folder = local_path(model_dir, "MODEL_DIR")
    has_plan = (folder / PLAN_FILE).is_file()
    wrong = f"its {PLAN_FILE} is missing"
    if has_plan:
        try:
            read_derived(model_dir)
            return
        except Fault as error:
            wrong = str(error)
    steps = checkpoint_steps(model_dir)
    if steps and not from_scratch:
        raise Fault(
            f"MODEL_DIR = {model_dir} has checkpoints up to step {max(steps):,}, and {wrong}. "
            f"Without it nothing says which run they are of. Put {PLAN_FILE} back from a copy of "
            "the folder; or set train.from_scratch = True, which moves what is there aside and "
            "begins again; or name another MODEL_DIR"
        )
    saved = any(line["event"] == "saved" for line in read_log(folder / EVENTS_FILE).fields)
    if steps or saved:
        return
    found = [PLAN_FILE]
    if not has_plan:
        names = (CONFIG_FILE, METRICS_FILE, EVENTS_FILE, *VOCABULARY_FILES)
        files = [folder / name for name in names]
        # A version before this one made its empty lines first.
        found = [file.name for file in files if file.is_file() and file.stat().st_size]
    if found:
        raise UsageError(
            f"MODEL_DIR = {model_dir} has {', '.join(found)}, not written by a run, which would "
            "write over it: name another MODEL_DIR, or move it"
        )


def existing_run(run: Run, own: dict[str, Any]) -> tuple[int | None, dict[str, Any] | None]:
    """The newest checkpoint's step, and the blend last asked for, as JSON; None without one.

    Raises:
      UsageError: the checkpoint is of another run, or is after the last step of this one.
    """
    step = max(checkpoint_steps(run.model_dir), default=None)
    if step is None:
        return None, None
    before = read_derived(run.model_dir)
    refuse_another_run(before.identity, own, run)
    if step > run.plan.steps:
        raise UsageError(
            f"MODEL_DIR = {run.model_dir} is at step {step:,}, after the last of this run "
            f"({run.plan.steps:,} steps). Write TRAIN_STEPS = {step:_} or more, which is "
            f"TRAIN_TOKENS = {run.plan.tokens_before(step):_}; or name another MODEL_DIR"
        )
    return step, before.blend[-1]["asked"]
