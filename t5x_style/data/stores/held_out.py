"""Held-out text is not trained on: files are compared before a build, documents after it."""

from __future__ import annotations

import collections
import datetime
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5x_style.data.formats.files import content_digests
from t5x_style.data.sources.dates import first_day
from t5x_style.data.sources.source import Source
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.planned import PlannedStore
from t5x_style.data.stores.token_store import (
    DIGESTS_FILE,
    DOCUMENTS_FILE,
    META_FILE,
    TokenStore,
    mapped_array,
)
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.errors import UsageError
from t5x_style.files import file_digest, read_cached, write_whole

# {"train store validation store": the digests of their meta.json} of stores without a common text.
KNOWN_FILE = "held_out.json"
# Digests that are looked up at a time, and names that a message has.
BLOCK = 1 << 20
SHOWN = 3
SHOWN_CHARACTERS = 50
EMPTY = hashlib.sha256().hexdigest()
COMPRESSED = (".gz", ".zst")


class SplitFiles(NamedTuple):
    """The files of one split, (path, SHA-256) each."""

    task: str
    split: str
    files: Sequence[tuple[str, str]]


def planned_files(plans: Sequence[PlannedStore]) -> list[SplitFiles]:
    """The files of stores."""
    return [SplitFiles(plan.task, plan.split, plan.files) for plan in plans]


def declared_files(corpus: Corpus, shares: Mapping[str, float]) -> list[SplitFiles]:
    """The files of the sources of a blend, for what comes before stores can be planned.

    Nothing is written, and files of a size of their own are not read: they are no copies.

    Args:
      corpus: with the sources.
      shares: of the blend.
    """
    paths = {
        (source.name, split): source.files(split)
        for source in corpus.sources
        for split in (source.split_names() if source.name in shares else ())
        if not source.reader.where_selects and (split != "train" or shares[source.name])
    }
    sizes = collections.Counter(path.stat().st_size for files in paths.values() for path in files)
    found = []
    for (task, split), files in paths.items():
        alike = [path for path in files if sizes[path.stat().st_size] > 1]
        digests = content_digests(alike, pathlib.Path(corpus.cache_dir), remember=False)
        known = dict(zip(alike, digests, strict=True))
        names = [
            (str(path), known.get(path, f"the only one of its size: {path}")) for path in files
        ]
        found.append(SplitFiles(task, split, names))
    return found


def check_files(corpus: Corpus, plans: Sequence[SplitFiles]) -> list[str]:
    """Refuses a file that stands in a train split and in a validation split of the corpus.

    Files are compared by the digests of their content. Splits that share files by design, by other
    dates or another part of the documents, are not refused.

    Returns:
      notices about files that are read twice: by two names in one split, or by two sources.

    Raises:
      UsageError: names both splits and the files.
    """
    paths = {(plan.task, plan.split): _paths_by_digest(plan) for plan in plans}
    notices = []
    for plan in plans:
        source = corpus.source(plan.task)
        # A split that is cut out of the train files would repeat their notice.
        is_second_reading = source is not None and source.reads_train_files(plan.split)
        if not is_second_reading and (text := _read_twice(plan)):
            notices.append(text)
    refused = []
    in_order = sorted(plans, key=lambda plan: plan.split)  # train first
    for one, other in itertools.combinations(in_order, 2):
        first, second = (paths[plan.task, plan.split] for plan in (one, other))
        shared = [digest for digest in first if digest in second]
        if not (shared and _may_share_documents(corpus, one, other)):
            continue
        pairs = [(first[digest][0], second[digest][0]) for digest in shared]
        names = _listed([a if a == b else f"{a} (as {b})" for a, b in pairs])
        splits = f"{one.task!r} {one.split} and {other.task!r} {other.split}"
        if one.split == other.split:
            notices.append(f"{splits} both have the file {names}: its text is read twice")
        elif _copies_are_dropped(corpus, one.task == other.task):
            notices.append(f"{splits} both have the file {names}: training copies are dropped")
        else:
            refused.append(f"{splits} both have the file {names}")
    if refused:
        raise UsageError(
            "what is trained on is not held out:\n  "
            + "\n  ".join(refused)
            + "\nname other files in Source.splits; or hold documents of the train files out with "
            "Source.validation_share or validation_from; or drop the training copies with "
            "Corpus.duplicates = @Duplicates()"
        )
    return notices


def _paths_by_digest(plan: SplitFiles) -> dict[str, list[str]]:
    """{digest: files of a split with that content}. An empty file has no text to hold out."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for path, digest in plan.files:
        if digest != EMPTY:
            found[digest].append(path)
    return found


def _read_twice(plan: SplitFiles) -> str | None:
    """A notice about files of one split with one content, or compressed ones beside plain ones."""
    again = []
    for first, *others in _paths_by_digest(plan).values():
        again += [f"{path} (the content of {first})" for path in others]
    names = {path for path, _ in plan.files}
    for path, _ in plan.files:
        plain = path.removesuffix(pathlib.Path(path).suffix)
        if path.endswith(COMPRESSED) and plain in names:
            again.append(f"{path} (beside {plain})")
    if not again:
        return None
    return f"{plan.task!r} {plan.split} may read a text twice: {_listed(again)}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _may_share_documents(corpus: Corpus, one: SplitFiles, other: SplitFiles) -> bool:
    """Whether the two splits may have a document of one file in common."""
    chosen = [
        (source, plan.split)
        for plan in (one, other)
        if (source := corpus.source(plan.task)) is not None
    ]
    if not _overlap([_days(source, split) for source, split in chosen]):
        return False
    seeds = {source.validation_seed for source, _ in chosen if source.validation_share}
    return len(seeds) > 1 or _overlap([_hashes(source, split) for source, split in chosen])


def _overlap(ranges: Sequence[tuple[Any, Any]]) -> bool:
    """Whether ranges, (first, end) each, have something in common."""
    return max(first for first, _ in ranges) < min(end for _, end in ranges)


def _days(source: Source, split: str) -> tuple[datetime.date, datetime.date]:
    """The range of the dates of a split's documents."""
    after, before = source.date_window(split)
    return (
        datetime.date.min if after is None else first_day(after),
        datetime.date.max if before is None else first_day(before),
    )


def _hashes(source: Source, split: str) -> tuple[float, float]:
    """The range of hashes, from 0 to 1, by which `Source.validation_share` divides documents."""
    share = source.validation_share
    if share is None:
        return 0.0, 1.0
    return (0.0, share) if split == "validation" else (share, 1.0)


def _copies_are_dropped(corpus: Corpus, same_source: bool) -> bool:
    """Whether the corpus drops training documents that repeat those of a validation split."""
    if corpus.contamination is not None and corpus.contamination.against_validation:
        return True
    return corpus.duplicates is not None and (same_source or corpus.duplicates.across_sources)


def check_documents(
    corpus: Corpus,
    train: Mapping[str, TokenStore],
    validation: Mapping[str, TokenStore],
    *,
    remember: bool,
) -> None:
    """Refuses a document of a validation store that stands in a train store, too.

    Stores that were compared before, and have not changed since, are not compared again.

    Args:
      corpus: to which the stores belong.
      train, validation: {task: store}.
      remember: note in the cache directory which stores share no document.

    Raises:
      UsageError: counts and names the documents, and says what may be done.
    """
    file = pathlib.Path(corpus.cache_dir) / KNOWN_FILE
    known = _known(file)
    digests = {
        store.path: file_digest(store.path / META_FILE)
        for store in (*train.values(), *validation.values())
    }
    found, apart = [], {}
    for held, trained in itertools.product(validation.values(), train.values()):
        pair = f"{trained.path.name} {held.path.name}"
        state = [digests[trained.path], digests[held.path]]
        if known.get(pair) == state:
            continue
        shared = shared_documents(trained.path, held.path)
        if len(shared):
            where = f"{trained.meta['source']!r} train"
            found.append(_repeated(held, where, shared, corpus.tokenizer))
        else:
            apart[pair] = state
    if apart and remember:
        write_whole(file, json.dumps(known | apart, indent=1))
    if found:
        drop = "Corpus.duplicates = @Duplicates() drops the copies from the train split"
        if corpus.duplicates is not None:
            drop = "Duplicates.across_sources = True drops the copies from the train split"
        raise UsageError(
            "what is trained on is not held out:\n  "
            + "\n  ".join(found)
            + f"\n{drop}; or hold out other documents: other files in Source.splits, or "
            "Source.validation_share or validation_from"
        )


def _known(file: pathlib.Path) -> dict[str, list[str]]:
    """What `check_documents` noted. The note is only a saving: a damaged one is made again."""
    return read_cached(file, lambda value: isinstance(value, dict)) or {}


def shared_documents(train: pathlib.Path, validation: pathlib.Path) -> np.ndarray:
    """The documents of a validation store whose text is in a train store, too.

    The train store is read a block at a time. Memory holds some 50 bytes for each document of the
    validation store.

    Args:
      train, validation: folders of stores.

    Returns:
      int64 [n], places in the validation store, ascending.
    """
    held = _halves(mapped_array(validation / DIGESTS_FILE))
    trained = _halves(mapped_array(train / DIGESTS_FILE))
    order = np.argsort(held[:, 0], kind="stable")
    firsts = held[order, 0]
    shared: set[int] = set()
    for begin in range(0, len(trained), BLOCK):
        block = trained[begin : begin + BLOCK]
        left = np.searchsorted(firsts, block[:, 0])
        alike = firsts[np.minimum(left, len(firsts) - 1)] == block[:, 0]
        right = np.searchsorted(firsts, block[alike, 0], side="right")
        for second, low, high in zip(block[alike, 1], left[alike], right, strict=True):
            places = order[low:high]
            shared.update(places[held[places, 1] == second].tolist())
    return np.array(sorted(shared), np.int64)


def _halves(digests: np.ndarray) -> np.ndarray:
    """uint8 [documents, 16] as uint64 [documents, 2]."""
    return digests.view(np.uint64)


def stores_by_name(
    folders: Mapping[str, str], cache_dir: str | os.PathLike
) -> tuple[dict[str, str], list[str]]:
    """The stores that a plan.json names, looked for in a folder that the user has named.

    The plan may be a stranger's, so no folder that it names is opened.

    Args:
      folders: {source: folder} of the plan.
      cache_dir: of the user.

    Returns:
      {source: folder of that name in `cache_dir`}, and notices about those that are elsewhere.
    """
    found, notices = {}, []
    for source, folder in folders.items():
        path = pathlib.Path(cache_dir, pathlib.Path(folder).name)
        if path.name not in ("", ".."):
            found[source] = str(path)
        if not path.exists() and os.path.exists(folder):
            notices.append(
                f"{folder}, the text of {source!r} that the run was trained on, is not in "
                f"{cache_dir}: it is not compared with what is held out here"
            )
    return found, notices


def seen_by_run(
    trained_on: Mapping[str, str], validation: Mapping[str, TokenStore], tokenizer: Tokenizer
) -> list[str]:
    """Notices about documents that a run was trained on.

    Args:
      trained_on: {source: folder of its train store} of the run. A store that is not here any more,
        or was built by an older version, is left out.
      validation: the stores that the run is evaluated on.
      tokenizer: of those.
    """
    found = []
    for held, (source, folder) in itertools.product(validation.values(), trained_on.items()):
        paths = pathlib.Path(folder), held.path
        if all((path / DIGESTS_FILE).is_file() for path in paths):
            shared = shared_documents(*paths)
            if len(shared):
                found.append(_repeated(held, f"{source!r} train", shared, tokenizer))
    return found


def _repeated(held: TokenStore, where: str, shared: np.ndarray, tokenizer: Tokenizer) -> str:
    """How many documents of a validation store are in a train store, and which."""
    number, total = len(shared), len(held.document_ends)
    more = f" and {number - SHOWN:,} more" if number > SHOWN else ""
    return (
        f"{number:,} of the {total:,} documents of {held.meta['source']!r} validation "
        f"({100 * number / total:.3g} %) are in {where}, too: "
        + ", ".join(_names(held, shared[:SHOWN], tokenizer))
        + more
    )


def _names(store: TokenStore, places: np.ndarray, tokenizer: Tokenizer) -> Iterator[str]:
    """The ids of documents where they have some, and how their texts begin."""
    for place, name in zip(places.tolist(), stored_ids(store.path, places), strict=True):
        start = int(store.document_ends[place - 1]) if place else 0
        end = min(int(store.document_ends[place]) - 1, start + SHOWN_CHARACTERS)
        begins = " ".join(tokenizer.decode(store.tokens[start:end]).split())[:SHOWN_CHARACTERS]
        yield (f"{name} " if name is not None else "") + repr(begins)


def stored_ids(path: pathlib.Path, places: np.ndarray) -> list[str | None]:
    """The ids of the documents of a store at these places; None where there is none.

    Only the row groups that hold them are read: a store may have a hundred million documents.
    """
    import pyarrow.parquet

    ids: list[str | None] = [None] * len(places)
    if not (path / DOCUMENTS_FILE).is_file():
        return ids
    with pyarrow.parquet.ParquetFile(path / DOCUMENTS_FILE) as file:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        ends = np.cumsum(counts)
        groups = np.searchsorted(ends, places, side="right")
        for group in np.unique(groups).tolist():
            column = file.read_row_group(group, columns=["id"])["id"]
            for index in np.flatnonzero(groups == group).tolist():
                ids[index] = column[int(places[index] - ends[group] + counts[group])].as_py()
    return ids
