"""How far the building of a store is, on standard error."""

import sys
import time


class Progress:
    """A line that is rewritten on a terminal, and written anew every ten seconds elsewhere."""

    def __init__(self, label: str, total_bytes: int):
        """Starts counting; `total_bytes` on disk, 0 if nobody knows."""
        self.label = label
        self.total_bytes = total_bytes
        self.bytes_read = self.documents = self.tokens = 0
        self.begun = time.monotonic()
        self.terminal = sys.stderr.isatty()
        self.next_line = self.begun + (0.1 if self.terminal else 10)

    def read(self, size: int) -> None:
        """`size` more bytes were taken from disk."""
        self.bytes_read += size

    def wrote(self, documents: int, tokens: int) -> None:
        """So many more documents and tokens are in the store."""
        self.documents += documents
        self.tokens += tokens
        now = time.monotonic()
        if now >= self.next_line:
            self.next_line = now + (0.1 if self.terminal else 10)
            self._show("\r" if self.terminal else "\n")

    def say(self, message: str) -> None:
        """A line of its own."""
        print(f"{self.label}: {message}", file=sys.stderr)

    def close(self) -> None:
        """The last line, with what was made."""
        self.bytes_read = self.total_bytes
        self._show("\n")

    def _show(self, end: str) -> None:
        seconds = time.monotonic() - self.begun
        part = f"{self.bytes_read / self.total_bytes:4.0%}, " if self.total_bytes else ""
        print(
            f"{self.label}: {part}{self.documents:,} documents, {self.tokens:,} tokens, "
            f"{self.tokens / max(seconds, 1e-9) / 1e6:.2f} M tokens/s",
            end=end,
            file=sys.stderr,
            flush=True,
        )
