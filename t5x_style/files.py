"""The one door to the file system: local paths, files that are whole or absent, locks, digests.

Rooms read and write through here, so that object storage is one change in one file. Until then a
path such as `gs://bucket/run` is refused: pathlib would make a local folder called `gs:` of it.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator

from t5x_style.errors import UsageError

PathLike = str | os.PathLike[str]


def local_path(path: PathLike, where: str) -> pathlib.Path:
    """`path` as a path of this machine.

    Args:
      where: the flag or binding that names it, for the message.

    Raises:
      UsageError: the path has a scheme, as `gs://` or `s3://` has.
    """
    text = os.fspath(path)
    scheme, separator, _ = text.partition("://")
    if separator:
        raise UsageError(
            f"{where} = {text!r}: {scheme}:// is not a file system that can be read or written "
            "yet; name a local folder, or one where the bucket is mounted"
        )
    return pathlib.Path(text)


def write_whole(path: PathLike, content: str | bytes) -> None:
    """Write a file so that a reader, a kill or a power cut sees the old one or the new one.

    Its folder is made if it is missing.
    """
    file = local_path(path, "file")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with open(partial, "wb") as stream:
        stream.write(content.encode() if isinstance(content, str) else content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, file)
    sync(file.parent)


def sync(path: PathLike) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_folder(building: pathlib.Path, place: pathlib.Path) -> None:
    """Give a folder of files its name, once they are on the disk: it is whole, or not there."""
    for file in building.iterdir():
        sync(file)
    sync(building)
    os.rename(building, place)
    sync(place.parent)


@contextlib.contextmanager
def locked(path: pathlib.Path, when_held: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file; the kernel releases it when the process ends, however that happens.

    Args:
      path: the lock file.
      when_held: called when another process holds it. If it returns, the lock is waited for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            when_held()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def file_digest(path: PathLike) -> str:
    """SHA-256 of a file's content, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
