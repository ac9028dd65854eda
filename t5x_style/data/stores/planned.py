"""A store that a corpus needs: its fingerprint over all that it is made from, and where it is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.data.cleaning.contamination import Contamination
from t5x_style.data.formats.files import content_digests, module_file
from t5x_style.data.sources.normal_form import COMPARISON_VERSION
from t5x_style.data.sources.source import Source
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.token_store import (
    FORMAT_VERSION,
    META_FILE,
    TOKENS_VERSION,
    read_meta,
)
from t5x_style.files import absolute, file_digest


@dataclasses.dataclass(frozen=True)
class PlannedStore:
    """A store that a corpus needs.

    Attributes:
      task: its source or seqio Task.
      split: 'train' or 'validation'.
      fingerprint: SHA-256 over all that its content depends on.
      path: its folder, named after the fingerprint, the format of a store's files, and the fields
        that name documents. The tokens depend on neither of the last two, nor does their order.
      content: digest over the files of its source. Their single digests are in the fingerprint.
      earlier: stores whose documents come before these, where duplicates are dropped.
      against: validation stores whose text must not be in it, where contamination is dropped.
      tokenised: the folder of its parts as they are before anything is dropped. It does not depend
        on the cleaning, on other sources or on the blend. None where nothing is dropped, and for a
        module's Task.
      files: (path, SHA-256) of each file that the split reads whole, for `held_out.check_files`.
    """

    task: str
    split: str
    fingerprint: str
    path: pathlib.Path
    content: str | None = None
    earlier: tuple[pathlib.Path, ...] = ()
    against: tuple[pathlib.Path, ...] = ()
    tokenised: pathlib.Path | None = None
    files: tuple[tuple[str, str], ...] = dataclasses.field(default=(), repr=False, compare=False)

    def to_json(self) -> dict[str, Any]:
        """All that a builder needs, as plain values."""
        tokenised = self.tokenised and str(self.tokenised)
        plain = dataclasses.asdict(self) | {"path": str(self.path), "tokenised": tokenised}
        del plain["files"]
        return plain | {name: list(map(str, plain[name])) for name in ("earlier", "against")}

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> PlannedStore:
        """The inverse of `to_json`, without the files."""
        paths = {name: tuple(map(pathlib.Path, plain[name])) for name in ("earlier", "against")}
        tokenised = plain["tokenised"] and pathlib.Path(plain["tokenised"])
        plain = {**plain, "path": pathlib.Path(plain["path"]), "tokenised": tokenised}
        return cls(**plain | paths)

    @property
    def depends_on(self) -> tuple[pathlib.Path, ...]:
        """The stores that must be built before this one."""
        return tuple(dict.fromkeys((*self.earlier, *self.against)))

    def is_built(self) -> bool:
        """Whether it is complete, and the inputs that are not in its fingerprint are unchanged.

        The files of a module's Task are not in its fingerprint. So a store that it depends on may
        have been rebuilt under the same name.
        """
        return self.is_complete_in(self.path)

    def is_complete_in(self, folder: pathlib.Path) -> bool:
        """`is_built` for a store in `folder`: it is assembled in another one than `path`."""
        if not (folder / META_FILE).is_file():
            return False
        meta = read_meta(folder)
        if meta.get("follows", {}) != meta_digests(self.depends_on):
            return False
        return all(
            file.is_file() and [file.stat().st_size, file.stat().st_mtime_ns] == stamp
            for name, *stamp in meta["files"]
            for file in [pathlib.Path(name)]
        )


def meta_digests(paths: Sequence[pathlib.Path]) -> dict[str, str]:
    """{folder: SHA-256 of its meta.json} of the stores that exist."""
    files = [path / META_FILE for path in paths]
    return {file.parent.name: file_digest(file) for file in files if file.is_file()}


def unbuilt(plans: Sequence[PlannedStore]) -> list[PlannedStore]:
    """The stores to build: those that are not built, or depend on one that must be."""
    missing: set[pathlib.Path] = set()
    for plan in sorted(plans, key=lambda plan: len(plan.depends_on)):
        if not missing.isdisjoint(plan.depends_on) or not plan.is_built():
            missing.add(plan.path)
    return [plan for plan in plans if plan.path in missing]


def plan_store(
    corpus: Corpus, task: str, split: str, before: Sequence[PlannedStore], *, remember: bool
) -> PlannedStore:
    """The store of one split of a task.

    Args:
      corpus: sources, blend and tokenizer.
      task: its source or seqio Task.
      split: 'train' or 'validation'.
      before: the stores whose documents come before these.
      remember: keep digests of files in the cache directory.
    """
    cache_dir = pathlib.Path(corpus.cache_dir)
    source = corpus.source(task)
    made_from: dict[str, Any] = {
        "format_version": TOKENS_VERSION,
        "tokenizer": corpus.tokenizer.hash,
        "seed": corpus.seed,
        "split": split,
    }
    files: tuple[tuple[str, str], ...] = ()
    if source is not None:
        made_from |= source.made_from(split, cache_dir, remember=remember)
        if not source.reader.where_selects:
            paths = map(str, source.files(split))
            files = tuple(zip(paths, made_from["files"], strict=True))
    else:
        made_from |= {"task": task, "module": module_digest(corpus, remember=remember)}
        if corpus.use_cached_tasks:
            # As config.gin has them: the folder of a start changes no store.
            made_from["cached_in"] = [absolute(folder, {}) for folder in corpus.cached_task_dirs]
    name = re.sub(r"[^\w.-]", "_", task)
    tokenised = None
    if source and (corpus.duplicates or (corpus.contamination and split == "train")):
        uncleaned = [_digest(made_from), str(source.id_field)]
        tokenised = cache_dir / f"parts-{name}-{split}-{_digest_of(uncleaned)[:16]}"
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
    fingerprint = _digest(made_from)
    return PlannedStore(
        task,
        split,
        fingerprint,
        cache_dir / f"{name}-{split}-{_digits(fingerprint, corpus, source, split)}",
        None if source is None else _digest_of(made_from["files"]),
        tuple(plan.path for plan in earlier),
        tuple(plan.path for plan in against),
        tokenised,
        files,
    )


def _digits(fingerprint: str, corpus: Corpus, source: Source | None, split: str) -> str:
    """The end of a store's name: of a digest over its fingerprint, the format of its files, and the
    fields that name documents."""
    named = [source and source.id_field]
    if corpus.contamination is not None and split == "train":
        named += [evaluation.id_field for evaluation in corpus.contamination.evaluation_sets]
    versions = f"{FORMAT_VERSION} {COMPARISON_VERSION}"
    return _digest_of([fingerprint, versions, json.dumps(named)])[:16]


def _digest(made_from: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def _digest_of(parts: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def source_content(source: Source, split: str, cache_dir: pathlib.Path) -> str:
    """`PlannedStore.content` of the files as they are now. Untouched files are not read again."""
    return _digest_of(content_digests(source.files(split), cache_dir, remember=True))


def contamination_made_from(
    contamination: Contamination, cache_dir: pathlib.Path, *, remember: bool
) -> dict[str, Any]:
    """All that contamination by evaluation sets depends on, as plain values.

    Args:
      contamination: how it is looked for.
      cache_dir, remember: as in `content_digests`.
    """
    return {
        "comparison": COMPARISON_VERSION,
        "ngram": contamination.ngram,
        "max_share": contamination.max_share,
        "evaluation_sets": [
            [source.name, split, source.made_from(split, cache_dir, remember=remember)]
            for source in contamination.evaluation_sets
            for split in source.split_names()
        ],
    }


def index_folder(
    against: Sequence[pathlib.Path], corpus: Corpus, *, remember: bool
) -> pathlib.Path:
    """The folder of the index over validation stores and the evaluation sets of the corpus.

    Args:
      against: the validation stores.
      corpus: with `contamination`.
      remember: keep digests of files in the cache directory.
    """
    contamination = corpus.contamination
    assert contamination is not None
    cache_dir = pathlib.Path(corpus.cache_dir)
    made_from = [
        contamination_made_from(contamination, cache_dir, remember=remember),
        [source.id_field for source in contamination.evaluation_sets],
        meta_digests(against),
    ]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    return cache_dir / f"ngrams-{key}"


def module_digest(corpus: Corpus, *, remember: bool) -> str:
    """SHA-256 of the file of `Corpus.mixture_or_task_module`."""
    file = module_file(str(corpus.mixture_or_task_module), "Corpus.mixture_or_task_module")
    return content_digests([file], pathlib.Path(corpus.cache_dir), remember=remember)[0]
