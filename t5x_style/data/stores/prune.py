"""What a cache directory holds, what of it a corpus or a run needs, and how the rest goes."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Iterator

from t5x_style.data.stores.builder_client import Builder
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.needed import declaration_file, planned_stores
from t5x_style.data.stores.planned import index_folder
from t5x_style.data.stores.token_store import META_FILE, read_meta
from t5x_style.errors import Fault
from t5x_style.files import locked

# What this program makes in a cache directory. All else there is somebody's, and stays.
_DIGITS = "[0-9a-f]{16}"
STORE = "token store"
_KINDS = {
    "unfinished build": rf"\.building-.+-{_DIGITS}",
    "half removed": rf"\.removing-.+-{_DIGITS}",
    "tokenised text": rf"parts-.+-(train|validation)-{_DIGITS}",
    STORE: rf".+-(train|validation)-{_DIGITS}",
    "index of held-out text": rf"ngrams-{_DIGITS}",
    "blend of a module": rf"blend-{_DIGITS}\.json",
}


class _InUse(Exception):
    """Another process builds or reads it."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A file or folder that this program made in a cache directory.

    Attributes:
      path, size: its place, and its bytes.
      kind: one of _KINDS, for people.
      needed: whether the corpus or a run needs it.
    """

    path: pathlib.Path
    kind: str
    size: int
    needed: bool


def entries(corpus: Corpus, runs: Collection[str] = ()) -> list[Entry]:
    """What is in the cache directory of a corpus, by name. Writes nothing.

    Args:
      corpus: all that its stores are made with is needed, too.
      runs: folders of the stores that runs name.
    """
    folder = pathlib.Path(corpus.cache_dir)
    needed = {path.resolve() for path in (*_needed(corpus), *map(pathlib.Path, runs))}
    found = []
    for path in sorted(folder.iterdir() if folder.is_dir() else ()):
        if (kind := _kind(path)) is not None:
            # A build that was killed goes on where its store is needed.
            finished = path.with_name(path.name.removeprefix(".building-"))
            found.append(Entry(path, kind, _size(path), finished.resolve() in needed))
    return found


def remove(entry: Entry) -> bool:
    """Removes an entry, as a whole, unless a process builds or reads it.

    Returns:
      whether it is gone.
    """
    path = entry.path
    name = path.name.removeprefix(".building-")
    try:
        with locked(path.with_name(f".lock-{name}"), _raise_in_use), _unread(path):
            if path.is_dir():
                going = path.with_name(f".removing-{name}")
                shutil.rmtree(going, ignore_errors=True)
                # A kill now leaves no half store under the name of a whole one.
                path.rename(going)
                shutil.rmtree(going)
            else:
                path.unlink(missing_ok=True)
    except _InUse:
        return False
    return True


def _needed(corpus: Corpus) -> Iterator[pathlib.Path]:
    with Builder(corpus) as builder:
        _, plans = planned_stores(corpus, builder, remember=False)
    for plan in plans:
        yield plan.path
        if plan.tokenised is not None:
            yield plan.tokenised
        if corpus.contamination is not None and plan.split == "train":
            yield index_folder(plan.against, corpus, remember=False)
    if corpus.mixture_or_task_module is not None:
        yield declaration_file(corpus, remember=False)


def _kind(path: pathlib.Path) -> str | None:
    """What this program made there; None for a file or folder of somebody else."""
    kind = next((kind for kind, name in _KINDS.items() if re.fullmatch(name, path.name)), None)
    if kind == STORE:
        try:
            return kind if "fingerprint" in read_meta(path) else None
        except (OSError, Fault):
            return None
    return kind


def _size(path: pathlib.Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _raise_in_use() -> None:
    raise _InUse


@contextlib.contextmanager
def _unread(store: pathlib.Path) -> Iterator[None]:
    """Nobody has the store open: `TokenStore.open` holds a lock that several readers share."""
    if not (store / META_FILE).is_file():
        yield
        return
    descriptor = os.open(store / META_FILE, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise _InUse from None
    finally:
        os.close(descriptor)
