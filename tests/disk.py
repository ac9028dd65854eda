"""What a power cut would leave. A kill does not lose the page cache, so calls are recorded."""

import os
import pathlib
from typing import Any, NamedTuple

import pytest


class Event(NamedTuple):
    """A file or folder that was synced, or that got a name.

    Attributes:
      kind: 'synced' or 'named'.
      path: the file or folder that was synced, or the new name.
      held: the content of a file then; for a folder the names in it, sorted.
    """

    kind: str
    path: pathlib.Path
    held: bytes | list[str]


class RecordedOs:
    """The module `os` as `t5x_style.files` sees it: the order of what is synced and renamed.

    Attributes:
      events: in order.
    """

    def __init__(self):
        self.events: list[Event] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fsync(self, descriptor: int) -> None:
        """Recorded with what a reader would find now: unflushed bytes are not among it."""
        self._note("synced", pathlib.Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        os.fsync(descriptor)

    def replace(self, old: os.PathLike, new: os.PathLike) -> None:
        """Recorded under the new name."""
        os.replace(old, new)
        self._note("named", pathlib.Path(new))

    def rename(self, old: os.PathLike, new: os.PathLike) -> None:
        """As `replace`."""
        os.rename(old, new)
        self._note("named", pathlib.Path(new))

    def _note(self, kind: str, path: pathlib.Path) -> None:
        names = sorted(file.name for file in path.iterdir()) if path.is_dir() else None
        self.events.append(Event(kind, path, path.read_bytes() if names is None else names))

    def named(self, path: pathlib.Path) -> int:
        """The number of the event in which `path` got its name."""
        (number,) = (i for i, event in enumerate(self.events) if event[:2] == ("named", path))
        return number

    def synced_before(self, number: int) -> set[pathlib.Path]:
        """What was synced before an event."""
        return {event.path for event in self.events[:number] if event.kind == "synced"}

    def synced_after(self, number: int) -> set[pathlib.Path]:
        """What was synced after an event."""
        return {event.path for event in self.events[number:] if event.kind == "synced"}


class Disk:
    """Every `os.fsync`, while `monkeypatch` lasts: which bytes and names are on the disk by now."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self._synced: dict[int, int] = {}
        fsync = os.fsync

        def remember(descriptor: int) -> None:
            fsync(descriptor)
            seen = os.fstat(descriptor)
            self._synced[seen.st_ino] = seen.st_size

        monkeypatch.setattr(os, "fsync", remember)

    def has(self, path: pathlib.Path) -> bool:
        """Whether every byte of the file that is at `path` now was synced."""
        now = path.stat()
        return self._synced.get(now.st_ino) == now.st_size

    def has_name(self, path: pathlib.Path) -> bool:
        """Whether also the folder, which holds the name, was synced."""
        return self.has(path) and path.parent.stat().st_ino in self._synced
