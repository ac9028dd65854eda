"""The files and modules that a source names, and digests of their content."""

import concurrent.futures
import glob
import importlib.machinery
import json
import pathlib
from collections.abc import Sequence

from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import file_digest, local_path, write_whole

PACKAGE_PREFIX = "package:"
EMBEDDED = pathlib.Path(__file__).parents[1] / "corpora"
DIGESTS_FILE = "content_digests.json"


def matching_files(pattern: str, binding: str) -> list[pathlib.Path]:
    """The files of a glob pattern, sorted by path.

    Args:
      pattern: a glob (`**` goes into folders), or `package:NAME` for an embedded corpus.
      binding: its name, for messages.

    Raises:
      UsageError: no file matches, or the pattern has a scheme such as `gs://`.
    """
    if pattern.startswith(PACKAGE_PREFIX):
        path = EMBEDDED / pattern.removeprefix(PACKAGE_PREFIX)
        if not path.is_file():
            embedded = [PACKAGE_PREFIX + file.name for file in sorted(EMBEDDED.glob("*.jsonl.gz"))]
            raise UsageError(
                f"{binding} = {pattern!r}: no such embedded corpus; there are {', '.join(embedded)}"
                f"{did_you_mean(pattern, embedded)}"
            )
        return [path]
    folder = local_path(pattern, binding).parent
    found = map(pathlib.Path, glob.glob(pattern, recursive=True))
    files = sorted(path for path in found if path.is_file())
    if not files:
        neighbours = [str(path) for path in folder.iterdir()] if folder.is_dir() else []
        where = (
            "no file matches"
            if folder.is_dir() or glob.has_magic(str(folder))
            else (f"there is no folder {str(folder)!r}")
        )
        raise UsageError(f"{binding} = {pattern!r}: {where}{did_you_mean(pattern, neighbours)}")
    return files


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
