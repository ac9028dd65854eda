"""Numbers as people read them, and the loss in the unit that tokenizers cannot move."""

import math


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
    return f"{seconds / 86400:.1f} d"


def scientific(value: float) -> str:
    """A number of FLOPs: 1.73e23."""
    return f"{value:.2e}".replace("e+", "e")


def bits_per_byte(nats: float, size: float) -> float:
    """A summed loss over the text that it was about: comparable between tokenizers.

    Args:
      nats: summed over the text's tokens.
      size: of the text, in bytes (in characters, it is bits per character).
    """
    return nats / (size * math.log(2))
