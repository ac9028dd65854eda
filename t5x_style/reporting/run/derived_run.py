"""What follows from a run's configuration before step 0: the content of plan.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5x_style.accounting import Architecture, LawAudit, ParametricLaw, SourceAccount, Topology
from t5x_style.reporting.run.held_out_text import HeldOutStore, HeldOutText

# The fields of a topology that plan.json has.
_WHERE = (
    "chip",
    "remat",
    "kernel",
    "microbatches",
    "loss_chunk_tokens",
    "loss_vocab_chunks",
)
_LAW_TARGETS = ("optimal_params", "optimal_tokens", "expected_loss", "compute_efficiency")


@dataclasses.dataclass(frozen=True)
class PhaseRecord:
    """Steps of one shape.

    Attributes:
      sequences, sequence_length: of each of `steps` steps.
      tokens: of the phase.
      flops_per_token: by the keys of a training line.
    """

    sequences: int
    sequence_length: int
    steps: int
    tokens: int
    flops_per_token: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Horizon:
    """The length of a run.

    Attributes:
      tokens, steps: of the whole run.
      sequence_length: of its last phase, and of its evaluations.
      phases: in order.
      tokens_per_param: D / N at the end.
    """

    tokens: int
    steps: int
    sequence_length: int
    phases: list[PhaseRecord]
    tokens_per_param: float


@dataclasses.dataclass(frozen=True)
class PlannedSource:
    """What a whole run reads of a source.

    Attributes:
      account: of all its steps.
      first_share, last_share: of the tokens, at the run's first and last row.
      store: absolute path of the train store's folder.
    """

    account: SourceAccount
    first_share: float
    last_share: float
    store: str


@dataclasses.dataclass(frozen=True)
class VocabularyRecord:
    """The vocabulary of a run: see `data.Tokenizer`.

    Attributes:
      path: of the run's own copy, in its folder; or 'bytes'.
    """

    path: str
    eos: str | None
    hash: str
    vocab_size: int


@dataclasses.dataclass(frozen=True)
class DerivedRun:
    """The content of plan.json.

    Attributes:
      identity: what may not change between two starts of the run.
      architecture: of the model.
      topology: where it runs, as far as plan.json has it.
      parameters: `total`, `non_embedding` and the terms of `accounting.parameters`.
      flops_per_token: the mean over the run, by the keys of a training line.
      optimizer, packing: their fields.
      compute_dtype: of activations and multiplied weights.
      blend: the versions of the blend, as `BlendVersion.to_json` writes them.
      sources: by name, those that are trained on.
      held_out: the validation stores of the run, those of the newest start last.
      notices: warnings, for people.
      vocabulary: under the key `tokenizer`.
      early_stopping: its fields and the weights of its sources; None without one.
      own_law: the user's own fit; None without one.
      laws: by name, the audit of the whole run.
      skipped_steps: (first step, count) of the steps that are passed over. A run of the same
        configuration that has them in `train.skip_steps` gives the same numbers.
      achieved: step, tokens and what was read of each source at the end; None before.
    """

    identity: dict[str, Any]
    architecture: Architecture
    topology: Topology
    parameters: dict[str, int]
    flops_per_token: dict[str, float]
    horizon: Horizon
    optimizer: dict[str, Any]
    packing: dict[str, Any]
    compute_dtype: str
    blend: list[dict[str, Any]]
    sources: dict[str, PlannedSource]
    held_out: list[HeldOutText]
    notices: list[str]
    vocabulary: VocabularyRecord
    early_stopping: dict[str, Any] | None
    own_law: ParametricLaw | None
    laws: dict[str, LawAudit]
    skipped_steps: tuple[tuple[int, int], ...] = ()
    achieved: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The file's content, in JSON types but for tuples."""
        written = {
            "identity": self.identity,
            "architecture": dataclasses.asdict(self.architecture),
            "parameters": self.parameters,
            "flops_per_token": self.flops_per_token,
            "horizon": dataclasses.asdict(self.horizon),
            "optimizer": self.optimizer,
            "mesh": self.topology.mesh_shape,
            **{name: getattr(self.topology, name) for name in _WHERE},
            "compute_dtype": self.compute_dtype,
            "packing": self.packing,
            "blend": self.blend,
            "sources": {name: _source_json(source) for name, source in self.sources.items()},
            "held_out": [version.to_json() for version in self.held_out],
            "notices": self.notices,
            "tokenizer": dataclasses.asdict(self.vocabulary),
            "early_stopping": self.early_stopping,
            "own_law": None if self.own_law is None else dataclasses.asdict(self.own_law),
            "laws": {
                name: {target: getattr(law, target) for target in _LAW_TARGETS}
                for name, law in self.laws.items()
            },
            "skipped_steps": [list(steps) for steps in self.skipped_steps],
        }
        return written if self.achieved is None else written | {"achieved": self.achieved}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "DerivedRun":
        """The inverse of `to_json`; fields that an older version did not write have a default.

        Raises:
          KeyError, TypeError: it is not the plan of a run.
        """
        horizon, own_law = dict(fields["horizon"]), fields.get("own_law")
        horizon["phases"] = [PhaseRecord(**phase) for phase in horizon["phases"]]
        where = {name: fields[name] for name in _WHERE if name in fields}
        return cls(
            identity=fields["identity"],
            architecture=Architecture(**fields["architecture"]),
            topology=Topology(**fields["mesh"], **where),
            parameters=fields["parameters"],
            flops_per_token=fields["flops_per_token"],
            horizon=Horizon(**horizon),
            optimizer=fields["optimizer"],
            packing=fields.get("packing", {}),
            compute_dtype=fields["compute_dtype"],
            blend=fields.get("blend", []),
            sources={name: _source(source) for name, source in fields["sources"].items()},
            held_out=_held_out(fields),
            notices=fields["notices"],
            vocabulary=VocabularyRecord(**{"eos": None, **fields["tokenizer"]}),
            early_stopping=fields.get("early_stopping"),
            own_law=None if own_law is None else _law(own_law),
            laws={name: LawAudit(**law) for name, law in fields["laws"].items()},
            skipped_steps=tuple((first, n) for first, n in fields.get("skipped_steps", ())),
            achieved=fields.get("achieved"),
        )


def _source_json(source: PlannedSource) -> dict[str, Any]:
    written = dataclasses.asdict(source)
    return written.pop("account") | written


def _source(fields: Mapping[str, Any]) -> PlannedSource:
    names = {field.name for field in dataclasses.fields(SourceAccount)}
    account = SourceAccount(**{name: value for name, value in fields.items() if name in names})
    rest = {name: fields[name] for name in ("first_share", "last_share", "store")}
    return PlannedSource(account, **rest)


def _held_out(fields: Mapping[str, Any]) -> list[HeldOutText]:
    """The validation stores; an older version named their folders with the sources."""
    if "held_out" in fields:
        return [HeldOutText.from_json(version) for version in fields["held_out"]]
    paths = {name: source.get("validation_store") for name, source in fields["sources"].items()}
    stores = {name: HeldOutStore(path) for name, path in paths.items() if path is not None}
    return [HeldOutText(-1, 0, stores)]


def _law(fields: Mapping[str, Any]) -> ParametricLaw:
    values: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in fields.items()
    }
    return ParametricLaw(**values)
