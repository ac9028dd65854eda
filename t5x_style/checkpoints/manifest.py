"""The manifest of a checkpoint: the size and digest of every file, and whose checkpoint it is.

It is written as the last file of the temporary folder, so that Orbax's rename makes both whole.
Neither Orbax nor its file formats notice a flipped bit in an array.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from t5x_style.errors import Fault, UsageError
from t5x_style.files import file_digest, write_whole

MANIFEST_FILE = "MANIFEST.json"
# In the item `run` of a checkpoint that has a manifest: one that lost it is told from an older one.
PROMISE = "has_manifest"
VERSION = 1
# What a checkpoint of an older version, without a manifest, must have at least.
OLDER_FILES = ("state/_METADATA", "state/manifest.ocdbt", "run/metadata")
# The digests that process k has of its own files, until the manifest takes them.
PART = "DIGESTS.process_"
# Orbax writes these after the manifest. The first is only a sign.
SUCCESS_FILE = "commit_success.txt"
METADATA_FILE = "_CHECKPOINT_METADATA"
# The field of the second that Orbax sets after the manifest.
COMMITTED = "commit_timestamp_nsecs"
THREADS = 8


def write(folder: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint whose other files are complete.

    For Orbax's `post_finalization_callback`, which runs before the rename and on one host. That
    reads the files of which no process has left the digests (`write_part`).

    Args:
      folder: the checkpoint's temporary folder.
      facts: JSON values: `step`, `tokens` and `identity` (of the run).

    Raises:
      Fault: a file is not what a process has left the digest of.
    """
    known: dict[str, dict[str, Any]] = {}
    for part in sorted(folder.glob(f"*/{PART}*")):
        for name, entry in json.loads(part.read_text()).items():
            known[f"{part.parent.name}/{name}"] = entry
        part.unlink()
    for name, entry in known.items():
        if (reason := _outside(folder, name, entry)) is not None:
            raise Fault(f"{folder}: {reason}")
    others = [name for name in _files(folder) if name not in known]
    manifest = {
        "version": VERSION,
        **facts,
        "files": dict(sorted((known | _entries(folder, others)).items())),
        "metadata": _metadata(folder),
    }
    write_whole(folder / MANIFEST_FILE, _encoded(manifest))


def write_part(item: pathlib.Path, process: int, folder: str) -> None:
    """Leave the digests of the files that this process has written to an item, for `write`.

    Args:
      item: the folder of the item.
      process: index of this process.
      folder: the name of its own folder in the item.
    """
    names = [f"{folder}/{name}" for name in _files(item / folder)]
    write_whole(item / f"{PART}{process}", json.dumps(_entries(item, names)))


def read(folder: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None if there is none.

    Raises:
      ValueError: it is damaged.
      UsageError: a later version of t5x_style wrote it.
    """
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{MANIFEST_FILE} cannot be read: {error.strerror}") from error
    try:
        manifest = json.loads(raw)
        is_whole = raw == _encoded({key: manifest[key] for key in manifest if key != "sha256"})
    except (ValueError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(f"{MANIFEST_FILE} is damaged")
    if manifest["version"] > VERSION:
        raise UsageError(
            f"{folder}: {MANIFEST_FILE} is of version {manifest['version']}, and {VERSION} is "
            "read here: a later t5x_style wrote it"
        )
    return manifest


def older_fault(folder: pathlib.Path) -> str | None:
    """What is wrong with a checkpoint that has no manifest; None if an older version wrote it."""
    for name in OLDER_FILES:
        if not (folder / name).is_file():
            return f"{MANIFEST_FILE} and {name} are missing"
    try:
        run = json.loads((folder / "run/metadata").read_bytes())
        return f"{MANIFEST_FILE} is missing" if run.get(PROMISE) else None
    except (OSError, ValueError, AttributeError):
        return f"{MANIFEST_FILE} is missing, and run/metadata is damaged"


def outline_fault(folder: pathlib.Path, manifest: Mapping[str, Any]) -> str | None:
    """What is wrong with a checkpoint, by the names and sizes of its files; None if nothing is."""
    for name, entry in manifest["files"].items():
        if (reason := _outside(folder, name, entry)) is not None:
            return reason
    try:
        if _metadata(folder) == manifest["metadata"]:
            return None
    except FileNotFoundError:
        return f"{METADATA_FILE} is missing"
    except (OSError, ValueError):
        pass
    return f"{METADATA_FILE} is damaged"


def content_fault(
    folder: pathlib.Path, manifest: Mapping[str, Any], process: int = 0, processes: int = 1
) -> str | None:
    """What is wrong with the content of a checkpoint's files; None if nothing is.

    Args:
      process, processes: read only this process's share of the bytes.
    """
    files = manifest["files"]
    names = _share({name: entry["bytes"] for name, entry in files.items()}, process, processes)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _inside(folder, name, files[name]), names)
        return next((reason for reason in found if reason is not None), None)


def _outside(folder: pathlib.Path, name: str, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a file, without its content."""
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        return f"{MANIFEST_FILE} names {name!r}, which is outside the checkpoint"
    file = folder / name
    try:
        size = file.stat().st_size
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return f"{name} {'is missing' if missing else f'cannot be read: {error.strerror}'}"
    if not file.is_file():
        return f"{name} is not a file"
    if size != entry["bytes"]:
        return f"{name} has {size:,} bytes instead of {entry['bytes']:,}"
    return None


def _inside(folder: pathlib.Path, name: str, entry: Mapping[str, Any]) -> str | None:
    """What is wrong with a file's content."""
    try:
        if file_digest(folder / name) == entry["sha256"]:
            return None
    except OSError as error:
        return f"{name} cannot be read: {error.strerror}"
    return f"{name} has other bytes than were written"


def _entries(folder: pathlib.Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{name: size and digest}."""
    names = list(names)
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        digests = pool.map(lambda name: file_digest(folder / name), names)
        return {
            name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
            for name, digest in zip(names, digests, strict=True)
        }


def _files(folder: pathlib.Path) -> list[str]:
    """The names of the files below a folder that are complete when the manifest is written."""
    names = [
        (pathlib.Path(parent) / file).relative_to(folder).as_posix()
        for parent, _, files in os.walk(folder)
        for file in files
    ]
    return sorted(set(names) - {MANIFEST_FILE, SUCCESS_FILE, METADATA_FILE})


def _metadata(folder: pathlib.Path) -> dict[str, Any]:
    """What Orbax says of the checkpoint, without the time that it sets at the end."""
    metadata = json.loads((folder / METADATA_FILE).read_bytes())
    return {key: value for key, value in metadata.items() if key != COMMITTED}


def _share(sizes: Mapping[str, int], process: int, processes: int) -> list[str]:
    """The names of one process: each name has one, and all have about as many bytes."""
    loads = [0] * processes
    own = []
    for name in sorted(sizes, key=lambda name: (-sizes[name], name)):
        least = loads.index(min(loads))
        loads[least] += sizes[name]
        if least == process:
            own.append(name)
    return own


def _encoded(manifest: Mapping[str, Any]) -> bytes:
    """The text of a manifest, with a digest of the rest: of one manifest, there is one text."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**manifest, "sha256": digest}, indent=1, sort_keys=True) + "\n").encode()
