"""Which token stores a corpus needs, which of them stand, and having the rest built."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.util
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.data.blend.phases import SharePhase, named_phases
from t5x_style.data.cleaning.contamination import Contamination
from t5x_style.data.sources import filters
from t5x_style.data.sources.files import content_digests, module_file
from t5x_style.data.sources.source import Source
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.token_store import (
    FORMAT_VERSION,
    META_FILE,
    TokenStore,
    read_meta,
)
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.errors import Fault, UsageError
from t5x_style.files import file_digest, write_whole


@dataclasses.dataclass(frozen=True)
class Stores:
    """The open stores of a blend.

    Attributes:
      phases: shares of tokens by task, from the start of the run to its end.
      train: {task: its train store}, of every task that has a share.
      validation: {task: its validation store}, of the tasks that have that split.
      tokenizer: that all of them were made with.
    """

    phases: tuple[SharePhase, ...]
    train: dict[str, TokenStore]
    validation: dict[str, TokenStore]
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class PlannedStore:
    """A store that a corpus needs.

    Attributes:
      task: its source or seqio Task.
      split: 'train' or 'validation'.
      fingerprint: SHA-256 over all that its content follows from.
      path: where it lies; its name follows from the fingerprint and from the fields by which
        documents are named: what is learnt does not follow from those, not even its order.
      content: digest of the files of its source, of which all digests are in the fingerprint.
      earlier: stores whose documents count as said already, where duplicates are dropped.
      against: validation stores whose text must not be in it, where contamination is dropped.
    """

    task: str
    split: str
    fingerprint: str
    path: pathlib.Path
    content: str | None = None
    earlier: tuple[pathlib.Path, ...] = ()
    against: tuple[pathlib.Path, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values."""
        plain = dataclasses.asdict(self) | {"path": str(self.path)}
        return plain | {name: list(map(str, plain[name])) for name in ("earlier", "against")}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> PlannedStore:
        """The inverse of `to_json`."""
        paths = {name: tuple(map(pathlib.Path, plain[name])) for name in ("earlier", "against")}
        return cls(**{**plain, "path": pathlib.Path(plain["path"]), **paths})

    @property
    def follows(self) -> tuple[pathlib.Path, ...]:
        """The stores that must stand before this one is built."""
        return tuple(dict.fromkeys((*self.earlier, *self.against)))

    def stands(self) -> bool:
        """Whether it was built, from stores and files of a module's Task that are what they were.

        A Task's files are not in its fingerprint, so a store that it follows may have been built
        again under the same name.
        """
        return self.lies_in(self.path)

    def lies_in(self, folder: pathlib.Path) -> bool:
        """Whether `folder` holds what `stands` asks for: it is built elsewhere than it lies."""
        if not (folder / META_FILE).is_file():
            return False
        meta = read_meta(folder)
        if meta.get("follows", {}) != meta_digests(self.follows):
            return False
        return all(
            file.is_file() and [file.stat().st_size, file.stat().st_mtime_ns] == stamp
            for name, *stamp in meta["files"]
            for file in [pathlib.Path(name)]
        )


def meta_digests(paths: Sequence[pathlib.Path]) -> dict[str, str]:
    """{folder: SHA-256 of its meta.json} of stores, as far as they are there."""
    files = [path / META_FILE for path in paths]
    return {file.parent.name: file_digest(file) for file in files if file.is_file()}


def not_standing(plans: Sequence[PlannedStore]) -> list[PlannedStore]:
    """Those that have to be built: they do not stand, or one that they follow has to be built."""
    gone: set[pathlib.Path] = set()
    for plan in sorted(plans, key=lambda plan: len(plan.follows)):
        if not gone.isdisjoint(plan.follows) or not plan.stands():
            gone.add(plan.path)
    return [plan for plan in plans if plan.path in gone]


class Builder:
    """`t5x_style.data.building.worker_process` in a process of its own.

    It is started at the first question.

    TensorFlow, if it is needed at all, is imported there and gone afterwards. The child's standard
    input stays open for as long as we live: when it closes, the child ends.
    """

    def __init__(self, corpus: Corpus):
        """For the sources, the module and the tokenizer of `corpus`."""
        self.corpus = corpus
        self.child: subprocess.Popen[str] | None = None

    def __enter__(self) -> Builder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.child is not None:
            if kind is not None:
                self.child.kill()
            self.child.__exit__(None, None, None)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Has it do something, and waits for the answer.

        Raises:
          UsageError, Fault: what it met, with its message.
        """
        child = self.child = self.child or self._started()
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(json.dumps({"corpus": self.corpus.to_json()} | request) + "\n")
            child.stdin.flush()
        line = child.stdout.readline()
        if not line:
            raise Fault(
                f"the process that builds token stores ended with status {child.wait()} and no "
                f"word (out of memory?); nothing half-built is taken for a store"
            )
        answer = json.loads(line)
        if "usage_error" in answer:
            raise UsageError(answer["usage_error"])
        if "fault" in answer:
            raise Fault(answer["fault"])
        return answer

    def _started(self) -> subprocess.Popen[str]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            # The accelerators belong to the process that trains.
            "JAX_PLATFORMS": "cpu",
            "CUDA_VISIBLE_DEVICES": "-1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "t5x_style.data.building.worker_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )


def ensure_stores(
    corpus: Corpus, *, build: bool = True, beam_options: Sequence[str] | None = None
) -> Stores:
    """Opens the stores of the corpus's blend, building what is not there.

    What a store's content follows from is in its fingerprint: the content of the source's files,
    how they are read, the tokenizer, the seed and the format; of a module's Task, the module's own
    text. A store of another fingerprint lies in another folder and is left alone.

    Args:
      corpus: sources, blend and tokenizer.
      build: False: raise if anything is missing, and write nothing.
      beam_options: of an Apache Beam pipeline that makes the parts; None: a pool of processes here.

    Raises:
      UsageError: files, names or splits that do not exist; with `build=False`, a missing store;
        options for Apache Beam where that is not installed.
      Fault: a record that cannot be read, a source without documents, a builder that died.
    """
    if beam_options is not None and importlib.util.find_spec("apache_beam") is None:
        raise UsageError(
            f"cache.beam_options = {list(beam_options)}: Apache Beam is not installed here; "
            f"install the extra 't5x_style[beam]' (of a checkout: tools/setup beam)"
        )
    with Builder(corpus) as builder:
        phases, plans = planned_stores(corpus, builder, remember=build)
        missing = not_standing(plans)
        if missing and not build:
            raise UsageError(
                f"token stores missing in {corpus.cache_dir!r}: "
                + ", ".join(f"{plan.task} {plan.split}" for plan in missing)
                + "; build them with `t5x-style cache --gin_file=RUN.gin`"
            )
        if missing:
            builder.ask(
                {
                    "action": "build",
                    "plans": [plan.to_json() for plan in missing],
                    "beam_options": None if beam_options is None else list(beam_options),
                }
            )
    opened: dict[str, dict[str, TokenStore]] = {"train": {}, "validation": {}}
    for plan in plans:
        store = TokenStore.open(plan.path, tokenizer_hash=corpus.tokenizer.hash)
        opened[plan.split][plan.task] = store
    return Stores(phases, opened["train"], opened["validation"], corpus.tokenizer)


def missing_stores(corpus: Corpus) -> list[PlannedStore]:
    """The stores of the corpus's blend that would have to be built; writes nothing."""
    with Builder(corpus) as builder:
        _, plans = planned_stores(corpus, builder, remember=False)
    return not_standing(plans)


def planned_stores(
    corpus: Corpus, builder: Builder, *, remember: bool
) -> tuple[tuple[SharePhase, ...], list[PlannedStore]]:
    """Shares by phase, and the stores that they need, train before validation.

    Args:
      corpus: sources, blend and tokenizer.
      builder: asked what a module declares.
      remember: keep digests of files, and what a module declares, in the cache directory.
    """
    declared = {name: corpus.declared_shares(name) for name in corpus.blend_names()}
    splits: Mapping[str, list[str]] = {}
    if any(
        shares is None or any(corpus.source(task) is None for task in shares)
        for shares in declared.values()
    ):
        declared, splits = _declared_by_module(corpus, builder, remember=remember)
    phases = tuple(
        SharePhase(tokens, _positive(declared[start]), _positive(declared[end]))
        for start, end, tokens in named_phases(corpus.mixture_or_task_name)
    )
    tasks = list(dict.fromkeys(name for phase in phases for name in {**phase.start, **phase.end}))
    plans: dict[tuple[str, str], PlannedStore] = {}
    # What is held out comes first: what repeats it is dropped from what is learnt.
    for split in ("validation", "train"):
        for task in tasks:
            source = corpus.source(task)
            if split in (source.split_names() if source else splits[task]):
                before = list(plans.values())
                plans[task, split] = _plan(corpus, task, split, before, remember=remember)
    held_out = any(split == "validation" for _, split in plans)
    if corpus.contamination and not (corpus.contamination.evaluation_sets or held_out):
        raise UsageError(
            "Corpus.contamination has nothing to look for: no task of the blend has a validation "
            "split, and Contamination.evaluation_sets is empty"
        )
    both = [(task, split) for task in tasks for split in ("train", "validation")]
    return phases, [plans[each] for each in both if each in plans]


def _positive(shares: Mapping[str, float] | None) -> dict[str, float]:
    return {task: share for task, share in (shares or {}).items() if share > 0}


def _plan(
    corpus: Corpus, task: str, split: str, before: Sequence[PlannedStore], *, remember: bool
) -> PlannedStore:
    cache_dir = pathlib.Path(corpus.cache_dir)
    source = corpus.source(task)
    made_from: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenizer": corpus.tokenizer.hash,
        "seed": corpus.seed,
        "split": split,
    }
    if source is not None:
        made_from |= _source_made_from(source, split, cache_dir, remember=remember)
    else:
        made_from |= {"task": task, "module": _module_digest(corpus, remember=remember)}
        if corpus.use_cached_tasks:
            made_from["cached_in"] = list(corpus.cached_task_dirs)
    earlier: list[PlannedStore] = []
    if corpus.duplicates is not None:
        across = corpus.duplicates.across_sources
        earlier = [plan for plan in before if across or plan.task == task]
        made_from["duplicates"] = corpus.duplicates.made_from()
        made_from["earlier"] = [plan.fingerprint for plan in earlier]
    against: list[PlannedStore] = []
    if corpus.contamination is not None and split == "train":
        if corpus.contamination.against_validation:
            against = [plan for plan in before if plan.split == "validation"]
        made_from["contamination"] = contamination_made_from(
            corpus.contamination, cache_dir, remember=remember
        )
        made_from["against"] = [plan.fingerprint for plan in against]
    fingerprint = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^\w.-]", "_", task)
    return PlannedStore(
        task,
        split,
        fingerprint,
        cache_dir / f"{name}-{split}-{_digits(fingerprint, corpus, source, split)}",
        None if source is None else _joined(made_from["files"]),
        tuple(plan.path for plan in earlier),
        tuple(plan.path for plan in against),
    )


def _digits(fingerprint: str, corpus: Corpus, source: Source | None, split: str) -> str:
    """What tells a store from others of its task: of the fingerprint, if no document has a name."""
    named = [source and source.id_field]
    if corpus.contamination is not None and split == "train":
        named += [each.id_field for each in corpus.contamination.evaluation_sets]
    return (_joined([fingerprint, json.dumps(named)]) if any(named) else fingerprint)[:16]


def _joined(digests: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def source_content(source: Source, split: str, cache_dir: pathlib.Path) -> str:
    """`PlannedStore.content`, as the files are now; those that nobody touched are not read."""
    return _joined(content_digests(source.files(split), cache_dir, remember=True))


def _source_made_from(
    source: Source, split: str, cache_dir: pathlib.Path, *, remember: bool
) -> dict[str, Any]:
    made_from: dict[str, Any] = {
        "format": source.format,
        "text_field": source.text_field,
        "on_bad_record": source.on_bad_record,
        "where": source.where(split) if source.format == "tfds" else None,
        "files": content_digests(source.files(split), cache_dir, remember=remember),
    }
    made_from |= {
        name: getattr(source, name)
        for name in ("date_field", "license_field", "validation_from")
        if getattr(source, name) is not None
    }
    if any(source.dates):
        made_from["dates"] = list(source.dates)
    if source.filters:
        made_from["filters"] = filters.made_from(source.filters, cache_dir, remember=remember)
    return made_from


def contamination_made_from(
    contamination: Contamination, cache_dir: pathlib.Path, *, remember: bool
) -> dict[str, Any]:
    """What contamination by evaluation sets follows from, as plain values.

    Args:
      contamination: how it is looked for.
      cache_dir, remember: as in `content_digests`.
    """
    return {
        "ngram": contamination.ngram,
        "max_share": contamination.max_share,
        "evaluation_sets": [
            [each.name, split, _source_made_from(each, split, cache_dir, remember=remember)]
            for each in contamination.evaluation_sets
            for split in each.split_names()
        ],
    }


def _module_digest(corpus: Corpus, *, remember: bool) -> str:
    file = module_file(str(corpus.mixture_or_task_module), "Corpus.mixture_or_task_module")
    return content_digests([file], pathlib.Path(corpus.cache_dir), remember=remember)[0]


def _declared_by_module(
    corpus: Corpus, builder: Builder, *, remember: bool
) -> tuple[dict[str, dict[str, float] | None], dict[str, list[str]]]:
    """Shares by blend, and splits by task, asked of the module once for each version of it."""
    asked = _module_digest(corpus, remember=remember) + corpus.to_json()
    # Rates may be functions of the counts that seqio kept beside its caches.
    counts = [pathlib.Path(folder).rglob("stats.*.json") for folder in corpus.cached_task_dirs]
    files = sorted(itertools.chain(*counts))
    asked += "".join(content_digests(files, pathlib.Path(corpus.cache_dir), remember=remember))
    key = hashlib.sha256(asked.encode()).hexdigest()[:16]
    file = pathlib.Path(corpus.cache_dir) / f"blend-{key}.json"
    if file.is_file():
        answer = json.loads(file.read_text())
    else:
        answer = builder.ask({"action": "resolve"})
        if remember:
            write_whole(file, json.dumps(answer))
    return answer["shares"], answer["splits"]
