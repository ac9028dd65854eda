"""The progress of building stores, on standard error."""

import os
import pathlib
import sys
import threading
import time
from collections.abc import Sequence

from t5x_style.data.building.parts import Job


class Progress:
    """A line that is rewritten on a terminal, and written again every ten seconds elsewhere.

    It reads the sizes of the parts' files. So the workers of any engine need not report.
    """

    def __init__(self, jobs: Sequence[Job], token_bytes: int):
        """For the parts of `jobs`; `token_bytes` is the size of an id."""
        self.sizes = {job.file("json"): job.part.size for job in jobs if job.part is not None}
        tokenised = {pathlib.Path(job.tokenised) for job in jobs if job.tokenised is not None}
        self.folders = sorted({path.parent for path in self.sizes} | tokenised)
        self.token_bytes = token_bytes
        self.whole: dict[pathlib.Path, int] = {}
        self.done: set[pathlib.Path] = set()
        self.running_bytes = 0
        self.begun = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Progress":
        if self.sizes:
            self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed.set()
        if self.sizes:
            self.thread.join()

    def look(self) -> None:
        """Counts the files that are there. Called before the files of parts are removed."""
        with self.lock:
            self.running_bytes = 0
            for folder in self.folders:
                try:
                    entries = list(os.scandir(folder))
                except FileNotFoundError:  # its store is in place
                    continue
                for entry in entries:
                    path = folder / entry.name
                    if path in self.sizes:
                        self.done.add(path)
                    elif path.suffix == ".tokens" and path.with_suffix(".json") in self.sizes:
                        self.whole[path] = path.stat().st_size
                    elif path.suffix == ".tokens" and entry.name.startswith("."):
                        try:
                            self.running_bytes += path.stat().st_size
                        except FileNotFoundError:  # it has just got its name
                            continue

    def line(self) -> str:
        """Share of the bytes, tokens, tokens a second, time left."""
        seconds = max(time.monotonic() - self.begun, 1e-9)
        total = sum(self.sizes.values())
        read = sum(self.sizes[path] for path in self.done)
        tokens = (sum(self.whole.values()) + self.running_bytes) // self.token_bytes
        left = f", {_duration(seconds * (total - read) / read)} left" if read else ""
        return (
            f"building: {read / max(total, 1):4.0%} of {total / 1e6:,.0f} MB, {tokens:,} tokens, "
            f"{tokens / seconds / 1e6:.2f} M tokens/s{left}"
        )

    def _watch(self) -> None:
        while not self.closed.wait(1 if self.terminal else 10):
            self.look()
            end = "\r" if self.terminal else "\n"
            print(self.line(), end=end, file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 100 else f"{minutes // 60} h {minutes % 60:02} min"
