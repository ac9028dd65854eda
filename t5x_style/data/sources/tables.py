"""Records of files that are not lines of text: Parquet, Hugging Face datasets on disk, ArrayRecord.

The libraries that read them are imported when they are called: in the process that builds stores.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from t5x_style.errors import Fault, UsageError, did_you_mean

HF_STATE_FILE = "state.json"
ARRAY_RECORDS = ("array_record", "array_record_example")
# Records that are read at a time: rows of a table hold whole documents.
ROWS_AT_ONCE = 1024
BUFFER_BYTES = 1 << 20


def cuts(kind: str, path: pathlib.Path) -> list[tuple[int, int]]:
    """Where a file may be cut: [(end, bytes up to there from the cut before)], ends as in `rows`.

    Raises:
      Fault: it is of another kind, or broken.
    """
    if kind == "parquet":
        with _parquet(path) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    elif kind == "hf":
        with _arrow(path) as stream:
            rows = [batch.num_rows for batch in stream]
    else:
        with _array_record(path) as reader:
            total = reader.num_records()
        rows = [min(ROWS_AT_ONCE, total - at) for at in range(0, total, ROWS_AT_ONCE)]
    ends = np.cumsum(rows)
    units = ends if kind in ARRAY_RECORDS else np.arange(1, len(rows) + 1)
    bytes_before = ends * path.stat().st_size // max(1, sum(rows))
    sizes = np.diff(bytes_before, prepend=0)
    return list(zip(units.tolist(), sizes.tolist(), strict=True))


def rows(
    kind: str,
    path: pathlib.Path,
    fields: Sequence[str],
    start: int,
    stop: int | None,
    on_read: Callable[[int], None],
) -> Iterator[tuple[int, Any]]:
    """The rows or records of a piece of a file in order, numbered from 1 within the file.

    Args:
      kind: 'parquet', 'hf' or one of `ARRAY_RECORDS`.
      path: the file.
      fields: columns to read, of a table.
      start, stop: row groups of Parquet, batches of a Hugging Face dataset, records of ArrayRecord;
        stop None: to the end.
      on_read: called with bytes of the file, in proportion to the rows that were read.

    Yields:
      (number, {field: value} or, of ArrayRecord, bytes).

    Raises:
      UsageError: the file has no such column.
      Fault: it is of another kind, or broken.
    """
    if kind == "parquet":
        yield from _parquet_rows(path, fields, start, stop, on_read)
    elif kind == "hf":
        yield from _hf_rows(path, fields, start, stop, on_read)
    else:
        yield from _records(path, start, stop, on_read)


@contextlib.contextmanager
def _parquet(path: pathlib.Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Read as it is needed: the default holds a whole row group, which may be the whole file.
        with pyarrow.parquet.ParquetFile(
            path, page_checksum_verification=True, pre_buffer=False, buffer_size=BUFFER_BYTES
        ) as file:
            yield file
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Fault(f"{path} cannot be read as Parquet: {error}") from error


def _parquet_rows(
    path: pathlib.Path,
    fields: Sequence[str],
    start: int,
    stop: int | None,
    on_read: Callable[[int], None],
) -> Iterator[tuple[int, dict[str, Any]]]:
    with _parquet(path) as file:
        _check_columns(path, file.schema_arrow.names, fields)
        groups = range(file.num_row_groups)[start:stop]
        size, total = path.stat().st_size, file.metadata.num_rows
        number = sum(file.metadata.row_group(i).num_rows for i in range(start))
        for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), columns=list(fields)):
            before = number
            for row in _as_bytes(batch).to_pylist():
                number += 1
                yield number, row
            on_read(size * number // total - size * before // total)


def hf_files(folder: pathlib.Path, what: str) -> list[pathlib.Path]:
    """The Arrow files of a dataset that `datasets.Dataset.save_to_disk` wrote, in its order.

    Args:
      folder: of one split; in that of a DatasetDict, each split has a folder of its own.
      what: who asks, for the message.

    Raises:
      UsageError: no such dataset there.
      Fault: it is not whole.
    """
    state = folder / HF_STATE_FILE
    if not state.is_file():
        splits = sorted(path.parent.name for path in folder.glob(f"*/{HF_STATE_FILE}"))
        hint = f"; it holds the splits {', '.join(splits)}: name one of them" if splits else ""
        raise UsageError(
            f"{what} = {str(folder)!r} is no dataset that save_to_disk wrote (it has no "
            f"{HF_STATE_FILE}){hint}"
        )
    try:
        files = [folder / each["filename"] for each in json.loads(state.read_text())["_data_files"]]
    except (ValueError, KeyError, TypeError) as error:
        raise Fault(
            f"{state} does not list the files of a dataset: {type(error).__name__}: {error}"
        ) from error
    for file in files:
        if not file.is_file():
            raise Fault(f"{state} names {file.name}, which is not there: the dataset is not whole")
    return files


@contextlib.contextmanager
def _arrow(path: pathlib.Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as raw, pyarrow.ipc.open_stream(raw) as stream:
            yield stream
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Fault(f"{path} cannot be read as an Arrow stream: {error}") from error


def _hf_rows(
    path: pathlib.Path,
    fields: Sequence[str],
    start: int,
    stop: int | None,
    on_read: Callable[[int], None],
) -> Iterator[tuple[int, dict[str, Any]]]:
    sizes = [size for _, size in cuts("hf", path)]
    with _arrow(path) as stream:
        _check_columns(path, stream.schema.names, fields)
        number = 0
        for position, batch in enumerate(stream):
            if stop is not None and position >= stop:
                return
            if position < start:
                # A batch of a file that is mapped is not read by being passed.
                number += batch.num_rows
                continue
            for part in range(0, batch.num_rows, ROWS_AT_ONCE):
                piece = batch.select(list(fields)).slice(part, ROWS_AT_ONCE)
                for row in _as_bytes(piece).to_pylist():
                    number += 1
                    yield number, row
            on_read(sizes[position])


@contextlib.contextmanager
def _array_record(path: pathlib.Path) -> Iterator[Any]:
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        yield reader
        # A broken file passes for one without records; closing it says what was wrong.
        reader.close()
    except (ValueError, RuntimeError, IndexError) as error:
        raise Fault(f"{path} cannot be read as ArrayRecord: {error}") from error


def _records(
    path: pathlib.Path, start: int, stop: int | None, on_read: Callable[[int], None]
) -> Iterator[tuple[int, bytes]]:
    with _array_record(path) as reader:
        size, total = path.stat().st_size, reader.num_records()
        end = total if stop is None else stop
        for first in range(start, end, ROWS_AT_ONCE):
            last = min(first + ROWS_AT_ONCE, end)
            yield from enumerate(reader.read(first, last), start=first + 1)
            on_read(size * last // total - size * first // total)


def _as_bytes(batch: Any) -> Any:
    """The batch with its texts undecoded, so that one that is not UTF-8 spoils its row alone."""
    import pyarrow

    for i, field in enumerate(batch.schema):
        if pyarrow.types.is_string(field.type) or pyarrow.types.is_large_string(field.type):
            column = batch.column(i).cast(pyarrow.large_binary())
            batch = batch.set_column(i, field.name, column)
    return batch


def _check_columns(path: pathlib.Path, columns: Sequence[str], fields: Sequence[str]) -> None:
    for field in fields:
        if field not in columns:
            raise UsageError(
                f"{path} has no column {field!r}; it has {', '.join(columns)}"
                f"{did_you_mean(field, columns)}"
            )
