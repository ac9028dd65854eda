"""The data of a run: sources, their blend, and the tokenizer."""

import dataclasses
import graphlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import gin

from t5x_style.data.blend.blend import Blend
from t5x_style.data.blend.phases import named_phases
from t5x_style.data.cleaning.contamination import Contamination
from t5x_style.data.cleaning.duplicates import Duplicates
from t5x_style.data.sources.filters import filters_from_json, filters_to_json
from t5x_style.data.sources.source import Source
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import LocalPath, local_path
from t5x_style.ranges import PositiveInt, check_ranges


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Corpus:
    """Sources, mixtures of them, and the tokenizer.

    Attributes:
      tokenizer: the vocabulary.
      mixture_or_task_name: the mixture or the single task to train on: a name in `mixtures`, of a
        source, or of a seqio Mixture or Task in `mixture_or_task_module`. Or a list of phases,
        (NAME, TOKENS) or (FROM, TO, TOKENS) for a linear ramp. The last phase has TOKENS None: it
        lasts to the end of the run.
      cache_dir: the folder of token stores.
      sources: those declared in gin. A source is a seqio Task of its name as well.
      mixtures: {mixture name: {name of a task or of another mixture: share of the TOKENS}}; shares
        sum to 1. A mixture within a mixture gives its own shares times its share. A task with a
        share of 0 is evaluated and not trained on.
      mixture_or_task_module: a Python module that registers seqio Tasks and Mixtures at import. The
        rates of a Mixture are read as shares of tokens.
      use_cached_tasks: read the Tasks of the module from the caches of `seqio_cache_tasks`.
      cached_task_dirs: folders of these caches, and of the counts of examples that rates may be
        functions of. They may be remote: seqio reads them.
      duplicates: drops documents that repeat an earlier one, @Duplicates(). Validation splits come
        before train splits, and sources in the order of `sources`. Tasks of the module follow, by
        name.
      contamination: drops training documents with text of validation splits or evaluation sets,
        @Contamination().
      seed: of the order of documents in the stores.
      workers: processes that tokenise; None for one a core.
    """

    tokenizer: Tokenizer
    mixture_or_task_name: str | Sequence[Sequence]
    cache_dir: LocalPath
    sources: Sequence[Source] = ()
    mixtures: Mapping[str, Mapping[str, float]] = dataclasses.field(default_factory=dict)
    mixture_or_task_module: str | None = None
    use_cached_tasks: bool = False
    cached_task_dirs: Sequence[LocalPath] = ()
    duplicates: Duplicates | None = None
    contamination: Contamination | None = None
    seed: int = 0
    workers: PositiveInt | None = None

    def __post_init__(self):
        local_path(self.cache_dir, "Corpus.cache_dir")
        check_ranges(self)
        names = [source.name for source in self.sources]
        twice = sorted({name for name in [*names, *self.mixtures] if names.count(name) > 1})
        twice += sorted(set(names) & set(self.mixtures))
        if twice:
            raise UsageError(f"Corpus: the name {twice[0]!r} is given twice")
        if isinstance(self.cached_task_dirs, str):
            raise UsageError(
                f"Corpus.cached_task_dirs = {self.cached_task_dirs!r} must be a list of folders"
            )
        if self.mixture_or_task_module is None:
            if self.use_cached_tasks or self.cached_task_dirs:
                raise UsageError(
                    "Corpus.use_cached_tasks and cached_task_dirs are for the seqio Tasks of a "
                    "module, and Corpus.mixture_or_task_module is not set"
                )
            known = [*self.mixtures, *names]
            for mixture, shares in self.mixtures.items():
                for task in shares:
                    if task not in known:
                        raise UsageError(
                            f"Corpus.mixtures[{mixture!r}] names {task!r}; the sources and "
                            f"mixtures are {', '.join(known)}{did_you_mean(task, known)}"
                        )
            for name in self.blend_names():
                if name not in known:
                    raise UsageError(
                        f"MIXTURE_OR_TASK_NAME = {name!r} is not one of "
                        f"{', '.join(known) or '(no mixture, no source)'}"
                        f"{did_you_mean(name, known)}"
                    )
        for mixture, shares in self.mixtures.items():
            try:
                Blend.constant(shares)
            except UsageError as error:
                raise UsageError(f"Corpus.mixtures[{mixture!r}]: {error}") from None
        self.mixtures_in_order()

    def mixtures_in_order(self) -> list[str]:
        """The mixtures, each after those that it names.

        Raises:
          UsageError: a mixture contains itself.
        """
        named = {
            mixture: [name for name in shares if name in self.mixtures]
            for mixture, shares in self.mixtures.items()
        }
        try:
            return list(graphlib.TopologicalSorter(named).static_order())
        except graphlib.CycleError as error:
            circle = " -> ".join(reversed(error.args[1]))
            raise UsageError(f"Corpus.mixtures: a mixture contains itself: {circle}") from None

    def source(self, name: str) -> Source | None:
        """The source of that name declared in gin; None for a task of the module."""
        return next((source for source in self.sources if source.name == name), None)

    def blend_names(self) -> list[str]:
        """The mixtures and tasks that the phases name, without repetition."""
        phases = named_phases(self.mixture_or_task_name)
        return list(dict.fromkeys(name for start, end, _ in phases for name in (start, end)))

    def declared_shares(self, name: str) -> dict[str, float] | None:
        """{task: share of tokens} of a blend if gin declares it; None if the module does.

        The shares of a mixture within a mixture are multiplied by its share. A task that is reached
        twice has the sum.
        """
        if name not in self.mixtures:
            return {name: 1.0} if self.source(name) else None
        found: dict[str, float] = {}
        for child, share in self.mixtures[name].items():
            if child not in self.mixtures:
                found[child] = found.get(child, 0.0) + share
                continue
            inner = self.declared_shares(child) or {}
            total = sum(inner.values())
            for task, part in inner.items():
                found[task] = found.get(task, 0.0) + share * part / total
        return found

    def to_json(self) -> str:
        """All of it as JSON, for the process that builds."""
        fields = dataclasses.asdict(self)
        fields["sources"] = [_source_to_json(source) for source in self.sources]
        if self.contamination is not None:
            sets = self.contamination.evaluation_sets
            fields["contamination"]["evaluation_sets"] = list(map(_source_to_json, sets))
        return json.dumps(fields, default=dict)

    @classmethod
    def from_json(cls, text: str) -> "Corpus":
        """The inverse of `to_json`."""
        fields = json.loads(text)
        fields["cached_task_dirs"] = tuple(fields["cached_task_dirs"])
        fields["tokenizer"] = Tokenizer(**fields["tokenizer"])
        fields["sources"] = tuple(map(_source_from_json, fields["sources"]))
        if fields["duplicates"] is not None:
            fields["duplicates"] = Duplicates(**fields["duplicates"])
        if fields["contamination"] is not None:
            sets = tuple(map(_source_from_json, fields["contamination"]["evaluation_sets"]))
            fields["contamination"] = Contamination(
                **fields["contamination"] | {"evaluation_sets": sets}
            )
        return cls(**fields)


def _source_to_json(source: Source) -> dict[str, Any]:
    return dataclasses.asdict(source) | {"filters": filters_to_json(source.filters)}


def _source_from_json(plain: Mapping[str, Any]) -> Source:
    filters = filters_from_json(plain["filters"])
    return Source(**{**plain, "dates": tuple(plain["dates"]), "filters": filters})
