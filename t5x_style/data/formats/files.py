"""The files and modules that a source names, and digests of their content."""

import concurrent.futures
import glob
import importlib.machinery
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import file_digest, local_path, read_cached, write_whole

PACKAGE_PREFIX = "package:"
EMBEDDED = pathlib.Path(__file__).parents[1] / "corpora"
DIGESTS_FILE = "content_digests.json"
# What may follow the suffix of a file that is one of many.
SHARD = re.compile(r"-[0-9]+-of-[0-9]+$")


def matching_files(
    places: Sequence[str], binding: str, suffixes: Sequence[str]
) -> list[pathlib.Path]:
    """The files that globs and folders name, in their order, sorted by path within each.

    An existing path comes before its reading as a glob: `[1] law.jsonl` is that file. A folder is
    all files in it and in its folders that have a suffix of the format. What a folder holds under
    a name that begins with `.` or `_` is left out, as `_SUCCESS`. A file of two globs is read once.

    Args:
      places: globs (`**` goes into folders), folders, and `package:NAME` for an embedded corpus.
      binding: its name, for messages.
      suffixes: of the format, in lower case.

    Raises:
      UsageError: one of them matches no file, or has a scheme such as `gs://`.
    """
    return unique(path for place in places for path in _matching(place, binding, suffixes))


def unique(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """The paths in order, each file once however it is written. Links are files of their own."""
    found: dict[str, pathlib.Path] = {}
    for path in paths:
        found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _matching(pattern: str, binding: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    if pattern.startswith(PACKAGE_PREFIX):
        path = EMBEDDED / pattern.removeprefix(PACKAGE_PREFIX)
        if not path.is_file():
            embedded = [PACKAGE_PREFIX + file.name for file in sorted(EMBEDDED.glob("*.jsonl.gz"))]
            raise UsageError(
                f"{binding} = {pattern!r}: no such embedded corpus; there are {', '.join(embedded)}"
                f"{did_you_mean(pattern, embedded)}"
            )
        return [path]
    path = local_path(pattern, binding)
    if path.is_dir():
        return _files_in(path, f"{binding} = {pattern!r}", suffixes)
    found = sorted(map(pathlib.Path, glob.glob(_with_existing_path(path), recursive=True)))
    files = [path for path in found if path.is_file()]
    if not files:
        raise UsageError(f"{binding} = {pattern!r}: {_why_none(pattern, found)}")
    return files


def _with_existing_path(path: pathlib.Path) -> str:
    """The glob of a path, in which brackets of existing folders and files are those characters."""
    existing, rest = pathlib.Path(path.anchor), list(path.relative_to(path.anchor).parts)
    while rest and not set(rest[0]) & {"*", "?"} and os.path.lexists(existing / rest[0]):
        existing /= rest.pop(0)
    return os.path.join(glob.escape(str(existing)), *rest)


def _files_in(folder: pathlib.Path, binding: str, suffixes: Sequence[str]) -> list[pathlib.Path]:
    """The files of a format in a folder and those in it. Links are followed, a loop of them once.

    Raises:
      UsageError: there is none.
    """
    if not suffixes:
        raise UsageError(
            f"{binding}: a folder, and the files of this format have no suffixes: write a glob, "
            f"{str(folder / '**' / '*')!r}"
        )
    found, seen = [], set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        folders[:] = [] if place in seen else sorted(filter(_is_data, folders))
        if place not in seen:
            found += [
                pathlib.Path(parent, name)
                for name in filter(_is_data, names)
                if SHARD.sub("", name.lower()).endswith(tuple(suffixes))
            ]
        seen.add(place)
    if not found:
        raise UsageError(
            f"{binding}: the folder has no file that ends in {', '.join(suffixes)}; for other "
            f"files write a glob, {str(folder / '**' / '*')!r}"
        )
    return sorted(found)


def _is_data(name: str) -> bool:
    return name[0] not in "._"


def _why_none(pattern: str, found: Sequence[pathlib.Path]) -> str:
    """Why a pattern names no file, and what may be meant. `found` is what matches it."""
    path = pathlib.Path(pattern)
    if path.is_symlink():
        return f"a link to {str(path.readlink())!r}, which is not there"
    if path.exists():
        return "neither a file nor a folder"
    if found:
        folders = " and ".join(str(folder) for folder in found[:3])
        return f"only folders match, {folders}: name the files, {str(path / '*')!r}"
    # Of "x{a,b}y", the texts between braces are at the odd places.
    pieces = re.split(r"\{([^{}]*,[^{}]*)\}", pattern)
    if len(pieces) > 1:
        choices = [piece.split(",") if i % 2 else [piece] for i, piece in enumerate(pieces)]
        expanded = ["".join(choice) for choice in itertools.product(*choices)]
        return f"braces are not expanded: write the list {expanded}"
    several = re.split(r"[,;\s]+", pattern)
    if len(several) > 1 and any(map(glob.glob, several)):
        return f"no file matches; for several, write the list {several}"
    folder = path.parent
    if not folder.is_dir() and not glob.has_magic(str(folder)):
        return f"there is no folder {str(folder)!r}"
    neighbours = [str(entry) for entry in folder.iterdir()] if folder.is_dir() else []
    return f"no file matches{did_you_mean(pattern, sorted(neighbours))}"


def content_digests(
    paths: Sequence[pathlib.Path], cache_dir: pathlib.Path, *, remember: bool
) -> list[str]:
    """SHA-256 of each file's content, in order.

    A file is read once: its digest is kept in `cache_dir` under path, size and time of change. So a
    start costs one stat for each file. A file that was moved or touched is read again, and nothing
    is rebuilt.

    Args:
      paths: the files.
      cache_dir: where digests are kept.
      remember: write new digests there. A dry run writes nothing.
    """
    file = cache_dir / DIGESTS_FILE
    known: dict[str, list] = read_cached(file, _are_digests) or {}
    stamps = [[(stat := path.stat()).st_size, stat.st_mtime_ns] for path in paths]
    keys = [str(path.resolve()) for path in paths]
    unread = [
        i
        for i, (key, stamp) in enumerate(zip(keys, stamps, strict=True))
        if known.get(key, [])[:2] != stamp
    ]
    with concurrent.futures.ThreadPoolExecutor() as threads:
        for i, digest in zip(
            unread, threads.map(lambda i: file_digest(paths[i]), unread), strict=True
        ):
            known[keys[i]] = [*stamps[i], digest]
    if unread and remember:
        write_whole(file, json.dumps(known, indent=1))
    return [known[key][2] for key in keys]


def _are_digests(value: Any) -> bool:
    """Whether a value is {path: [size, time of change, digest]}."""
    return isinstance(value, dict) and all(
        isinstance(entry, list) and [type(part) for part in entry] == [int, int, str]
        for entry in value.values()
    )


def module_file(name: str, binding: str) -> pathlib.Path:
    """The source file of a Python module, found without importing it or its packages.

    Args:
      name: of the module, with its packages.
      binding: its name, for messages.

    Raises:
      UsageError: there is no such module on `sys.path`.
    """
    locations = origin = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), locations)
        if spec is None:
            raise UsageError(
                f"{binding} = {name!r}: no module {'.'.join(parts[:depth])!r} "
                f"on the Python path (PYTHONPATH=FOLDER adds one)"
            )
        origin, locations = spec.origin, spec.submodule_search_locations
    if origin is None:
        raise UsageError(f"{binding} = {name!r} is a folder, not a module")
    return pathlib.Path(origin)
