"""`t5x-style train`: pretrains a model; an interrupted run is resumed."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import gin

from t5x_style.accounting import Architecture, Topology, verdict_of_line
from t5x_style.accounting.audit.audit_record import skipped_tokens
from t5x_style.accounting.laws.own import read_law
from t5x_style.config.checks import config_differences, operative_config, refuse_unconsumed
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import OWNER_FILE, LocalPath, local_path, owned
from t5x_style.quantities import count
from t5x_style.ranges import (
    EvalPeriod,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from t5x_style.reporting import (
    ACHIEVED_HEADERS,
    CONFIG_FILE,
    SOURCE_HEADERS,
    achieved_rows,
    derived_rows,
    process_began,
    source_rows,
    table,
    warn,
)

if TYPE_CHECKING:
    from t5x_style.data import Corpus, Packing, Stores
    from t5x_style.hosts import Hosts, Watchdog
    from t5x_style.optim import Optimizer
    from t5x_style.training.early_stopping import EarlyStopping
    from t5x_style.training.evaluation import Metric
    from t5x_style.training.recovery.monitors import Monitors
    from t5x_style.training.recovery.spikes import Spikes

CONFIGURABLES = (
    "t5x_style.accounting.architecture",
    "t5x_style.commands.corpora.cache",
    "t5x_style.commands.corpora.tokenizer",
    "t5x_style.data",
    "t5x_style.optim",
    "t5x_style.hosts",
    "t5x_style.accounting.topology",
    "t5x_style.training.early_stopping",
    "t5x_style.training.recovery.monitors",
    "t5x_style.training.recovery.spikes",
)

# seqio's name for the tokens that a decoder learns.
FEATURE = "targets"


@gin.configurable
def train(
    *,
    model_dir: LocalPath,
    architecture: Architecture,
    corpus: Corpus,
    optimizer: Optimizer,
    topology: Topology,
    task_feature_lengths: Mapping[str, int | Sequence[tuple[int, int | None]]],
    batch_size: int | Sequence[tuple[int, int | None]],
    train_tokens: PositiveInt | None = None,
    train_steps: PositiveInt | None = None,
    compute_dtype: str = "bfloat16",
    packing: Packing | None = None,
    z_loss: NonNegativeFloat = 0.0,
    seed: int = 0,
    max_epochs: float | Mapping[str, float] = 40.0,
    at_cap: Literal["refuse", "stop", "renormalise", "repeat"] = "refuse",
    allow_blend_change: bool = False,
    log_period: PositiveInt = 10,
    eval_period: EvalPeriod = 1000,
    eval_tokens: NonNegativeInt | None = None,
    checkpoint_period: PositiveInt = 1000,
    keep_checkpoints: PositiveInt = 3,
    keep_period: NonNegativeInt | None = None,
    save_patience: NonNegativeFloat = 1800.0,
    save_timeout: PositiveFloat = 600.0,
    initial_checkpoint_path: LocalPath | None = None,
    resume_step: NonNegativeInt | None = None,
    from_scratch: bool = False,
    early_stopping: EarlyStopping | None = None,
    metrics: Sequence[Metric] = (),
    spikes: Spikes | None = None,
    monitors: Monitors | None = None,
    skip_steps: Sequence[tuple[int, int]] = (),
    own_law: LocalPath | None = None,
    hosts: Hosts | None = None,
    watchdog: Watchdog | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Trains a decoder on a blend of sources, and audits the compute.

    The values derived from the configuration are printed before step 0; --dry_run stops there. The
    same command continues a run that was stopped.

    Args:
      model_dir: folder for all files of the run.
      architecture: the decoder, @Architecture().
      corpus: the training text, @Corpus().
      optimizer: @AdamW(), or your own; see `optim.Optimizer`.
      topology: mesh, rules, kernel and remat, @Topology().
      task_feature_lengths: {'targets': tokens per sequence}; or phases {'targets': [(tokens per
        sequence, tokens of the run), ..., (tokens per sequence, None)]}.
      batch_size: sequences per step; or phases [(sequences, tokens), ..., (sequences, None)].
      train_tokens: length of the run in tokens.
      train_steps: length of the run in steps; one of the two is given.
      compute_dtype: bfloat16 or float32; parameters and optimizer are float32.
      packing: how documents share a row, @Packing(); consecutive windows of the store if not given.
      z_loss: coefficient of log(Z)^2.
      seed: of the initial parameters and the order of the rows, any integer.
      max_epochs: the most epochs of a source: one number, or {source: number}, 40 for those left
        out.
      at_cap: for a source that would exceed max_epochs: 'refuse' the run, 'stop' the run there,
        'renormalise' (the other sources take its share), or 'repeat' the source with a warning.
      allow_blend_change: whether a resumed run may have another blend; rows read before stay.
      log_period: steps between training lines; the last line has up to twice as many.
      eval_period: steps between evaluations.
      eval_tokens: tokens of each validation split to evaluate; all of them if not given. With 0
        nothing is evaluated, neither at the first step nor at the last.
      checkpoint_period: steps between checkpoints.
      keep_checkpoints: newest checkpoints to keep.
      keep_period: also keep every checkpoint whose step is a multiple of this; none if 0 or not
        given. A file PINNED in the folder of a checkpoint keeps that one.
      save_patience: seconds that saves may fail, one after the other, before the run ends. Each is
        tried again while training goes on. A run of several processes ends at the first failure,
        with the status 75; so does a forbidden one, with the status 1.
      save_timeout: seconds that one save may take before the run ends with the status 75.
      initial_checkpoint_path: a run or a checkpoint with the initial parameters.
      resume_step: go back to the whole checkpoint of this step. Later ones are moved aside, as
        abandoned_checkpoint_N. Once: the next starts with the same value go on from the newest.
      from_scratch: whether a run may begin anew if its checkpoints are gone, or none is whole. What
        is there is moved aside. A run that can go on does.
      early_stopping: the rule to end when validation no longer improves, @EarlyStopping(); the best
        checkpoint is kept too. Its mode 'keep' keeps that alone.
      metrics: further figures of an evaluation, such as [@my_team.WorstRow()].
      spikes: what counts as a spike of the loss, and what is done about it, @Spikes(); a warning if
        not given.
      monitors: limits on the signs of a slow divergence, @Monitors(); a line that passes one is
        told.
      skip_steps: [(first step, count), ...] to pass over, learning nothing from their rows. A run
        that went back has its own in plan.json.
      own_law: a file that `t5x-style fit` wrote; the run is compared with this law first.
      hosts: the index of this process among several, @Hosts(); from the environment if not given.
      watchdog: when a run hangs, and ends so that it can be started again, @Watchdog().
      dry_run: print the derived values and stop.
    """
    refuse_unconsumed()
    local_path(model_dir, "MODEL_DIR")
    if initial_checkpoint_path is not None:
        local_path(initial_checkpoint_path, "INITIAL_CHECKPOINT_PATH")
    law = None if own_law is None else read_law(own_law)
    from t5x_style import training
    from t5x_style.checkpoints.beginning import find_beginning
    from t5x_style.data import BatchPlan, Packing
    from t5x_style.hosts import Hosts, Watchdog, from_writer
    from t5x_style.step.spec import StepSpec
    from t5x_style.training.recovery.monitors import Monitors
    from t5x_style.training.recovery.spikes import Spikes
    from t5x_style.training.session import refuse_foreign_files

    # The processes of a start are not part of the run.
    config_text = operative_config(without=Hosts)
    # Checked before the stores, which may take hours to build.
    plan = BatchPlan.from_settings(
        batch_size,
        feature_length(task_feature_lengths),
        train_tokens=train_tokens,
        train_steps=train_steps,
    )
    spec = StepSpec(
        architecture=architecture,
        optimizer=optimizer,
        plan=plan,
        compute_dtype=compute_dtype,
        packing=packing or Packing(),
        z_loss=z_loss,
    )
    with contextlib.ExitStack() as held:
        # A dry run writes nothing, and does not wait for other processes.
        if not dry_run:
            held.enter_context((hosts or Hosts()).join(config_text))
            held.enter_context((watchdog or Watchdog()).watching())
            lock = owned(pathlib.Path(model_dir) / OWNER_FILE, f"MODEL_DIR = {model_dir}")
            # The processes of a run are one owner. All of them learn of a refusal.
            from_writer(lambda: held.enter_context(lock))
        from_writer(lambda: refuse_foreign_files(model_dir, from_scratch=from_scratch))
        beginning = find_beginning(
            model_dir,
            checkpoint_period=checkpoint_period,
            resume_step=resume_step,
            from_scratch=from_scratch,
        )
        stores = shared_stores(corpus, build=not dry_run)
        run = training.open_run(
            model_dir=model_dir,
            spec=spec,
            topology=topology,
            stores=stores,
            seed=seed,
            max_epochs=max_epochs,
            at_cap=at_cap,
            allow_blend_change=allow_blend_change,
            log_period=log_period,
            eval_period=eval_period,
            eval_tokens=eval_tokens,
            checkpoint_period=checkpoint_period,
            keep_checkpoints=keep_checkpoints,
            keep_period=keep_period,
            save_patience=save_patience,
            save_timeout=save_timeout,
            initial_checkpoint_path=initial_checkpoint_path,
            beginning=beginning,
            config_text=config_text,
            config_changes=_changes(model_dir, config_text),
            early_stopping=early_stopping,
            metrics=metrics,
            spikes=spikes or Spikes(),
            monitors=monitors or Monitors(),
            skip_steps=skip_steps,
            own_law=law,
        )
        run = training.within_caps(run)
        derived = training.derive(run)
        print(table(derived_rows(derived), ("derived", "value", "")))
        print(f"\n{table(source_rows(derived), SOURCE_HEADERS)}")
        for notice in (*run.beginning.notices, *derived.notices):
            print(notice)
        if dry_run:
            return derived.to_json()
        for change in run.config_changes:
            print(f"changed since the last start: {change}")
        result = training.train(run, process_began())
        line = result["line"]
        if result["resumed_from"] == line["step"]:
            print(
                f"{model_dir} is finished: {line['step']:,} steps, {count(line['tokens'])} tokens"
            )
        seconds = {f"seconds/{cause}": value for cause, value in result["seconds"].items()}
        if "reason" in result:
            print(result["reason"])
        # The last line of a finished run may be older than the law.
        skipped = skipped_tokens(line)
        audit = run.auditor.line_at(line["tokens"], sum(skipped.values()))
        print("\n".join(verdict_of_line(line | audit | seconds, law)))
        print(table(achieved_rows(run.accounts(int(line["step"]), skipped)), ACHIEVED_HEADERS))
        if skipped:
            print(f"{count(sum(skipped.values()))} of these tokens were not learnt from")
        if "best_step" in result:
            print(_best(model_dir, result["best_step"]))
        print(f"the run is in {model_dir}")
        return {"model_dir": model_dir, **result}


def shared_stores(corpus: Corpus, *, build: bool, evaluate_only: bool = False) -> Stores:
    """The stores of a corpus; only the writer builds the missing ones."""
    from t5x_style.data import ensure_stores
    from t5x_style.hosts import building, from_writer

    opened: list[Stores] = []

    def ensure(build: bool) -> Stores:
        return ensure_stores(corpus, build=build, evaluate_only=evaluate_only)

    with building():
        from_writer(lambda: opened.append(ensure(build)))
        # The other processes open the finished stores in the shared folder.
        return opened[0] if opened else ensure(False)


def feature_length(
    task_feature_lengths: Mapping[str, int | Sequence[tuple[int, int | None]]],
) -> int | Sequence[tuple[int, int | None]]:
    """Tokens per sequence, or its phases, from TASK_FEATURE_LENGTHS.

    Raises:
      UsageError: it has another feature than the one of a decoder.
    """
    if set(task_feature_lengths) != {FEATURE}:
        wrong = next(iter(set(task_feature_lengths) - {FEATURE}), None)
        raise UsageError(
            f"TASK_FEATURE_LENGTHS = {dict(task_feature_lengths)}: a decoder has one feature, as "
            f"in {{'{FEATURE}': 1024}}{did_you_mean(wrong or '', [FEATURE])}"
        )
    return task_feature_lengths[FEATURE]


def _changes(model_dir: str, config_text: str) -> list[dict[str, str | None]]:
    """The differences from the configuration that `model_dir` was last started with."""
    before = pathlib.Path(model_dir) / CONFIG_FILE
    if not before.is_file():
        return []
    try:
        return config_differences(before.read_text(), config_text)
    except (UsageError, ValueError):
        warn(f"{before} is damaged: what has changed since the last start is not known")
        return []


def _best(model_dir: str, step: int) -> str:
    """A line about the best checkpoint; it may be gone if the rule is new to the run."""
    from t5x_style.checkpoints import checkpoint_steps

    if step in (kept := checkpoint_steps(model_dir)):
        return f"the best checkpoint is {kept[step]}"
    return f"the best evaluation was at step {step:,}, whose checkpoint was not kept"
