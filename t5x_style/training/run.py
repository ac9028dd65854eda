"""What a run is, resolved: what a user chose, and what follows from it, printed before step 0."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.accounting import (
    Architecture,
    Auditor,
    Chip,
    ParametricLaw,
    chip,
    non_embedding_parameters,
    parameters,
)
from t5x_style.data import BatchPlan, BatchReader, Packing, Stores
from t5x_style.data.rows import source_accounts
from t5x_style.data.rows.blend_history import Chapter, asked_blend, chapters_of, reader_of
from t5x_style.errors import Fault, UsageError, did_you_mean
from t5x_style.hosts import from_writer
from t5x_style.optim import Optimizer, check_fulfils
from t5x_style.partitioning import Topology, check_divisible
from t5x_style.quantities import count
from t5x_style.step.model_state import COMPUTE_DTYPES
from t5x_style.step.step import AS_STORED
from t5x_style.training.checkpoints import checkpoint_steps
from t5x_style.training.early_stopping import EarlyStopping, Standing

PLAN_FILE = "plan.json"
CONFIG_FILE = "config.gin"


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything that a training run needs, resolved and checked, before anything is allocated.

    Attributes are the parameters of the `train` verb, with `plan` in place of the batch size and
    the horizon, `stores` in place of the corpus, `own_law` read, and for the files that the run
    leaves `config_text`, the consumed configuration, and `config_changes`, how it differs from the
    one that the run was last started with. Where `plan` ends before what was asked for (see
    `within_caps`), `shortened` tells why and `asked_plan` is the one asked for: rows are laid out
    by that one, so that they stay what they were when a later start is given more.
    """

    model_dir: str
    architecture: Architecture
    topology: Topology
    optimizer: Optimizer
    stores: Stores
    plan: BatchPlan
    microbatches: int
    compute_dtype: str
    z_loss: float
    seed: int
    max_epochs: float | Mapping[str, float]
    log_period: int
    eval_period: int
    eval_tokens: int | None
    checkpoint_period: int
    keep_checkpoints: int
    keep_period: int | None
    initial_checkpoint_path: str | None
    config_text: str
    config_changes: Sequence[Mapping[str, str]] = ()
    early_stopping: EarlyStopping | None = None
    own_law: ParametricLaw | None = None
    packing: Packing = AS_STORED
    at_cap: str = "refuse"
    allow_blend_change: bool = False
    shortened: str | None = None
    asked_plan: BatchPlan | None = None

    def __post_init__(self):
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise UsageError(
                f"train.compute_dtype = {self.compute_dtype!r} is not one of "
                f"{', '.join(COMPUTE_DTYPES)}{did_you_mean(self.compute_dtype, COMPUTE_DTYPES)}"
            )
        if self.at_cap not in source_accounts.AT_CAP:
            raise UsageError(
                f"train.at_cap = {self.at_cap!r} is not one of {', '.join(source_accounts.AT_CAP)}"
                f"{did_you_mean(self.at_cap, source_accounts.AT_CAP)}"
            )
        for name in (
            "microbatches",
            "log_period",
            "eval_period",
            "checkpoint_period",
            "keep_checkpoints",
        ):
            if getattr(self, name) < 1:
                raise UsageError(f"train.{name} = {getattr(self, name)}: must be 1 or more")
        vocabulary = self.stores.tokenizer.vocab_size
        if self.architecture.vocab_size < vocabulary:
            raise UsageError(
                f"Architecture.vocab_size = {self.architecture.vocab_size} is smaller than the "
                f"vocabulary of {self.stores.tokenizer.path}, which has {vocabulary} pieces"
            )
        self.architecture.check_length(max(phase.sequence_length for phase in self.plan.phases))
        for size, sequence_length, _ in self.plan.phases:
            if size % self.microbatches:
                raise UsageError(
                    f"BATCH_SIZE = {size} is not a multiple of train.microbatches = "
                    f"{self.microbatches}"
                )
            check_divisible(
                self.architecture,
                self.topology,
                size // self.microbatches,
                sequence_length,
            )
        check_fulfils("train.optimizer", self.optimizer, Optimizer)
        self.optimizer.check(self.plan.tokens)
        if self.topology.chip is not None:
            chip(self.topology.chip)
        # Both refuse what they cannot be made from.
        _ = self.watched, self.auditor

    @property
    def row_plan(self) -> BatchPlan:
        """By which rows are laid out."""
        return self.asked_plan or self.plan

    @functools.cached_property
    def chapters(self) -> list[Chapter]:
        """The blends of the run, the one asked for last."""
        newest, written = from_writer(lambda: _newest_and_blend(self.model_dir))
        return chapters_of(
            self.stores,
            self.row_plan,
            self._renormalised_at,
            written=[Chapter.from_json(chapter) for chapter in written],
            resume=None if newest is None else (self.row_plan.rows_before(newest), newest),
            change=self.allow_blend_change,
        )

    @functools.cached_property
    def reader(self) -> BatchReader:
        """Rows of the blend, and of those that it was before."""
        return reader_of(
            self.chapters,
            self.stores,
            self.row_plan,
            self.seed,
            document_starts=self.packing.document_starts,
        )

    @property
    def _renormalised_at(self) -> dict[str, float] | None:
        return self.caps if self.at_cap == "renormalise" else None

    @functools.cached_property
    def shares(self) -> dict[str, float]:
        """{source: share of the tokens of the whole run that it is due}."""
        due = self.reader.blend.due(self.plan.rows) / self.plan.rows
        return dict(zip(self.reader.names, due.tolist(), strict=True))

    @functools.cached_property
    def caps(self) -> dict[str, float]:
        """{source: epochs} that it is read at most."""
        return source_accounts.checked_caps(self.max_epochs, list(self.stores.train))

    def accounts(self, step: int) -> dict[str, dict[str, Any]]:
        """What the steps before `step` take of each source; see `sources.accounts`."""
        return source_accounts.accounts(self.reader, self.stores.train, self.plan.rows_before(step))

    @functools.cached_property
    def auditor(self) -> Auditor:
        """The account of this model under this remat policy, attention kernel and loss."""
        return Auditor(
            self.architecture,
            [(self.plan.tokens_of_rows(row), length) for row, length in self.plan.lengths],
            self.topology.remat,
            self.topology.kernel,
            attention_block=self.topology.attention_block,
            sequence_shards=self.topology.sequence,
            loss_vocab_chunks=self.topology.loss_vocab_chunks,
            planned_tokens=self.plan.tokens,
            own_law=self.own_law,
            effective_tokens=lambda tokens: source_accounts.worth(
                self.reader, self.stores.train, self.plan.rows_of_tokens(int(tokens))
            ),
        )

    @functools.cached_property
    def watched(self) -> dict[str, float]:
        """{source: weight} in the score of the early stopping; empty without one."""
        if self.early_stopping is None:
            return {}
        return self.early_stopping.weights(self.shares, list(self.stores.validation))

    def standing(self, evaluations: Sequence[Mapping]) -> Standing | None:
        """How the run stands after these evaluation lines; None without an early stopping."""
        if self.early_stopping is None:
            return None
        return self.early_stopping.standing(evaluations, self.watched)

    def end(self, standing: Standing | None, step: int) -> dict[str, Any]:
        """What is told of the end of a run at `step`, as far as there is something to tell.

        Returns:
          `reason`, why it ended before its planned tokens; `best_step`, that of the lowest score of
          its early stopping.
        """
        if standing is None:
            return {}
        end: dict[str, Any] = {"best_step": standing.best_step}
        if step < self.plan.steps:
            share = self.plan.tokens_before(step) / self.plan.tokens
            end["reason"] = (
                f"early stopping at {share:.1%} of the planned tokens: {standing.reason}"
            )
        return end

    def _phases(self) -> list[dict[str, Any]]:
        """Steps of one shape, and what their tokens cost."""
        phases, since = [], 0
        for phase in self.plan.phases:
            until = since + phase.tokens
            flops = self.auditor.flops_per_token(since, until)
            phases.append({**phase._asdict(), "tokens": phase.tokens, "flops_per_token": flops})
            since = until
        return phases

    @functools.cached_property
    def chip(self) -> Chip | None:
        """The chip whose peak an MFU is measured against, or None."""
        return None if self.topology.chip is None else chip(self.topology.chip)

    def identity(self) -> dict[str, Any]:
        """What may not change between two starts of one run: another model, or other rows."""
        return {
            "architecture": dataclasses.asdict(self.architecture),
            "tokenizer": self.stores.tokenizer.hash,
            "blend": asked_blend(self.stores, self._renormalised_at),
            "stores": {
                name: store.meta["fingerprint"] for name, store in self.stores.train.items()
            },
            # One number, or (first row, number) of each phase.
            "sequence_length": self.row_plan.lengths[0][1]
            if len(self.row_plan.lengths) == 1
            else [list(each) for each in self.row_plan.lengths],
            "seed": self.seed,
            "windows": self.packing.windows,
        }

    def _sources(self) -> dict[str, dict[str, Any]]:
        """What the whole run takes of each source, what share was asked for, and where it lies."""
        start = self.chapters[0].shares(0)
        end = self.chapters[-1].shares(self.plan.rows)
        planned = {}
        for name, account in self.accounts(self.plan.steps).items():
            validation = self.stores.validation.get(name)
            planned[name] = {
                **account,
                "share": self.shares[name],
                "first_share": start.get(name, 0.0),
                "last_share": end.get(name, 0.0),
                "store": str(self.stores.train[name].path),
                "validation_store": None if validation is None else str(validation.path),
            }
        return planned

    def _notices(self) -> list[str]:
        """What is to be said of sources that are read more than a few times.

        Raises:
          UsageError: one would be read more often than its cap, and that is refused.
        """
        notices = [] if self.shortened is None else [self.shortened]
        for row, name in self.chapters[-1].reached:
            if row < self.plan.rows:
                notices.append(
                    f"source {name!r} is at its cap of {self.caps[name]:g} epochs after "
                    f"{count(self.plan.tokens_of_rows(row))} tokens: the others take its share"
                )
        caps = self.caps if self.at_cap in ("refuse", "stop") else None
        notices += self.reader.check_horizon(self.plan.rows, caps)
        if self.at_cap == "repeat":
            notices += [
                f"source {name!r} will be read {account['epochs']:.1f} times, past its cap of "
                f"{self.caps[name]:g}"
                for name, account in self.accounts(self.plan.steps).items()
                if account["epochs"] > self.caps[name]
            ]
        return notices

    def derived(self) -> dict[str, Any]:
        """What plan.json holds: all that follows from the configuration, before step 0."""
        audit = self.auditor.at(self.plan.tokens)
        return {
            "identity": self.identity(),
            "architecture": dataclasses.asdict(self.architecture),
            "parameters": {
                "total": self.auditor.parameters,
                "non_embedding": non_embedding_parameters(self.architecture),
                **parameters(self.architecture),
            },
            # The mean over the run.
            "flops_per_token": self.auditor.flops_per_token(0, self.plan.tokens),
            "horizon": {
                "tokens": self.plan.tokens,
                "steps": self.plan.steps,
                # The length that evaluations have, too.
                "sequence_length": self.plan.lengths[-1][1],
                "phases": self._phases(),
                "tokens_per_param": audit["tokens_per_param"],
            },
            "optimizer": dataclasses.asdict(self.optimizer),
            "mesh": self.topology.mesh_shape,
            "chip": self.topology.chip,
            "remat": self.topology.remat,
            "kernel": self.topology.kernel,
            "loss_chunk_tokens": self.topology.loss_chunk_tokens,
            "loss_vocab_chunks": self.topology.loss_vocab_chunks,
            "compute_dtype": self.compute_dtype,
            "packing": dataclasses.asdict(self.packing),
            "blend": [chapter.to_json() for chapter in self.chapters],
            "sources": self._sources(),
            "notices": self._notices(),
            "tokenizer": {
                **dataclasses.asdict(self.stores.tokenizer.absolute()),
                "hash": self.stores.tokenizer.hash,
                "vocab_size": self.stores.tokenizer.vocab_size,
            },
            "early_stopping": None
            if self.early_stopping is None
            else {**dataclasses.asdict(self.early_stopping), "weights": self.watched},
            "own_law": None if self.own_law is None else dataclasses.asdict(self.own_law),
            "laws": {
                law: {
                    key: audit[f"chinchilla/{law}/{key}"]
                    for key in (
                        "optimal_params",
                        "optimal_tokens",
                        "expected_loss",
                        "compute_efficiency",
                    )
                }
                for law in self.auditor.laws
            },
        }


def read_plan(model_dir: str) -> dict[str, Any]:
    """The plan.json of a run.

    Raises:
      UsageError: the folder holds no run.
      Fault: the file is broken.
    """
    path = pathlib.Path(model_dir) / PLAN_FILE
    if not path.is_file():
        raise UsageError(f"MODEL_DIR = {model_dir}: no run there ({PLAN_FILE} is missing)")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise Fault(f"{path} is not JSON: {error}") from None


def _newest_and_blend(model_dir: str) -> tuple[int | None, list[dict[str, Any]]]:
    """The step of a run's newest checkpoint, and the chapters of its blend up to there."""
    newest = max(checkpoint_steps(model_dir), default=None)
    # Of another version, a plan has no blend, and its identity is refused.
    return newest, [] if newest is None else read_plan(model_dir).get("blend", [])


def refuse_another_run(
    old: dict[str, Any], new: dict[str, Any], model_dir: str, *, allow_blend_change: bool
) -> None:
    """Compare the identities of the run that is there and of the one asked for.

    Args:
      allow_blend_change: whether another blend, also of more sources, is no other run.

    Raises:
      UsageError: going on would corrupt it; names every difference.
    """
    with_blend = {**old, "blend": new["blend"], "stores": {**new["stores"], **old["stores"]}}
    differences = [
        f"{name}: {before!r} there, {after!r} asked for"
        for name, before, after in _flat_differences(with_blend if allow_blend_change else old, new)
    ]
    if not differences:
        return
    advice = "name another MODEL_DIR, or start from its weights with INITIAL_CHECKPOINT_PATH"
    if not allow_blend_change and with_blend == new:
        advice += (
            ";\ntrain.allow_blend_change = True goes on from the newest checkpoint with the new "
            "blend, and leaves the rows before it what they were"
        )
    raise UsageError(
        f"MODEL_DIR = {model_dir} holds another run, which this configuration would corrupt:"
        + "".join(f"\n  {difference}" for difference in differences)
        + f"\n{advice}"
    )


def within_caps(run: Run) -> Run:
    """The run, planned to end before a source is read more often than its cap.

    Only where `at_cap` is 'stop'; any other is left as it is.

    Raises:
      UsageError: that is before its first step.
    """
    if run.at_cap != "stop":
        return run
    rows = source_accounts.rows_within(run.reader, run.caps, run.plan.rows)
    if rows == run.plan.rows:
        return run
    plan = run.plan.within(rows)
    after = source_accounts.accounts(run.reader, run.stores.train, rows + 1)
    name = next(name for name, cap in run.caps.items() if after[name]["epochs"] > cap)
    reason = (
        f"source {name!r} is at its cap of {run.caps[name]:g} epochs at step {plan.steps:,} of "
        f"{run.plan.steps:,}: the run is planned to end there"
    )
    if not plan.phases:
        raise UsageError(f"AT_CAP = 'stop': {reason}")
    return dataclasses.replace(run, plan=plan, asked_plan=run.row_plan, shortened=reason)


def _flat_differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in _flat_differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if old == new else [(name, old, new)]
