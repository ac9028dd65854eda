"""A run: the user's choices, resolved and checked."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.accounting import Auditor, Chip, ParametricLaw, SourceAccount, Topology, chip
from t5x_style.accounting.layouts.divisibility import check_divisible
from t5x_style.checkpoints import refuse_absent, run_folder
from t5x_style.checkpoints.beginning import NOTHING_THERE, Beginning, find_beginning
from t5x_style.data import BatchPlan, BatchReader, Stores, TokenStore
from t5x_style.data.rows import source_accounts
from t5x_style.data.rows.batch_plan import StepPhase
from t5x_style.data.rows.blend_history import BlendVersion, blend_versions, reader_of
from t5x_style.data.stores.held_out import seen_by_run, stores_by_name
from t5x_style.data.stores.token_store import TOKENS_FILE
from t5x_style.errors import UsageError, one_of
from t5x_style.hosts import from_writer
from t5x_style.optim.earlier_start import EarlierStart
from t5x_style.ranges import (
    EvalPeriod,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    check_ranges,
)
from t5x_style.reporting import read_derived
from t5x_style.reporting.run.held_out_text import (
    HeldOutStore,
    HeldOutText,
    Replacement,
    continued,
    replacements,
)
from t5x_style.step.spec import StepSpec
from t5x_style.training.early_stopping import EarlyStopping, PlateauState
from t5x_style.training.evaluation import Metric, check_metrics
from t5x_style.training.recovery.monitors import Monitors
from t5x_style.training.recovery.spikes import Spikes
from t5x_style.training.recovery.steps import Steps, check_steps


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a training run needs, resolved and checked before anything is allocated.

    `open_run` makes one. The attributes are the parameters of the `train` verb, except for these:

    Attributes:
      spec, topology: WHAT a step computes and WHERE it runs.
      stores: the token stores of the corpus.
      blend: the blends of the run so far, the configured one last.
      held_out: the validation stores of the run so far, the configured ones last.
      replaced: the held-out texts that this start replaces.
      seen_before: notices about held-out text that the run of the initial weights was trained on.
      own_law: the law, read from its file.
      config_text: the consumed configuration, for config.gin.
      config_changes: the differences from the configuration of the last start.
      beginning: what this start found in the folder.
      earlier: the last start; None if the run has no checkpoint.
      shortened: why the plan of `spec` ends before the configured plan; None if it does not (see
        `within_caps`).
      asked_plan: the configured plan, if `spec` has a shortened one. Rows are laid out by it, so
        they stay the same when a later start may read more.
      auditor: computes FLOPs and laws of this run.
      watched_weights: {source: weight} in the score of early stopping; empty without one.
    """

    model_dir: str
    spec: StepSpec
    topology: Topology
    stores: Stores
    blend: Sequence[BlendVersion]
    held_out: Sequence[HeldOutText]
    replaced: Sequence[Replacement]
    seen_before: Sequence[str]
    seed: int
    max_epochs: float | Mapping[str, float]
    log_period: PositiveInt
    eval_period: EvalPeriod
    eval_tokens: NonNegativeInt | None
    checkpoint_period: PositiveInt
    keep_checkpoints: PositiveInt
    keep_period: NonNegativeInt | None
    initial_checkpoint_path: str | None
    config_text: str
    config_changes: Sequence[Mapping[str, str | None]] = ()
    early_stopping: EarlyStopping | None = None
    save_patience: NonNegativeFloat = 1800.0
    save_timeout: PositiveFloat = 600.0
    metrics: Sequence[Metric] = ()
    spikes: Spikes = dataclasses.field(default_factory=Spikes)
    monitors: Monitors = dataclasses.field(default_factory=Monitors)
    skip_steps: Steps = ()
    own_law: ParametricLaw | None = None
    at_cap: str = "refuse"
    allow_blend_change: bool = False
    beginning: Beginning = NOTHING_THERE
    earlier: EarlierStart | None = None
    shortened: str | None = None
    asked_plan: BatchPlan | None = None
    auditor: Auditor = dataclasses.field(init=False, repr=False, compare=False)
    watched_weights: dict[str, float] = dataclasses.field(init=False)

    def __post_init__(self):
        check_ranges(self, "train")
        check_metrics(self.metrics)
        object.__setattr__(self, "skip_steps", check_steps("train.skip_steps", self.skip_steps))
        vocabulary = self.stores.tokenizer.vocab_size
        if self.spec.architecture.vocab_size < vocabulary:
            raise UsageError(
                f"Architecture.vocab_size = {self.spec.architecture.vocab_size} is below the "
                f"vocabulary of {self.stores.tokenizer.path}, which has {vocabulary} pieces"
            )
        for shape in self.spec.shapes:
            check_divisible(shape, self.topology)
        self.spec.optimizer.check(self.plan.tokens)
        if self.topology.chip is not None:
            chip(self.topology.chip)
        object.__setattr__(self, "auditor", self._auditor())
        weights = {}
        if self.early_stopping is not None:
            if self.eval_tokens == 0:
                raise UsageError(
                    "train.early_stopping watches evaluations, and train.eval_tokens = 0 switches "
                    "them off"
                )
            weights = self.early_stopping.weights(self.shares, list(self.evaluated))
        object.__setattr__(self, "watched_weights", weights)

    @property
    def plan(self) -> BatchPlan:
        """Steps, rows and tokens of the run."""
        return self.spec.plan

    @property
    def row_plan(self) -> BatchPlan:
        """The plan by which rows are laid out."""
        return self.asked_plan or self.plan

    @property
    def step_spec(self) -> StepSpec:
        """The spec of a step, with the number of sources and the EOS id of the data."""
        eos_id = self.stores.tokenizer.eos_id
        return dataclasses.replace(self.spec, sources=len(self.reader.names), eos_id=eos_id)

    @property
    def evaluated(self) -> Mapping[str, TokenStore]:
        """{source: validation store} of the sources that are evaluated."""
        return {} if self.eval_tokens == 0 else self.stores.validation

    @functools.cached_property
    def reader(self) -> BatchReader:
        """Reads the rows of all blends of the run."""
        return reader_of(
            self.blend,
            self.stores,
            self.row_plan,
            self.seed,
            document_starts=self.spec.packing.document_starts,
        )

    @functools.cached_property
    def shares(self) -> dict[str, float]:
        """{source: planned share of the tokens of the whole run}."""
        owed = self.reader.blend.owed_rows(self.plan.rows) / self.plan.rows
        return dict(zip(self.reader.names, owed.tolist(), strict=True))

    @functools.cached_property
    def caps(self) -> dict[str, float]:
        """{source: the most epochs that may be read}."""
        return source_accounts.checked_caps(self.max_epochs, list(self.stores.train))

    @functools.cached_property
    def chip(self) -> Chip | None:
        """The chip whose peak an MFU is measured against, or None."""
        return None if self.topology.chip is None else chip(self.topology.chip)

    def accounts(
        self, step: int, skipped: Mapping[str, int] | None = None
    ) -> dict[str, SourceAccount]:
        """The tokens of each source that the first `step` steps read.

        Args:
          skipped: {source: those that nothing was learnt from}, as `tokens_of` gives them.
        """
        rows = self.plan.rows_before(step)
        return source_accounts.accounts(self.reader, self.stores.train, rows, skipped)

    def tokens_of(self, steps: Steps) -> dict[str, int]:
        """{source: tokens that some steps read}; empty without steps."""
        counts = [
            self.reader.tokens_by_source(self.plan.rows_before(first + count - 1))
            - self.reader.tokens_by_source(self.plan.rows_before(first - 1))
            for first, count in steps
        ]
        return dict(zip(self.reader.names, sum(counts).tolist(), strict=True)) if counts else {}

    def plateau(self, evaluations: Sequence[Mapping]) -> PlateauState | None:
        """The state of early stopping after these evaluation lines; None without early stopping.

        Where the held-out text of a watched source was replaced, it begins anew: losses of
        different texts are not compared.
        """
        if self.early_stopping is None or not evaluations:
            return None
        begins = max(
            (
                change.step
                for change in replacements(self.held_out)
                if change.source in self.watched_weights and change.step < evaluations[-1]["step"]
            ),
            default=-1,
        )
        of_one_text = [line for line in evaluations if line["step"] > begins]
        return self.early_stopping.state(of_one_text, self.watched_weights)

    def end(self, plateau: PlateauState | None, step: int) -> dict[str, Any]:
        """The facts that early stopping adds to the end of the run at `step`.

        Returns:
          `reason`, why it ended before its planned tokens; `best_step`, that of the lowest score.
          Empty without early stopping.
        """
        if plateau is None:
            return {}
        end: dict[str, Any] = {"best_step": plateau.best_step}
        if step < self.plan.steps:
            share = self.plan.tokens_before(step) / self.plan.tokens
            end["reason"] = f"early stopping at {share:.1%} of the planned tokens: {plateau.reason}"
        return end

    def _auditor(self) -> Auditor:
        return Auditor(
            self.spec.architecture,
            [(self.plan.tokens_of_rows(row), length) for row, length in self.plan.lengths],
            self.topology,
            planned_tokens=self.plan.tokens,
            own_law=self.own_law,
            effective_tokens=lambda tokens: source_accounts.effective_tokens(
                self.reader, self.stores.train, self.plan.rows_of_tokens(int(tokens))
            ),
        )


def open_run(
    *,
    model_dir: str,
    spec: StepSpec,
    stores: Stores,
    max_epochs: float | Mapping[str, float],
    at_cap: str = "refuse",
    allow_blend_change: bool = False,
    initial_checkpoint_path: str | None = None,
    checkpoint_period: int = 1000,
    beginning: Beginning | None = None,
    **options: Any,
) -> Run:
    """The run of a configuration, with the blends of its earlier starts.

    Args:
      beginning: what was found in `model_dir`; it is looked for if not given.
      options: the other fields of `Run`.

    Raises:
      UsageError: as `Run`, `find_beginning` and `blend_versions`.
    """
    one_of("train.at_cap", at_cap, source_accounts.AT_CAP)
    if beginning is None:
        beginning = find_beginning(model_dir, checkpoint_period=checkpoint_period)
    newest = beginning.step
    written, written_held_out, *last_start = from_writer(lambda: _earlier_starts(model_dir, newest))
    earlier = None
    if newest:
        optimizer, phases = last_start
        earlier = EarlierStart(newest, optimizer, BatchPlan(tuple(StepPhase(*p) for p in phases)))
    resume = None if newest is None else (newest, spec.plan.tokens_before(newest))
    held_out = continued(
        [HeldOutText.from_json(version) for version in written_held_out],
        {name: _held_out_store(store) for name, store in stores.validation.items()},
        resume,
    )
    blend = blend_versions(
        stores,
        spec.plan,
        renormalised_caps(stores, max_epochs, at_cap),
        written=[BlendVersion.from_json(version) for version in written],
        resume=None if newest is None else (spec.plan.rows_before(newest), newest),
        change=allow_blend_change,
    )
    return Run(
        model_dir=model_dir,
        spec=spec,
        stores=stores,
        blend=blend,
        held_out=held_out,
        replaced=[change for change in replacements(held_out) if change.step == newest],
        seen_before=[] if newest is not None else _seen_before(initial_checkpoint_path, stores),
        initial_checkpoint_path=initial_checkpoint_path,
        max_epochs=max_epochs,
        at_cap=at_cap,
        allow_blend_change=allow_blend_change,
        checkpoint_period=checkpoint_period,
        beginning=beginning,
        earlier=earlier,
        **options,
    )


def renormalised_caps(
    stores: Stores, max_epochs: float | Mapping[str, float], at_cap: str
) -> dict[str, float] | None:
    """{source: epochs} after which the others take a source's share; None for another `at_cap`."""
    if at_cap != "renormalise":
        return None
    return source_accounts.checked_caps(max_epochs, list(stores.train))


def _earlier_starts(model_dir: str, newest: int | None) -> tuple[Any, ...]:
    """What plan.json has of a run's earlier starts, in JSON types.

    Args:
      newest: step of the checkpoint to go on from; without one there was no start.

    Returns:
      The versions of the blend, and of the held-out text; the optimizer's fields, and (sequences,
      sequence length, steps) of each phase.
    """
    if newest is None:
        return [], [], {}, []
    derived = read_derived(model_dir)
    held_out = [version.to_json() for version in derived.held_out]
    phases = [
        (phase.sequences, phase.sequence_length, phase.steps) for phase in derived.horizon.phases
    ]
    return derived.blend, held_out, derived.optimizer, phases


def _seen_before(path: str | None, stores: Stores) -> list[str]:
    """Notices about held-out text that the run of a checkpoint was trained on."""
    if path is None:
        return []

    def seen() -> list[str]:
        refuse_absent(path)
        base = read_derived(run_folder(path))
        named = {name: source.store for name, source in base.sources.items()}
        cache_dir = next(iter(stores.train.values())).path.parent
        trained_on, unknown = stores_by_name(named, cache_dir)
        return [f"the run of INITIAL_CHECKPOINT_PATH: {notice}" for notice in unknown] + [
            f"the run of INITIAL_CHECKPOINT_PATH was trained on held-out text: {notice}"
            for notice in seen_by_run(trained_on, stores.validation, stores.tokenizer)
        ]

    return from_writer(seen)


def _held_out_store(store: TokenStore) -> HeldOutStore:
    return HeldOutStore(
        str(store.path.absolute()), store.meta["fingerprint"], store.meta["checksums"][TOKENS_FILE]
    )


def within_caps(run: Run) -> Run:
    """The run, planned to end before a source is read more often than its cap.

    Returns the same run unless `at_cap` is 'stop' and a source reaches its cap.

    Raises:
      UsageError: a source exceeds its cap before the first step ends.
    """
    if run.at_cap != "stop":
        return run
    rows = source_accounts.rows_within(run.reader, run.caps, run.plan.rows)
    if rows == run.plan.rows:
        return run
    plan = run.plan.shortened(rows)
    after = source_accounts.accounts(run.reader, run.stores.train, rows + 1)
    name = next(name for name, cap in run.caps.items() if after[name].epochs > cap)
    reason = (
        f"source {name!r} is at its cap of {run.caps[name]:g} epochs at step {plan.steps:,} of "
        f"{run.plan.steps:,}: the run is planned to end there"
    )
    if not plan.phases:
        raise UsageError(f"AT_CAP = 'stop': {reason}")
    spec = dataclasses.replace(run.spec, plan=plan)
    return dataclasses.replace(run, spec=spec, asked_plan=run.row_plan, shortened=reason)
