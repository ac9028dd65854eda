"""Plain text for a terminal: aligned tables, and cells that several tables share."""

from collections.abc import Iterable, Sequence


def table(rows: Iterable[Sequence[object]], headers: Sequence[str] | None = None) -> str:
    """Rows as aligned columns, without a newline at the end.

    A column is flush right when every cell in it begins with a digit or a sign. Integers get
    thousands separators, floats four significant digits. None becomes '-', and strings are kept.

    Raises:
      ValueError: if the rows (and headers) are not all of one length.
    """
    body = [[_cell(value) for value in row] for row in rows]
    lines = ([list(headers)] if headers is not None else []) + body
    if not lines:
        return ""
    if len({len(line) for line in lines}) != 1:
        raise ValueError(f"a table needs rows of one length, not {[len(line) for line in lines]}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rightward = [all(map(_numeric, column)) for column in zip(*body, strict=True)]
    # A table of headers alone has no cells to look at.
    rightward = rightward or [False] * len(widths)
    if headers is not None:
        lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, rightward, strict=True)
        ).rstrip()
        for line in lines
    )


def dtypes_text(compute_dtype: str, matmul_dtype: str | None) -> str:
    """The dtypes of a step. A share of the peak is always one of bfloat16's peak."""
    if matmul_dtype is None:
        return compute_dtype
    return f"{compute_dtype}, the blocks' weights in {matmul_dtype} (MFU: of the bfloat16 peak)"


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool | str):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _numeric(cell: str) -> bool:
    return cell[:1] in "0123456789+-.<>~" or cell in ("nan", "inf")
