"""Columns of Arrow tables as texts, dates and numbers. A bad value spoils its row alone.

pyarrow is imported when it is called: in the process that builds stores.
"""

import dataclasses
import datetime
import itertools
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from t5x_style.data.formats.format import MissingField, field_value, too_long
from t5x_style.errors import UsageError

# Bytes of texts that are Python objects at a time. A row with a larger text is alone.
PIECE_BYTES = 8 << 20
# Days since 1970 of the first and the last date that Python has.
EPOCH = datetime.date(1970, 1, 1).toordinal()
FIRST_DAY = datetime.date.min.toordinal() - EPOCH
LAST_DAY = datetime.date.max.toordinal() - EPOCH
UNITS_PER_DAY = {unit: 86_400 * 1000**power for power, unit in enumerate(("s", "ms", "us", "ns"))}


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table, or a field of a struct column.

    Attributes:
      path: names from the column down to the field.
      kind: the Arrow type of its values.
    """

    path: tuple[str, ...]
    kind: Any

    def __str__(self) -> str:
        return f"{'.'.join(self.path)!r} is {self.kind}"


def find_columns(path: pathlib.Path, schema: Any, fields: Sequence[str]) -> dict[str, Column]:
    """The columns that hold the fields, {field: column}.

    Args:
      path: of the file, for messages.
      schema: the Arrow schema of the file.
      fields: their names; the first is that of the text.

    Raises:
      UsageError: a field is not there, is there twice, or is of a type that is no text.
    """
    found = {}
    for number, field in enumerate(fields):
        try:
            column = field_value(_tree(schema), field)
        except MissingField as missing:
            raise UsageError(f"{path}: {missing}") from None
        if isinstance(column, Mapping):
            inner = " or ".join(repr(f"{field}.{name}") for name in itertools.islice(column, 3))
            raise UsageError(
                f"{path}: the column {field!r} is a struct: name a field of it, such as {inner}"
            )
        if schema.names.count(column.path[0]) > 1:
            raise UsageError(f"{path} has the column {column.path[0]!r} twice")
        problem = _problem(column.kind, is_text=number == 0)
        if problem:
            raise UsageError(f"{path}: the column {column}, which {problem}")
        found[field] = column
    return found


def rows_of(
    batch: Any, columns: Mapping[str, Column], max_record_bytes: int
) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The rows of a record batch: {field: value}, and what is wrong with a value, or None.

    Texts are bytes, which may not be UTF-8. Dates are strings in ISO form, in their own time zone.

    Args:
      batch: has the columns.
      columns: `find_columns` of its file.
      max_record_bytes: a row with a longer text has a problem. Python does not see the text.
    """
    problems: dict[int, str] = {}
    values = []
    for field, column in columns.items():
        found = _values(_array(batch, column), field, problems)
        values.append(_without_long(found, field, problems, max_record_bytes))
    for start, stop in _pieces(values, batch.num_rows):
        lists = [_listed(column[start:stop]) for column in values]
        for number, row in enumerate(zip(*lists, strict=True), start=start):
            yield dict(zip(columns, row, strict=True)), problems.get(number)


def _tree(fields: Any, path: tuple[str, ...] = ()) -> dict[str, Any]:
    """{name: Column, or a mapping of the fields of a struct}."""
    import pyarrow

    return {
        field.name: _tree(field.type, (*path, field.name))
        if pyarrow.types.is_struct(field.type)
        else Column((*path, field.name), field.type)
        for field in fields
    }


def _problem(kind: Any, *, is_text: bool) -> str | None:
    """Why a column of a type cannot be read; None if it can."""
    import pyarrow

    kind = _plain(pyarrow.nulls(0, kind)).type
    if _is_text(kind):
        return None
    if is_text or not (_is_date(kind) or _is_number(kind) or _is_list(kind)):
        return "is no text"
    if _is_date(kind):
        try:
            # A time zone is looked up where a value is cast.
            pyarrow.array([0], _integer(kind)).view(kind).cast(pyarrow.string())
        except pyarrow.ArrowException as error:
            return f"cannot be read here: {error}"
    return None


def _array(batch: Any, column: Column) -> Any:
    import pyarrow.compute

    name, *inner = column.path
    array = batch.column(name)
    for name in inner:
        # Unlike the field itself, this is null where the struct is null.
        array = pyarrow.compute.struct_field(array, [array.type.get_field_index(name)])
    return array


def _plain(array: Any) -> Any:
    """The array with dictionaries, runs and extensions undone."""
    import pyarrow.compute

    while True:
        if isinstance(array, pyarrow.ExtensionArray) and not _is_number(array.type):
            array = array.storage
        elif pyarrow.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pyarrow.types.is_run_end_encoded(array.type):
            array = pyarrow.compute.run_end_decode(array)
        else:
            return array


def _values(array: Any, field: str, problems: dict[int, str]) -> Any:
    """The values as a list, those of text as an array of bytes. Adds {row: problem}."""
    import pyarrow.compute

    array = _plain(array)
    if _is_text(array.type):
        # Undecoded, so that one that is not UTF-8 spoils its row alone.
        return array.cast(pyarrow.large_binary())
    if _is_date(array.type):
        return _dates(array, field, problems)
    if _is_list(array.type):
        items = iter(_listed(_values(array.flatten(), field, problems)))
        counts = pyarrow.compute.list_value_length(array).to_pylist()
        return [None if n is None else list(itertools.islice(items, n)) for n in counts]
    return array.to_pylist()


def _without_long(values: Any, field: str, problems: dict[int, str], limit: int) -> Any:
    """The values, with null for a text of more than `limit` bytes. Adds {row: problem}."""
    import pyarrow.compute

    if isinstance(values, list):
        return values
    is_long = pyarrow.compute.greater(pyarrow.compute.binary_length(values), limit)
    rows = np.flatnonzero(is_long.fill_null(False).to_numpy(zero_copy_only=False)).tolist()
    if not rows:
        return values
    problems |= {row: f"field {field!r}: {too_long(limit)}" for row in rows}
    return pyarrow.compute.if_else(is_long, pyarrow.scalar(None, values.type), values)


def _dates(array: Any, field: str, problems: dict[int, str]) -> list[str | None]:
    """Dates and times in ISO form. Python's own types lack nanoseconds and years above 9999."""
    import pyarrow.compute

    kind = array.type
    numbers = array.view(_integer(kind)).fill_null(0).to_numpy(zero_copy_only=False)
    days = numbers // _units_per_day(kind)
    outside = (days < FIRST_DAY) | (days > LAST_DAY)
    if getattr(kind, "unit", None) == "ns":
        # The offset of a time zone may carry nanoseconds past 64 bits.
        kind, numbers = pyarrow.timestamp("us", kind.tz), numbers // 1000
    missing = array.is_null().to_numpy(zero_copy_only=False) | outside
    whole = pyarrow.array(numbers, _integer(kind), mask=missing).view(kind)
    text = whole.cast(pyarrow.string())
    # The offset of a time zone may also carry a time out of the calendar.
    carried = pyarrow.compute.match_substring_regex(text, "^(0000|[0-9]{5})").fill_null(False)
    outside |= carried.to_numpy(zero_copy_only=False)
    for row in np.flatnonzero(outside).tolist():
        problems[row] = (
            f"field {field!r}: {array.type} {array.view(_integer(array.type))[row]} is no date of "
            f"the years 1 to 9999"
        )
    text = pyarrow.compute.replace_substring(text, " ", "T", max_replacements=1)
    for pattern, correct in ((r"\.0+(Z|[+-].*)?$", r"\1"), (r"([+-]\d\d)(\d\d)$", r"\1:\2")):
        text = pyarrow.compute.replace_substring_regex(text, pattern, correct)
    return text.to_pylist()


def _pieces(values: Sequence[Any], rows: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with at most `PIECE_BYTES` of texts, but for the first text of each."""
    import pyarrow.compute

    sizes = np.zeros(rows, np.int64)
    for column in values:
        if isinstance(column, pyarrow.Array):
            sizes += pyarrow.compute.binary_length(column).fill_null(0).to_numpy()
    pieces = np.cumsum(sizes) // PIECE_BYTES
    borders = (np.flatnonzero(np.diff(pieces)) + 1).tolist()
    return itertools.pairwise([0, *borders, rows])


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else values.to_pylist()


def _integer(kind: Any) -> Any:
    """The integers that dates of a type are stored as."""
    import pyarrow

    return pyarrow.int32() if pyarrow.types.is_date32(kind) else pyarrow.int64()


def _units_per_day(kind: Any) -> int:
    import pyarrow

    if pyarrow.types.is_date32(kind):
        return 1
    return UNITS_PER_DAY["ms" if pyarrow.types.is_date64(kind) else kind.unit]


def _is_text(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (
        *(types.is_string, types.is_large_string, types.is_string_view),
        *(types.is_binary, types.is_large_binary, types.is_binary_view),
        *(types.is_fixed_size_binary, types.is_null),
    )
    return any(test(kind) for test in tests)


def _is_date(kind: Any) -> bool:
    import pyarrow

    return pyarrow.types.is_date(kind) or pyarrow.types.is_timestamp(kind)


def _is_number(kind: Any) -> bool:
    """Whether Python has every value of a type, and writes it as it is meant."""
    import pyarrow

    tests = ("integer", "floating", "decimal", "boolean")
    return isinstance(kind, pyarrow.UuidType) or any(
        getattr(pyarrow.types, f"is_{test}")(kind) for test in tests
    )


def _is_list(kind: Any) -> bool:
    import pyarrow.types as types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    return any(test(kind) for test in tests) and (
        _is_text(kind.value_type) or _is_number(kind.value_type)
    )
