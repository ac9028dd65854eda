"""The token stores that a corpus needs: opened, once those that are missing have been built."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.data.blend.phases import SharePhase, named_phases
from t5x_style.data.formats.files import content_digests
from t5x_style.data.stores.builder_client import Builder
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.held_out import check_documents, check_files, planned_files
from t5x_style.data.stores.planned import PlannedStore, module_digest, plan_store, unbuilt
from t5x_style.data.stores.token_store import TokenStore
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.errors import UsageError
from t5x_style.files import read_cached, write_whole


@dataclasses.dataclass(frozen=True)
class Stores:
    """The open stores of a blend.

    Attributes:
      phases: shares of tokens by task, from the start of the run to its end.
      train: {task: train store}, of every task that has a share.
      validation: {task: validation store}, of the tasks that have that split, those with a share
        of 0 included.
      tokenizer: the one that all of them were made with.
      notices: what a user should know of their files.
    """

    phases: tuple[SharePhase, ...]
    train: dict[str, TokenStore]
    validation: dict[str, TokenStore]
    tokenizer: Tokenizer
    notices: tuple[str, ...] = ()


def ensure_stores(
    corpus: Corpus,
    *,
    build: bool = True,
    evaluate_only: bool = False,
    beam_options: Sequence[str] | None = None,
) -> Stores:
    """Opens the stores of a corpus's blend, and builds those that are missing.

    The fingerprint of a store is over all that its content depends on: the content of the source's
    files, how they are read, the tokenizer, the seed and the format. For a module's Task it is over
    the module's own text. A store of another fingerprint has another folder and is left alone.

    Args:
      corpus: sources, blend and tokenizer.
      build: if False, raise if anything is missing, and write nothing.
      evaluate_only: open the validation stores alone. No source needs train files.
      beam_options: options of an Apache Beam pipeline that makes the parts. None for a pool of
        processes on this machine.

    Raises:
      UsageError: files, names or splits that do not exist; with `build=False`, a missing store;
        options for Apache Beam where that is not installed; text that is trained on and held out.
      Fault: a record that cannot be read, a source without documents, a builder that died.
    """
    if beam_options is not None and importlib.util.find_spec("apache_beam") is None:
        raise UsageError(
            f"cache.beam_options = {list(beam_options)}: Apache Beam is not installed here; "
            f"install the extra 't5x_style[beam]' (of a checkout: tools/setup beam)"
        )
    with Builder(corpus) as builder:
        phases, plans = planned_stores(corpus, builder, remember=build)
        if evaluate_only:
            plans = [plan for plan in plans if plan.split == "validation"]
            notices = []
        else:
            _refuse_without_train(corpus, phases)
            notices = [
                *check_files(corpus, planned_files(plans)),
                *_evaluation_notices(corpus, plans),
            ]
        missing = unbuilt(plans)
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
    check_documents(corpus, opened["train"], opened["validation"], remember=build)
    return Stores(phases, opened["train"], opened["validation"], corpus.tokenizer, tuple(notices))


def missing_stores(corpus: Corpus) -> list[PlannedStore]:
    """The stores of the corpus's blend that are not built. Writes nothing."""
    with Builder(corpus) as builder:
        phases, plans = planned_stores(corpus, builder, remember=False)
    _refuse_without_train(corpus, phases)
    check_files(corpus, planned_files(plans))
    return unbuilt(plans)


def planned_stores(
    corpus: Corpus, builder: Builder, *, remember: bool
) -> tuple[tuple[SharePhase, ...], list[PlannedStore]]:
    """Shares by phase, and the stores that they need, train before validation.

    Args:
      corpus: sources, blend and tokenizer.
      builder: asked for the declarations of a module.
      remember: keep digests of files and declarations of a module in the cache directory.
    """
    declared = {name: corpus.declared_shares(name) for name in corpus.blend_names()}
    splits: dict[str, list[str]] = {}
    if any(
        shares is None or any(corpus.source(task) is None for task in shares)
        for shares in declared.values()
    ):
        declared, splits = _declared_by_module(corpus, builder, remember=remember)
    phases = tuple(
        SharePhase(tokens, _positive(declared[start]), _positive(declared[end]))
        for start, end, tokens in named_phases(corpus.mixture_or_task_name)
    )
    trained_on = {name for phase in phases for name in {**phase.start, **phase.end}}
    # A task with a share of 0 is evaluated alone.
    tasks = list(dict.fromkeys(task for shares in declared.values() for task in shares or ()))
    splits |= {source.name: list(source.split_names()) for source in corpus.sources}
    plans: dict[tuple[str, str], PlannedStore] = {}
    # Validation comes first: train documents that repeat a validation document are dropped. The
    # order of the blend decides nothing: a run goes on with another blend, or one written sorted.
    named = [source.name for source in corpus.sources]
    in_order = [*filter(tasks.__contains__, named), *sorted(set(tasks).difference(named))]
    for split in ("validation", "train"):
        for task in in_order:
            if split == "train" and task not in trained_on:
                continue
            if split in splits[task]:
                before = list(plans.values())
                plans[task, split] = plan_store(corpus, task, split, before, remember=remember)
    held_out = any(split == "validation" for _, split in plans)
    if corpus.contamination and not (corpus.contamination.evaluation_sets or held_out):
        raise UsageError(
            "Corpus.contamination has nothing to look for: no task of the blend has a validation "
            "split, and Contamination.evaluation_sets is empty"
        )
    both = [(task, split) for task in tasks for split in ("train", "validation")]
    return phases, [plans[key] for key in both if key in plans]


def _refuse_without_train(corpus: Corpus, phases: Sequence[SharePhase]) -> None:
    """Refuses a source that has a share and no train files."""
    for task in sorted({name for phase in phases for name in {**phase.start, **phase.end}}):
        source = corpus.source(task)
        if source is not None and "train" not in source.splits:
            raise UsageError(
                f"Source.splits of {task!r} has no 'train', and the source has a share of the "
                f"blend: name files for it, or give it a share of 0 in Corpus.mixtures"
            )


def _evaluation_notices(corpus: Corpus, plans: Sequence[PlannedStore]) -> list[str]:
    """Notices about sources without a validation split."""
    planned = {plan.task: plan.split for plan in plans}  # 'validation' where there is one
    blends = [corpus.declared_shares(name) or {} for name in corpus.blend_names()]
    unused = sorted({task for shares in blends for task in shares} - planned.keys())
    way_out = "name files in Source.splits, or set Source.validation_share or validation_from"
    return [
        f"{task!r} is trained on and never evaluated: it has no validation split ({way_out})"
        for task, last_split in planned.items()
        if last_split == "train"
    ] + [
        f"{task!r} has a share of 0 and no validation split: it is neither trained on nor "
        f"evaluated ({way_out})"
        for task in unused
    ]


def _positive(shares: Mapping[str, float] | None) -> dict[str, float]:
    return {task: share for task, share in (shares or {}).items() if share > 0}


def _declared_by_module(
    corpus: Corpus, builder: Builder, *, remember: bool
) -> tuple[dict[str, dict[str, float] | None], dict[str, list[str]]]:
    """Shares by blend, and splits by task. A version of the module is asked once."""
    file = declaration_file(corpus, remember=remember)
    answer = read_cached(file, _is_declaration)
    if answer is None:
        answer = builder.ask({"action": "resolve"})
        if remember:
            write_whole(file, json.dumps(answer))
    return answer["shares"], answer["splits"]


def declaration_file(corpus: Corpus, *, remember: bool) -> pathlib.Path:
    """The file with what a version of the corpus's module declares.

    Args:
      corpus: with `mixture_or_task_module`.
      remember: keep digests of files in the cache directory.
    """
    asked = module_digest(corpus, remember=remember) + corpus.to_json()
    # Rates may be functions of the counts that seqio keeps next to its caches.
    counts = [pathlib.Path(folder).rglob("stats.*.json") for folder in corpus.cached_task_dirs]
    files = sorted(itertools.chain(*counts))
    asked += "".join(content_digests(files, pathlib.Path(corpus.cache_dir), remember=remember))
    key = hashlib.sha256(asked.encode()).hexdigest()[:16]
    return pathlib.Path(corpus.cache_dir) / f"blend-{key}.json"


def _is_declaration(value: Any) -> bool:
    """Whether a value is the answer of a builder: shares by blend, and splits by task."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), dict) for name in ("shares", "splits")
    )
