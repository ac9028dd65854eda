"""The files a source names, and what their content is."""

import concurrent.futures
import glob
import importlib.machinery
import json
import pathlib
from collections.abc import Sequence

from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import file_digest, write_whole

PACKAGE_PREFIX = "package:"
EMBEDDED = pathlib.Path(__file__).parents[1] / "corpora"
DIGESTS_FILE = "content_digests.json"


def matching_files(pattern: str, what: str) -> list[pathlib.Path]:
    """The files of a glob pattern, sorted by path.

    Args:
      pattern: a glob (`**` goes into folders), or `package:NAME` for an embedded corpus.
      what: who asks, for the message.

    Raises:
      UsageError: nothing matches.
    """
    if pattern.startswith(PACKAGE_PREFIX):
        path = EMBEDDED / pattern.removeprefix(PACKAGE_PREFIX)
        if not path.is_file():
            embedded = [PACKAGE_PREFIX + file.name for file in sorted(EMBEDDED.glob("*.jsonl.gz"))]
            raise UsageError(
                f"{what} = {pattern!r}: no such embedded corpus; there are {', '.join(embedded)}"
                f"{did_you_mean(pattern, embedded)}"
            )
        return [path]
    found = map(pathlib.Path, glob.glob(pattern, recursive=True))
    files = sorted(path for path in found if path.is_file())
    if not files:
        folder = pathlib.Path(pattern).parent
        beside = [str(path) for path in folder.iterdir()] if folder.is_dir() else []
        where = (
            "no file matches"
            if folder.is_dir() or glob.has_magic(str(folder))
            else (f"there is no folder {str(folder)!r}")
        )
        raise UsageError(f"{what} = {pattern!r}: {where}{did_you_mean(pattern, beside)}")
    return files


def content_digests(
    paths: Sequence[pathlib.Path], cache_dir: pathlib.Path, *, remember: bool
) -> list[str]:
    """SHA-256 of each file's content, in order.

    A file is read once: the digest is kept in `cache_dir` under path, size and time of change, so
    that a start costs a stat for each file, and a file that was moved or touched costs a reading
    but never another build.

    Args:
      paths: the files.
      cache_dir: where digests are kept.
      remember: write new digests there (a dry run leaves nothing behind).
    """
    file = cache_dir / DIGESTS_FILE
    known: dict[str, list] = json.loads(file.read_text()) if file.is_file() else {}
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


def module_file(name: str, what: str) -> pathlib.Path:
    """The source file of a Python module, found without importing it or its packages.

    Args:
      name: of the module, with its packages.
      what: who asks, for the message.

    Raises:
      UsageError: there is none on `sys.path`.
    """
    locations = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = importlib.machinery.PathFinder.find_spec(".".join(parts[:depth]), locations)
        if spec is None:
            raise UsageError(
                f"{what} = {name!r}: no module {'.'.join(parts[:depth])!r} "
                f"on the Python path (PYTHONPATH=FOLDER adds one)"
            )
        locations = spec.submodule_search_locations
    if spec.origin is None:
        raise UsageError(f"{what} = {name!r} is a folder, not a module")
    return pathlib.Path(spec.origin)
