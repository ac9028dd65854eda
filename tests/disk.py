"""What a power cut would leave. A kill does not lose the page cache, so calls are recorded."""

import os
import pathlib

import pytest


class Disk:
    """Remembers what `os.fsync` saw of each file, while `monkeypatch` lasts."""

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
