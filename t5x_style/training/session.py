"""From a resolved run to all that its loop needs: state on the mesh, compiled steps, files."""

import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from t5x_style.accounting import Ledger
from t5x_style.data import evaluation_set
from t5x_style.errors import UsageError
from t5x_style.files import write_whole
from t5x_style.hosts import from_writer, is_writer
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.reporting import RunWriter, SilentWriter
from t5x_style.reporting.run.record import is_evaluation
from t5x_style.reporting.run.writer import EVENTS_FILE, METRICS_FILE, read_lines
from t5x_style.step.model_state import State, fresh_state
from t5x_style.step.program import step_program
from t5x_style.training.checkpoints import Checkpointer, checkpoint_steps
from t5x_style.training.evaluation import Evaluator
from t5x_style.training.initial_weights import initial_parameters
from t5x_style.training.run import (
    CONFIG_FILE,
    PLAN_FILE,
    Run,
    read_plan,
    refuse_another_run,
)


@dataclasses.dataclass
class Session:
    """One life of a run, between a start and its end.

    Attributes:
      state: the train state; the loop replaces it with every step.
      step: steps done.
      resumed: whether the state came from a checkpoint of this run.
      steps: compiled train step by (sequences, sequence length). Calling one with any other shape
        is an error, so nothing is ever compiled again unseen.
      evaluator: the compiled evaluation.
      evaluations: the evaluation lines so far, those of earlier lives included.
      batch_sharding: how a batch is placed.
      ledger, writer, checkpointer: where seconds, lines and states go.
    """

    state: State
    step: int
    resumed: bool
    steps: Mapping[tuple[int, int], Any]
    evaluator: Evaluator
    evaluations: list[dict[str, Any]]
    batch_sharding: NamedSharding
    mesh: Mesh
    ledger: Ledger
    writer: RunWriter | SilentWriter
    checkpointer: Checkpointer

    def close(self) -> None:
        """Wait for what is being saved and written, and close it."""
        self.checkpointer.close()
        self.writer.close()


def open_session(run: Run) -> Session:
    """Resume the run where its newest checkpoint is, or start it; see `Run` for what is read.

    Raises:
      UsageError: `model_dir` holds another run, the mesh does not fit the machine, or
        `initial_checkpoint_path` the architecture; before anything is written.
    """
    started = time.perf_counter()
    plan, topology = run.plan, run.topology
    derived = run.derived()

    # What is there already, and may it be gone on with? One process looks: a shared folder may
    # show another an older state.
    resume_step, before = from_writer(lambda: _what_is_there(run, derived["identity"]))
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        # The step, abstractly: nothing is allocated before the checks have passed.
        program = step_program(run.step_spec, topology, mesh)
        model = program.model

        # The state: of this run, around other weights, or fresh from the seed.
        checkpointer = Checkpointer(
            run.model_dir, keep=run.keep_checkpoints, keep_period=run.keep_period
        )
        if resume_step is not None:
            state, saved = checkpointer.restore(resume_step, program.state)
            if saved["tokens"] != plan.tokens_before(resume_step):
                raise UsageError(
                    f"MODEL_DIR = {run.model_dir} had learnt {saved['tokens']:,} tokens at step "
                    f"{resume_step:,}; with steps of {plan} it would have been "
                    f"{plan.tokens_before(resume_step):,}: phases that are past cannot be changed"
                )
            ledger = Ledger.restore(saved["ledger"])
        else:
            parameters = None
            if run.initial_checkpoint_path is not None:
                parameters = initial_parameters(
                    run.initial_checkpoint_path, run.stores.tokenizer, model.abstract
                )
            state = fresh_state(model, program.optimizer, program.state, run.seed, parameters)
            ledger = Ledger()
        step = resume_step or 0

        # What the run leaves.
        writer: RunWriter | SilentWriter = SilentWriter()
        if is_writer():
            writer = RunWriter(run.model_dir, resume_step=resume_step)
            folder = pathlib.Path(run.model_dir)
            write_whole(folder / PLAN_FILE, json.dumps(derived, indent=1) + "\n")
            write_whole(folder / CONFIG_FILE, run.config_text)
        evaluations = from_writer(lambda: _evaluations(run.model_dir))
        ledger.add("lost", writer.lost_seconds)
        tokens = plan.tokens_before(step)
        writer.event(
            "started" if resume_step is None else "resumed",
            step=step,
            tokens=tokens,
            devices=mesh.size,
            device_kind=mesh.devices.flat[0].device_kind,
            mesh=topology.mesh_shape,
            jax=jax.__version__,
            config_changes=list(run.config_changes),
            sources=derived["sources"],
            initial_checkpoint=run.initial_checkpoint_path if resume_step is None else None,
        )
        *earlier, chapter = run.chapters
        if earlier and chapter.step == step and before["blend"][-1]["asked"] != chapter.asked:
            row = plan.rows_before(step)
            writer.event(
                "blend_changed",
                step=step,
                tokens=tokens,
                old=earlier[-1].shares(row),
                new=chapter.shares(row),
                new_at_end=chapter.shares(plan.rows),
            )
        for notice in derived["notices"]:
            writer.event("warned", step=step, tokens=tokens, reason=notice)
        ledger.add("other", time.perf_counter() - started)

        # Every program of the run, compiled here and nowhere else.
        with ledger.time("compile"):
            steps = {shape: program.compile(*shape) for shape in plan.shapes_from(step)}
            evaluator = Evaluator(
                model,
                mesh,
                {
                    name: evaluation_set(
                        store,
                        run.stores.tokenizer,
                        plan.phases[-1].sequence_length,
                        run.eval_tokens,
                    )
                    for name, store in run.stores.validation.items()
                },
                topology,
                batch_size=plan.phases[-1].sequences // topology.microbatches,
                eos_id=run.stores.tokenizer.eos_id,
                packing=run.spec.packing,
            )
    return Session(
        state,
        step,
        resume_step is not None,
        steps,
        evaluator,
        evaluations,
        program.batch_sharding,
        mesh,
        ledger,
        writer,
        checkpointer,
    )


def _what_is_there(run: Run, identity: dict[str, Any]) -> tuple[int | None, dict[str, Any]]:
    """The step of the newest checkpoint and the plan of its run: None and nothing if none is there.

    Raises:
      UsageError: it is another run's, or behind the end of this one.
    """
    step = max(checkpoint_steps(run.model_dir), default=None)
    if step is None:
        return None, {}
    before = read_plan(run.model_dir)
    refuse_another_run(
        before["identity"], identity, run.model_dir, allow_blend_change=run.allow_blend_change
    )
    if step > run.plan.steps:
        raise UsageError(
            f"MODEL_DIR = {run.model_dir} is at step {step:,}, behind the end of the run asked for "
            f"({run.plan.steps:,} steps): ask for more TRAIN_TOKENS or TRAIN_STEPS"
        )
    return step, before


def _evaluations(model_dir: str) -> list[dict[str, Any]]:
    return [
        line for line in read_lines(pathlib.Path(model_dir) / METRICS_FILE) if is_evaluation(line)
    ]


def finished_run(run: Run) -> dict[str, Any] | None:
    """What `loop.train` returned at the end of this run, read from its files; None if it is not
    at its end: neither that of the plan nor one that its early stopping makes.

    Raises:
      UsageError: `model_dir` holds another run.
    """
    _ = run.chapters  # asks the writer too, and what the writer is asked may not ask it
    return from_writer(lambda: _finished_run(run))


def _finished_run(run: Run) -> dict[str, Any] | None:
    step = max(checkpoint_steps(run.model_dir), default=None)
    if step is None or step > run.plan.steps:
        return None
    if step < run.plan.steps and run.early_stopping is None:
        return None
    refuse_another_run(
        read_plan(run.model_dir)["identity"],
        run.identity(),
        run.model_dir,
        allow_blend_change=run.allow_blend_change,
    )
    folder = pathlib.Path(run.model_dir)
    lines = [line for line in read_lines(folder / METRICS_FILE) if line["step"] <= step]
    evaluations = [line for line in lines if is_evaluation(line)]
    training = [line for line in lines if not is_evaluation(line)]
    standing = run.standing(evaluations)
    # Where early stopping ends a run, a training line, the evaluation and a checkpoint are of one
    # step. A run that should have ended already (the rule is new to it) goes on to its next
    # evaluation.
    stopped = standing is not None and standing.stop and standing.step == step
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
        # A run that was lengthened has the word of its shorter self, too.
        if event["event"] == "finished" and event["step"] == step
    ]
    end = run.end(standing, step)
    if not ends:
        # A kill came between the last checkpoint and the last word.
        with RunWriter(run.model_dir, resume_step=step) as writer:
            tell_end(run, writer, step, seconds, end)
    return {
        "line": training[-1],
        "evaluation": evaluations[-1] if evaluations else {},
        "seconds": ends[-1]["seconds"] if ends else seconds,
        "resumed_from": step,
        **end,
    }


def tell_end(
    run: Run,
    writer: RunWriter | SilentWriter,
    step: int,
    seconds: Mapping[str, float],
    end: dict[str, Any],
) -> None:
    """The last word on a run: what it had of each source, in its events and beside the plan."""
    tokens, sources = run.plan.tokens_before(step), run.accounts(step)
    achieved = {"step": step, "tokens": tokens, "sources": sources}
    if is_writer():
        plan = run.derived() | {"achieved": achieved}
        write_whole(pathlib.Path(run.model_dir) / PLAN_FILE, json.dumps(plan, indent=1) + "\n")
    writer.event("finished", step=step, tokens=tokens, sources=sources, seconds=seconds, **end)
