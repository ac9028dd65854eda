"""The console line of a training run, one per logged step."""

import contextlib
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from t5x_style.quantities import count, duration, mean_of_steps

# The law in the line if the user has none: the refit of Chinchilla's own points.
AUDIT_LAW = "besiroglu"


def warn(text: str) -> None:
    """Prints a warning on standard error, if that can be written."""
    with contextlib.suppress(OSError):
        print(f"warning: {text}", file=sys.stderr, flush=True)


class Progress:
    """Prints training lines. On a terminal, a line overwrites the one before.

    What cannot be printed is left out: the output may lie on a disk that is full.
    """

    def __init__(
        self, total_tokens: int, stream: TextIO | None = None, *, own_law: str | None = None
    ):
        """Args:
        total_tokens: planned tokens of the run.
        stream: standard output if None.
        own_law: the name of the user's own fit. The line then shows its efficiency instead of a
          published law's, and the loss that it expects.
        """
        self._total = total_tokens
        self._own_law = own_law
        self._stream = stream if stream is not None else sys.stdout
        self._tty = self._stream.isatty()
        self._first: tuple[float, float] | None = None
        self._line_is_open = False

    def show(self, line: Mapping[str, float | None]) -> None:
        """Prints one training line (the keys of metrics.jsonl)."""
        text = self._text(line)
        if self._tty:
            width = shutil.get_terminal_size().columns
            self._print("\r" + text[: width - 1] + "\x1b[K")
            self._line_is_open = True
        else:
            self._print(text + "\n")

    def note(self, text: str) -> None:
        """Prints a message on a line of its own."""
        self.close()
        self._print(text + "\n")

    def close(self) -> None:
        """Ends the open line of a terminal, if there is one."""
        if self._line_is_open:
            self._print("\n")
            self._line_is_open = False

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def _text(self, line: Mapping[str, float | None]) -> str:
        tokens = line["tokens"] or 0
        loss = line.get("loss")
        loss_text = f"loss {'not finite' if loss is None else format(loss, '.4f')}"
        if which := mean_of_steps(line["step"] or 0, line.get("loss_steps")):
            loss_text += f", {which}"
        if self._own_law is not None:
            expected = line.get(f"chinchilla/{self._own_law}/expected_loss")
            loss_text += "" if expected is None else f" ({self._own_law} expects {expected:.4f})"
        parts = [
            f"step {line['step']:,}",
            f"{count(tokens)} of {count(self._total)} tokens ({tokens / self._total:.1%})",
            loss_text,
        ]
        shares = [
            f"{key.removeprefix('share/')} {value:.2%}"
            for key, value in line.items()
            if key.startswith("share/") and value is not None
        ]
        if shares:
            parts.append(" ".join(shares))
        law = self._own_law or AUDIT_LAW
        per_param = line.get("tokens_per_param")
        efficiency = line.get(f"chinchilla/{law}/compute_efficiency")
        if per_param is not None and efficiency is not None:
            audit = f"{per_param:.1f} tokens per parameter, efficiency {efficiency:.0%}"
            gain = line.get(f"chinchilla/{law}/remaining_gain")
            remaining = line.get("remaining_tokens")
            if gain is not None and remaining:
                rest = remaining / (tokens + remaining)
                audit += f", {gain:.3g} nats to gain in the remaining {rest:.1%}"
            parts.append(f"{audit} ({law})")
        speed = line.get("tokens_per_second")
        if speed is not None:
            parts.append(f"{count(speed)} tokens/s")
        for key, name in (("mfu_full", "full"), ("mfu_causal", "causal")):
            value = line.get(key)
            if value is not None:
                parts.append(f"MFU {name} {value:.1%}")
        left = self._seconds_left(tokens, speed)
        if left is not None:
            parts.append(f"{duration(left)} left")
        return " | ".join(parts)

    def _seconds_left(self, tokens: float, tokens_per_second: float | None) -> float | None:
        """By the mean speed since the first line, which includes evaluations and checkpoints."""
        now = time.monotonic()
        if self._first is None:
            self._first = (now, tokens)
        elapsed, done = now - self._first[0], tokens - self._first[1]
        if done > 0 and elapsed > 0:
            tokens_per_second = done / elapsed
        if not tokens_per_second:
            return None
        return max(0.0, self._total - tokens) / tokens_per_second
