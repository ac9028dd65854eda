"""The one door to the file system: local paths, files that are whole or absent, locks, digests.

Rooms read and write through here, so that object storage is one change in one file. Until then a
path such as `gs://bucket/run` is refused: pathlib would make a local folder called `gs:` of it.
"""

import codecs
import contextlib
import datetime
import errno
import fcntl
import hashlib
import json
import os
import pathlib
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Annotated, Any

from t5x_style.errors import EXIT_FAULT, Fault, UsageError

PathLike = str | os.PathLike[str]


def absolute(path: str, _: Mapping[str, Any]) -> str:
    """A path with the folder of the start in front, if it is relative: see `LocalPath`."""
    return path if "://" in path else str(pathlib.Path(path).absolute())


# The type of a parameter that names a file or folder. A run's config.gin has its value as the
# function returns it. That is called with the value, and the other parameters by name.
LocalPath = Annotated[str, absolute]

# In every file that a verb writes to a place of the user's choice: it tells ours from others.
MARK = "written by t5x-style"
# The lock file of a folder that one process owns.
OWNER_FILE = ".owner"
# The answers of file systems without locks, such as Lustre without its option `flock`.
_NO_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.ENOSYS)
# There the owner touches its file so often, and is dead after so long without it.
BEAT_SECONDS = 5.0
SILENT_SECONDS = 30.0


def local_path(path: PathLike, where: str) -> pathlib.Path:
    """`path` as a path of this machine.

    Args:
      where: the flag or binding that names it, for the message.

    Raises:
      UsageError: the path has a scheme, as `gs://` or `s3://` has, or begins with what a shell
        would expand: `~/runs` would be a folder called `~`.
    """
    text = os.fspath(path)
    scheme, separator, _ = text.partition("://")
    if separator:
        raise UsageError(
            f"{where} = {text!r}: {scheme}:// is not a file system that can be read or written "
            "yet; name a local folder, or one where the bucket is mounted"
        )
    expanded = os.path.expanduser(os.path.expandvars(text))
    if expanded != text and not os.path.lexists(text):
        sign = "~" if text.startswith("~") else text[text.index("$") :].split("/")[0]
        raise UsageError(f"{where} = {text!r}: {sign} is not expanded: write {expanded!r}")
    return pathlib.Path(text)


def is_inside(path: PathLike, folder: PathLike) -> bool:
    """Whether a path leads to a place in a folder, links followed."""
    return pathlib.Path(path).resolve().is_relative_to(pathlib.Path(folder).resolve())


def read_text(path: PathLike, where: str) -> str:
    """The text of a file that a person wrote, in UTF-8.

    A byte-order mark at its start is no text. Lines end in "\\n", whichever of "\\r\\n", "\\r" and
    "\\n" ends them in the file. Nothing else ends a line: `str.splitlines` has more ends.

    Args:
      where: the flag or binding that names the file, or the file itself, for the message.

    Raises:
      UsageError: the file cannot be opened, or is no text, with the place of the first wrong byte.
    """
    try:
        content = pathlib.Path(path).read_bytes()
        text = content.decode()
    except OSError as error:
        raise UsageError(f"{where}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        raise UsageError(
            f"{where}: not UTF-8 text: {_place(content, error.start)} is "
            f"0x{content[error.start]:02x}{': it is UTF-16' if wide else ''}"
        ) from None
    if "\0" in text:
        raise UsageError(f"{where}: not text: {_place(content, content.index(0))} is NUL")
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _place(content: bytes, position: int) -> str:
    line = 1 + len(re.findall(rb"\r\n|\r|\n", content[:position]))
    return f"byte {position} (line {line})"


def refuse_foreign(path: PathLike, flag: str) -> None:
    """Check, before any work, that no file of somebody else would be replaced.

    Args:
      path: of a file that a verb will write, with MARK in its first 64 KiB.
      flag: that names it, such as `--write`.

    Raises:
      UsageError: it is there, without MARK; or its path has a scheme.
    """
    file = local_path(path, flag)
    if file.is_file():
        with open(file, "rb") as stream:
            if MARK.encode() not in stream.read(1 << 16):
                raise UsageError(
                    f"{flag}={path} is there and was not {MARK}: name another file, or remove it"
                )


def read_cached(file: pathlib.Path, is_whole: Callable[[Any], bool]) -> Any:
    """The JSON value of a file that can be made again.

    Args:
      is_whole: whether a value has the form that was written.

    Returns:
      None if there is no such file. None, too, with a warning, if it is cut, empty or no JSON.
    """
    try:
        value = json.loads(file.read_bytes())
        if is_whole(value):
            return value
    except FileNotFoundError:
        return None
    except ValueError:
        pass
    print(f"{file} is broken, and is made again", file=sys.stderr)
    return None


def write_whole(path: PathLike, content: str | bytes) -> None:
    """Write a file so that a reader, a kill or a power cut sees the old one or the new one.

    Its folder is made if it is missing.
    """
    file = local_path(path, "file")
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, file)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
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


@contextlib.contextmanager
def owned(lock: pathlib.Path, what: str) -> Iterator[None]:
    """Be the one process that writes `what`, until the block ends or the process does.

    The lock file has host, process and time of its owner. The kernel releases it with the process,
    however that ends. Where the file system has no locks, a thread touches the file instead. An
    owner whose file is silent for SILENT_SECONDS is dead, and its place is taken with a notice.

    Args:
      lock: the lock file, such as `MODEL_DIR / OWNER_FILE`. A missing folder is made, and goes
        again if nothing was written into it.
      what: the flag or binding with its value, for messages: `MODEL_DIR = runs/first`.

    Raises:
      UsageError: another process owns it; names host, process and time.
      Fault: the lock file cannot be written.
    """
    is_new = not lock.parent.exists()
    since = datetime.datetime.now(datetime.UTC)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since.isoformat(" ")}
    with contextlib.ExitStack() as held:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            if is_new:
                held.callback(_remove_if_empty, lock.parent)
            file = _flocked(lock, what)
            if file is None:
                held.enter_context(_beating(lock, json.dumps(owner), what))
            else:
                held.enter_context(_kept(lock, file, json.dumps(owner), what))
        except OSError as error:
            raise Fault(f"{what}: cannot write {lock}: {error}") from error
        yield


def _flocked(lock: pathlib.Path, what: str) -> IO[str] | None:
    """The lock file, open and locked; None where the file system has no locks."""
    while True:
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(open(lock, "a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise _in_use(lock, what) from None
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return None
                raise
            # The owner before may have removed the file meanwhile: this lock would be on no file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(lock.stat(), os.fstat(file.fileno())):
                    opened.pop_all()
                    return file


@contextlib.contextmanager
def _kept(lock: pathlib.Path, file: IO[str], owner: str, what: str) -> Iterator[None]:
    """Hold a locked file, and lock another one if somebody removes it with its folder."""
    locks = [file]

    def is_own() -> bool:
        # On a mounted bucket a file may have another number each time, so links are counted.
        return lock.exists() and os.fstat(locks[-1].fileno()).st_nlink > 0

    def sign() -> None:
        locks[-1].truncate(0)
        locks[-1].write(owner)
        locks[-1].flush()

    def look() -> None:
        # The run makes its folder again; then the lock is due.
        if is_own() or not lock.parent.exists():
            return
        # A disk that is full or away for a while: the next look tries again.
        with contextlib.suppress(OSError):
            if (again := _flocked(lock, what)) is not None:
                locks.append(again)
                sign()

    with contextlib.ExitStack() as held:
        held.callback(lambda: [opened.close() for opened in locks])
        try:
            with _every_beat(look):
                sign()
                yield
        finally:
            # Before the lock falls: later the file may be another process's.
            if is_own():
                lock.unlink(missing_ok=True)


@contextlib.contextmanager
def _every_beat(look: Callable[[], None]) -> Iterator[None]:
    """Call a function every BEAT_SECONDS; its UsageError, another owner, ends the process."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT_SECONDS):
            try:
                look()
            except UsageError as error:
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(EXIT_FAULT)

    thread = threading.Thread(target=beat, name="owner", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _in_use(lock: pathlib.Path, what: str) -> UsageError:
    try:
        owner = json.loads(lock.read_text())
        since = f"{owner['since'][:19]} UTC"
        by = f"process {owner['pid']} on host {owner['host']}, since {since}"
    except (OSError, ValueError, KeyError, TypeError):
        by = "another process"  # it has not written its name yet
    return UsageError(f"{what} is in use by {by}: wait for its end, stop it, or name another place")


@contextlib.contextmanager
def _beating(lock: pathlib.Path, owner: str, what: str) -> Iterator[None]:
    """Own a file by touching it. No clock of another machine is read."""
    before = lock.read_text()
    if before:
        print(
            f"{what}: its file system has no locks; waiting {SILENT_SECONDS:.0f} s for a sign of "
            f"its last owner: {before}",
            file=sys.stderr,
        )
        seen, began = lock.stat().st_mtime_ns, time.monotonic()
        while time.monotonic() - began < SILENT_SECONDS:
            time.sleep(BEAT_SECONDS / 4)
            if not lock.exists():
                break
            if lock.stat().st_mtime_ns != seen:
                raise _in_use(lock, what)
        else:
            print(f"{what}: its last owner is silent, and its place is taken", file=sys.stderr)
    write_whole(lock, owner)

    def look() -> None:
        if lock.exists() and lock.read_text() != owner:
            # This process was asleep for long, or another one started at the same moment.
            raise _in_use(lock, what)
        with contextlib.suppress(OSError):
            if lock.exists():
                os.utime(lock)
            elif lock.parent.exists():
                # It was removed with its folder, which the run has made again.
                write_whole(lock, owner)

    try:
        with _every_beat(look):
            yield
    finally:
        if lock.exists() and lock.read_text() == owner:
            lock.unlink()


def _remove_if_empty(folder: pathlib.Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def file_digest(path: PathLike) -> str:
    """SHA-256 of a file's content, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
