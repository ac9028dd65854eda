"""Opens a run for the loop: state on the mesh, compiled steps, files. Also records its end."""

import contextlib
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from t5x_style.accounting import Ledger
from t5x_style.data import evaluation_set
from t5x_style.data.tokenizers.tokenizer import VOCABULARY_FILES
from t5x_style.errors import Fault, UsageError
from t5x_style.files import local_path, write_whole
from t5x_style.hosts import from_writer, is_writer
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
)
from t5x_style.reporting.run.record import is_evaluation
from t5x_style.reporting.run.writer import read_lines
from t5x_style.step.model_state import State, fresh_state
from t5x_style.step.program import StepProgram, step_program
from t5x_style.step.step import LossSums
from t5x_style.training.checkpoints import Checkpointer, checkpoint_steps
from t5x_style.training.derived import derive
from t5x_style.training.evaluation import Evaluator
from t5x_style.training.identity import identity, refuse_another_run
from t5x_style.training.initial_weights import initial_parameters
from t5x_style.training.run import Run


@dataclasses.dataclass
class Session:
    """One start of a run, until it ends or is stopped.

    Attributes:
      state: the train state; the loop replaces it with every step.
      step: number of steps done.
      resumed: whether the state is from a checkpoint of this run.
      sums: of the losses since the last training line; the loop replaces them with every step.
      no_sums: with which they begin after a line.
      line_step: the step of that line; 0 before the first.
      steps: compiled train step by (sequences, sequence length). Another shape is an error, so
        nothing is compiled again without notice.
      evaluator: the compiled evaluation.
      evaluations: the evaluation lines so far, those of earlier starts included.
      batch_sharding: the placement of a batch.
      ledger, writer, checkpointer: for seconds, lines and states.
    """

    state: State
    step: int
    resumed: bool
    sums: LossSums
    no_sums: LossSums
    line_step: int
    steps: Mapping[tuple[int, int], Any]
    evaluator: Evaluator
    evaluations: list[dict[str, Any]]
    batch_sharding: NamedSharding
    mesh: Mesh
    ledger: Ledger
    writer: RunWriter | SilentWriter
    checkpointer: Checkpointer

    def close(self) -> None:
        """Wait until checkpoints and lines are written, and close them."""
        self.checkpointer.close()
        self.writer.close()


def open_session(run: Run) -> Session:
    """Resume a run from its newest checkpoint, or start it.

    Raises:
      UsageError: before anything is written, if `model_dir` holds another run, the mesh does not
        fit the machine, or `initial_checkpoint_path` does not fit the architecture.
    """
    started = time.perf_counter()
    derived = derive(run)
    # One process reads the folder: a shared folder may show an older state to another host.
    resume_step, blend_before = from_writer(lambda: existing_run(run, derived.identity))
    step = resume_step or 0
    mesh = make_mesh(run.topology)
    with in_force(run.topology, mesh):
        # The abstract step: nothing is allocated before the checks have passed.
        program = step_program(run.step_spec, run.topology, mesh)
        checkpointer = Checkpointer(
            run.model_dir, keep=run.keep_checkpoints, keep_period=run.keep_period
        )
        state, saved = _first_state(run, program, checkpointer, resume_step)
        ledger = Ledger.restore(saved.get("ledger", {}))
        line_step, sums = _saved_losses(run, saved, step)

        writer: RunWriter | SilentWriter = SilentWriter()
        if is_writer():
            # plan.json comes first: after a kill it says that the other files are a run's.
            _write_plan(run, derived)
            run.stores.tokenizer.write_copy(run.model_dir)
            write_whole(pathlib.Path(run.model_dir) / CONFIG_FILE, run.config_text)
            writer = RunWriter(run.model_dir, resume_step=resume_step)
        evaluations = from_writer(lambda: _evaluations(run.model_dir))
        ledger.add("lost", writer.lost_seconds)
        _announce(run, derived, blend_before, writer, mesh, resume_step)
        ledger.add("other", time.perf_counter() - started)

        # Every program of the run is compiled here.
        with ledger.time("compile"):
            steps = {shape: program.compile(*shape) for shape in run.plan.shapes_from(step)}
            evaluator = _evaluator(run, program, mesh)
    return Session(
        state=state,
        step=step,
        resumed=resume_step is not None,
        sums=program.place_sums(sums),
        no_sums=program.place_sums(np.zeros_like(sums)),
        line_step=line_step,
        steps=steps,
        evaluator=evaluator,
        evaluations=evaluations,
        batch_sharding=program.batch_sharding,
        mesh=mesh,
        ledger=ledger,
        writer=writer,
        checkpointer=checkpointer,
    )


def _first_state(
    run: Run, program: StepProgram, checkpointer: Checkpointer, resume_step: int | None
) -> tuple[State, Mapping[str, Any]]:
    """The state from the checkpoint, from the weights of another run, or from the seed.

    Returns:
      The state, and the checkpoint's item `run`; empty without a checkpoint.
    """
    if resume_step is None:
        parameters = None
        if run.initial_checkpoint_path is not None:
            parameters = initial_parameters(
                run.initial_checkpoint_path, run.stores.tokenizer, program.model.abstract
            )
        state = fresh_state(program.model, program.optimizer, program.state, run.seed, parameters)
        return state, {}
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


def _saved_losses(run: Run, saved: Mapping[str, Any], step: int) -> tuple[int, np.ndarray]:
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
    )
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


def _write_plan(run: Run, derived: DerivedRun) -> None:
    text = json.dumps(derived.to_json(), indent=1) + "\n"
    write_whole(pathlib.Path(run.model_dir) / PLAN_FILE, text)


def refuse_foreign_files(model_dir: str) -> None:
    """Check, before any work, that a run would write over no file that no run has written.

    A start writes plan.json first. So a folder with that is a run's, however early it was killed.

    Raises:
      UsageError: there are files of a run's names, and no run.
    """
    folder = local_path(model_dir, "MODEL_DIR")
    found = [PLAN_FILE]
    if not (folder / PLAN_FILE).is_file():
        names = (CONFIG_FILE, METRICS_FILE, EVENTS_FILE, *VOCABULARY_FILES)
        files = [folder / name for name in names]
        # A version before this one made its empty lines first.
        found = [file.name for file in files if file.is_file() and file.stat().st_size]
    else:
        with contextlib.suppress(Fault):
            read_derived(model_dir)
            return
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


def _evaluations(model_dir: str) -> list[dict[str, Any]]:
    return [
        line for line in read_lines(pathlib.Path(model_dir) / METRICS_FILE) if is_evaluation(line)
    ]


def finished_run(run: Run) -> dict[str, Any] | None:
    """The result of `loop.train` at the end of this run, read from its files.

    Returns:
      None if the run has not ended, by its plan or by its early stopping.

    Raises:
      UsageError: `model_dir` holds another run.
    """
    return from_writer(lambda: _finished_run(run))


def _finished_run(run: Run) -> dict[str, Any] | None:
    step = max(checkpoint_steps(run.model_dir), default=None)
    if step is None or step > run.plan.steps:
        return None
    if step < run.plan.steps and run.early_stopping is None:
        return None
    refuse_another_run(read_derived(run.model_dir).identity, identity(run), run)
    folder = pathlib.Path(run.model_dir)
    lines = [line for line in read_lines(folder / METRICS_FILE) if line["step"] <= step]
    evaluations = [line for line in lines if is_evaluation(line)]
    training = [line for line in lines if not is_evaluation(line)]
    plateau = run.plateau(evaluations)
    # Early stopping ends a run at a step that has a training line, an evaluation and a checkpoint.
    # If the rule is new and would have ended the run earlier, the run continues to the next
    # evaluation.
    stopped = plateau is not None and plateau.stop and plateau.step == step
    if step < run.plan.steps and not (stopped and training and training[-1]["step"] == step):
        return None
    seconds = {
        key.removeprefix("seconds/"): value
        for key, value in training[-1].items()
        if key.startswith("seconds/")
    }
    ends = [
        event
        for event in read_lines(folder / EVENTS_FILE)
        # A run that was extended also has the event of its earlier end.
        if event["event"] == "finished" and event["step"] == step
    ]
    end = run.end(plateau, step)
    if not ends:
        # The run was killed between the last checkpoint and the event.
        with RunWriter(run.model_dir, resume_step=step) as writer:
            record_end(run, writer, step, seconds, end)
    return {
        "line": training[-1],
        "evaluation": evaluations[-1] if evaluations else {},
        "seconds": ends[-1]["seconds"] if ends else seconds,
        "resumed_from": step,
        **end,
    }


def record_end(
    run: Run,
    writer: RunWriter | SilentWriter,
    step: int,
    seconds: Mapping[str, float],
    end: dict[str, Any],
) -> None:
    """Record the end of a run and the tokens of each source: an event, and in plan.json."""
    tokens = run.plan.tokens_before(step)
    sources = {name: dataclasses.asdict(account) for name, account in run.accounts(step).items()}
    achieved = {"step": step, "tokens": tokens, "sources": sources}
    if is_writer():
        _write_plan(run, dataclasses.replace(derive(run), achieved=achieved))
    writer.event("finished", step=step, tokens=tokens, sources=sources, seconds=seconds, **end)
