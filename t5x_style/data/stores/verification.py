"""The bytes of stores, compared with those of their build while a run reads them.

A thread of low priority reads the files at a bounded rate, and each process of a run its share of
their blocks. So a pod of 64 hosts reads a store once, and not 64 times. A file is read again when
its size or its time of modification changes.
"""

import collections
import contextlib
import os
import pathlib
import threading
from collections.abc import Iterable, Sequence

from t5x_style.data.stores.token_store import (
    ENDS_FILE,
    EXTRA_BYTES_FILE,
    META_FILE,
    TOKENS_FILE,
    Piece,
    StoreChanged,
    TokenStore,
    changed,
)

# The files that rows and figures of a run come from.
READ_BY_A_RUN = (META_FILE, TOKENS_FILE, ENDS_FILE, EXTRA_BYTES_FILE)
# Of one process. A store of 100 GB takes a quarter of an hour, and a tenth of a processor.
BYTES_PER_SECOND = 100e6
# How often the thread looks whether a file was touched.
LOOK_SECONDS = 10.0
LOWEST_PRIORITY = 19
# How long the end of a run waits for a read.
END_SECONDS = 2.0


class _File:
    """A file of a store, open for as long as the run.

    Attributes:
      store: it belongs to.
      pieces: (number among the pieces of all files, piece).
    """

    def __init__(self, store: TokenStore, pieces: Sequence[tuple[int, Piece]]):
        self.store, self.pieces = store, pieces
        self.path = store.path / pieces[0][1].file
        self.descriptor = os.open(self.path, os.O_RDONLY)
        self.size = pieces[-1][1].end
        self.verified: tuple[int, int] | None = None

    def stamp(self) -> tuple[int, int]:
        """Size and time of modification."""
        now = os.fstat(self.descriptor)
        return now.st_size, now.st_mtime_ns

    def is_at_its_path(self) -> bool:
        """Whether the folder still has this file under its name."""
        with contextlib.suppress(OSError):
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        return False


class Verification:
    """Verifies stores in the background, from its making until `close`."""

    def __init__(self, stores: Iterable[TokenStore], *, index: int = 0, processes: int = 1):
        """Starts a thread, if any of the stores has files.

        Args:
          stores: of the run, held-out ones too.
          index, processes: of this process among those that share the work.

        Raises:
          StoreChanged: a file is not there any more.
        """
        self._index, self._processes = index, processes
        self._found: str | None = None
        self._notices: collections.deque[str] = collections.deque()
        self._gone: set[pathlib.Path] = set()
        self._ended = threading.Event()
        self._files: list[_File] = []
        number = 0
        for store in stores:
            if store.opened is None:
                continue  # of arrays, which no file is behind
            for name in READ_BY_A_RUN:
                if pieces := store.pieces(name):
                    try:
                        file = _File(store, list(enumerate(pieces, number)))
                    except OSError as error:
                        raise changed(store.path / name, f": {error.strerror}") from error
                    self._files.append(file)
                    number += len(pieces)
        # Those are read through a map, where a missing page is SIGBUS.
        self._mapped = [file for file in self._files if file.path.name in (TOKENS_FILE, ENDS_FILE)]
        self._thread = threading.Thread(target=self._run, name="stores", daemon=True)
        if self._files:
            self._thread.start()

    def check(self) -> list[str]:
        """Refuse stores that have changed. Cheap enough for every step.

        Returns:
          what a user should know and was not told before.

        Raises:
          StoreChanged: names the file of the store, and the bytes.
        """
        if self._found is not None:
            raise StoreChanged(self._found)
        for file in self._mapped:
            size = file.stamp()[0]
            if size != file.size:
                raise changed(file.path, f" in size: {size:,} bytes, and {file.size:,} then")
        return [self._notices.popleft() for _ in range(len(self._notices))]

    def close(self) -> None:
        """End the thread, and close the files; not those of a disk that answers no more."""
        self._ended.set()
        if self._files:
            self._thread.join(END_SECONDS)
            if self._thread.is_alive():
                return
        for file in self._files:
            os.close(file.descriptor)
        self._files = self._mapped = []

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LOWEST_PRIORITY)
        while self._found is None and not self._ended.is_set():
            for file in self._files:
                self._look_at(file)
            self._ended.wait(LOOK_SECONDS)

    def _look_at(self, file: _File) -> None:
        try:
            if file.store.path not in self._gone and not file.is_at_its_path():
                self._gone.add(file.store.path)
                self._notices.append(
                    f"{file.store.path} was removed or replaced while the run reads it: this start "
                    f"goes on with the bytes that it had"
                )
            stamp = file.stamp()
            if stamp == file.verified:
                return
            for number, piece in file.pieces:
                if number % self._processes == self._index:
                    file.store.verify_piece(piece, file.descriptor, self._pause)
                if self._ended.is_set():
                    return
            file.verified = stamp
        except StoreChanged as error:
            self._found = str(error)
        except OSError as error:
            self._found = f"{file.path} cannot be read: {error.strerror or error}"

    def _pause(self, size: int) -> bool:
        """Wait as long as reading `size` bytes should take; whether to read on."""
        return not self._ended.wait(size / BYTES_PER_SECOND)
