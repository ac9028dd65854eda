"""Numbers as text for people, and the loss in a unit that does not depend on the tokenizer."""

import math

SECONDS_PER_DAY = 86_400
GIB = 2**30


def count(value: float) -> str:
    """A number of parameters or tokens: 812, 13.1K, 1.85M, 50.6B, 1.40T."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        # 999,950 is 1.00M, not 1000K.
        if abs(value) >= size * 0.9995:
            scaled = value / size
            digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
            return f"{scaled:.{digits}f}{suffix}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time: 0.21 s, 45 s, 3 min 20 s, 2 h 05 min, 52.4 d."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if seconds < 48 * 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{seconds / SECONDS_PER_DAY:.1f} d"


def byte_count(value: float) -> str:
    """A number of bytes: 512 B, 1.5 KiB, 95.7 GiB."""
    for size, unit in ((2**40, "TiB"), (GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size:
            scaled = value / size
            # From 1000 on, three digits would become a power of ten.
            return f"{scaled:.3g} {unit}" if scaled < 999.5 else f"{scaled:.0f} {unit}"
    return f"{value:.0f} B"


def scientific(value: float) -> str:
    """A number of FLOPs: 1.73e23."""
    return f"{value:.2e}".replace("e+", "e")


def bits_per_byte(nats: float, size: float) -> float:
    """A loss per byte of text, which can be compared between tokenizers.

    Args:
      nats: the loss, summed over the tokens of the text.
      size: bytes of the text. With characters instead, the result is bits per character.

    Returns:
      bits; NaN for tokens that stand for no text.
    """
    return nats / (size * math.log(2)) if size else math.nan


def mean_of_steps(last: float, steps: float | None) -> str:
    """What a logged loss is: `mean of steps 91-100` for the ten steps up to step 100.

    Returns:
      Empty for the loss of one step, and for a line of an older version, which has no `loss_steps`.
    """
    return "" if not steps or steps == 1 else f"mean of steps {last - steps + 1:,.0f}-{last:,.0f}"
