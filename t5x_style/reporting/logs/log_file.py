"""A .jsonl file that is appended to. A full disk or a removed file loses no line of it.

Lines that cannot be written wait in memory, and every later write tries them again, in order. A
removed file is made again from the open descriptor, through which its content is still there.
"""

import collections
import os
import pathlib
import time
from typing import NamedTuple

from t5x_style.files import sync
from t5x_style.reporting.logs.log_lines import free_name, move_aside

# Lines beyond so many bytes in memory are dropped, the oldest first.
MOST_WAITING_BYTES = 16 << 20
# So many bytes are at most in the kernel's cache alone. A power cut would lose them.
MOST_UNSYNCED_BYTES = 4 << 20
_COPIED_BYTES = 1 << 20


class News(NamedTuple):
    """What happened to a file.

    Attributes:
      kind: of the event: 'logs_broken' or 'logs_rewritten'.
      reason: in plain words.
    """

    kind: str
    reason: str


class LogFile:
    """Appends whole lines to a file. Used from one thread.

    Attributes:
      path: of the file.
      error: of the last attempt to write; None if it succeeded.
    """

    def __init__(self, path: pathlib.Path):
        """Opens the file, or makes it. Raises OSError if that is not possible."""
        self.path = path
        self.error: OSError | None = None
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        # The file has `_synced` bytes that are on the disk, those of `_written`, and the first
        # `_begun` bytes of the first waiting line.
        self._synced = os.fstat(self._descriptor).st_size
        self._written: list[bytes] = []
        self._waiting: collections.deque[bytes] = collections.deque()
        self._begun = 0
        self._distrusted = False
        self._failed_at = 0.0
        self._dropped = 0

    @property
    def waiting(self) -> list[str]:
        """The lines that may not be on the disk, oldest first, without their newlines."""
        return [line.decode().rstrip("\n") for line in (*self._written, *self._waiting)]

    @property
    def dropped(self) -> int:
        """How many lines were dropped since the file could last be written."""
        return self._dropped

    def append(self, text: str) -> None:
        """Remember one line for the next `write`."""
        self._waiting.append(text.encode() + b"\n")
        size = sum(map(len, self._waiting)) if self.error else 0
        # The first line may be in the file in part.
        while size > MOST_WAITING_BYTES and len(self._waiting) > 2:
            size -= len(self._waiting[1])
            del self._waiting[1]
            self._dropped += 1

    def write(self, *, synced: bool) -> list[News]:
        """Try to write all lines that wait.

        Args:
          synced: whether they shall be on the disk afterwards, and not in the kernel's cache alone.

        Returns:
          The news, such as that the file cannot be written. `error` says whether it can.
        """
        news: list[News] = []
        name, waited = self.path.name, len(self._waiting)
        try:
            if self._distrusted:
                os.ftruncate(self._descriptor, self._synced)
                self._distrusted = False
            news += self._replace_if_gone()
            self._write_waiting()
            if synced or sum(map(len, self._written)) > MOST_UNSYNCED_BYTES:
                self._sync()
        except OSError as error:
            if self.error is None:
                self._failed_at = time.monotonic()
                news.append(
                    News(
                        "logs_broken",
                        f"{name} cannot be written ({error.strerror}): its lines wait in memory "
                        "and are tried again",
                    )
                )
            self.error = error
            return news
        if self.error is not None:
            seconds = time.monotonic() - self._failed_at
            news.append(
                News(
                    "logs_rewritten",
                    f"{name} can be written again after {seconds:.0f} s ({self.error.strerror}): "
                    f"{waited:,} lines had waited, {self._dropped:,} were dropped",
                )
            )
            self.error, self._dropped = None, 0
        return news

    def close(self) -> None:
        """Close the file. Lines that wait are given up."""
        os.close(self._descriptor)

    def _write_waiting(self) -> None:
        data = memoryview(b"".join(self._waiting))[self._begun :]
        while data:
            # A full disk may take a part.
            count = os.write(self._descriptor, data)
            data = data[count:]
            self._begun += count
            while self._waiting and self._begun >= len(self._waiting[0]):
                line = self._waiting.popleft()
                self._begun -= len(line)
                self._written.append(line)

    def _sync(self) -> None:
        try:
            os.fsync(self._descriptor)
        except OSError:
            # The kernel may have given up any of the bytes, and reports that once.
            self._write_again()
            self._distrusted = True
            raise
        self._synced += sum(map(len, self._written))
        self._written = []

    def _write_again(self) -> None:
        self._waiting.extendleft(reversed(self._written))
        self._written, self._begun = [], 0

    def _replace_if_gone(self) -> list[News]:
        """Make the file again if its name is gone or another file's; see whether it was cut."""
        size = self._synced + sum(map(len, self._written)) + self._begun
        own = os.fstat(self._descriptor)
        if not self.path.exists():
            reason = "was removed"
        elif own.st_nlink == 0:
            # On a mounted bucket a file may have another number each time, so links are counted.
            aside = move_aside(self.path, "replaced")
            reason = f"was replaced by another file, which is {aside.name} now"
        else:
            return self._cut(size, own.st_size)
        missing = self._copy(min(size, own.st_size))
        reason = f"{self.path.name} {reason} while the run was writing it, and is made again"
        if missing:
            return [News("logs_broken", f"{reason} without its first {missing:,} bytes")]
        return [News("logs_rewritten", reason)]

    def _cut(self, size: int, found: int) -> list[News]:
        """What is left of a file of `size` bytes that has `found`."""
        if found >= size:
            self._synced += found - size
            return []
        lost = self._synced
        self._write_again()
        self._synced = min(self._synced, found)
        # A line that was cut in two is no line.
        start = max(0, self._synced - _COPIED_BYTES)
        tail = os.pread(self._descriptor, self._synced - start, start)
        self._synced = start + tail.rfind(b"\n") + 1
        os.ftruncate(self._descriptor, self._synced)
        lost -= self._synced
        reason = f"{self.path.name} was cut while the run was writing it"
        if lost:
            return [News("logs_broken", f"{reason}: its last {lost:,} bytes are lost")]
        return [News("logs_rewritten", f"{reason}: what is missing is written again")]

    def _copy(self, size: int) -> int:
        """Make the file again from the first `size` bytes behind the open descriptor.

        Returns:
          How many of them cannot be read any more, as on a network file system.
        """
        partial = free_name(self.path, "partial")
        copy = os.open(partial, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            done = self._copied(copy, size)
            os.fsync(copy)
            os.rename(partial, self.path)
        except OSError:
            os.close(copy)
            os.unlink(partial)
            raise
        os.close(self._descriptor)
        self._descriptor = copy
        sync(self.path.parent)
        if done < size:
            # What is in memory is written again.
            self._write_again()
            missing, self._synced = self._synced, 0
            return missing
        self._synced, self._written = size - self._begun, []
        return 0

    def _copied(self, copy: int, size: int) -> int:
        done = 0
        while done < size:
            try:
                content = os.pread(self._descriptor, min(_COPIED_BYTES, size - done), done)
            except OSError:
                content = b""
            if not content:
                os.ftruncate(copy, 0)
                return 0
            while content:
                count = os.write(copy, content)
                content, done = content[count:], done + count
        return done
