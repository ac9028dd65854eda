"""The formats 'parquet' and 'hf': tables, of which the named columns alone are read.

pyarrow is imported when it is called: in the process that builds stores.
"""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from t5x_style.data.formats.format import FileFormat, OnRead, Part, Record, Split
from t5x_style.errors import Fault, UsageError, did_you_mean
from t5x_style.files import local_path

HF_STATE_FILE = "state.json"
# Rows that are read at a time: they hold whole documents.
ROWS_AT_ONCE = 1024
BUFFER_BYTES = 1 << 20


class Parquet(FileFormat):
    """Parquet files, cut between row groups."""

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """Row groups, and bytes of the file in proportion to their rows."""
        with _parquet(path) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return list(enumerate(_sizes(path, rows), start=1))

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The rows of the row groups of a part.

        Raises:
          UsageError: the file has no such column.
          Fault: the file is broken, or no Parquet.
        """
        path = pathlib.Path(part.path)
        with _parquet(path) as file:
            _check_columns(path, file.schema_arrow.names, split.fields)
            groups = list(range(file.num_row_groups)[part.start : part.stop])
            size, total = path.stat().st_size, file.metadata.num_rows
            number = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
            columns = list(split.fields)
            for batch in file.iter_batches(ROWS_AT_ONCE, row_groups=groups, columns=columns):
                before = number
                for row in _as_bytes(batch).to_pylist():
                    number += 1
                    yield Record(f"{path} row {number}", row)
                on_read(size * number // total - size * before // total)


class HuggingFace(FileFormat):
    """A folder that `datasets.Dataset.save_to_disk` wrote: Arrow streams, cut between batches."""

    def files(self, split: Split) -> list[pathlib.Path]:
        """The Arrow files of the dataset, in its order.

        The folder is that of one split. Each split of a DatasetDict has a folder of its own.

        Raises:
          UsageError: there is no such dataset.
          Fault: it is not whole.
        """
        folder = local_path(split.where, split.binding)
        state = folder / HF_STATE_FILE
        if not state.is_file():
            splits = sorted(path.parent.name for path in folder.glob(f"*/{HF_STATE_FILE}"))
            hint = f"; it holds the splits {', '.join(splits)}: name one of them" if splits else ""
            raise UsageError(
                f"{split.binding} = {str(folder)!r} is no dataset that save_to_disk wrote (it has "
                f"no {HF_STATE_FILE}){hint}"
            )
        try:
            listed = json.loads(state.read_text())["_data_files"]
            files = [folder / entry["filename"] for entry in listed]
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(
                f"{state} does not list the files of a dataset: {type(error).__name__}: {error}"
            ) from error
        for file in files:
            if not file.is_file():
                raise Fault(
                    f"{state} names {file.name}, which is not there: the dataset is not whole"
                )
        return files

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """Batches, and bytes of the file in proportion to their rows."""
        return list(enumerate(_batch_sizes(path), start=1))

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The rows of the batches of a part.

        Raises:
          UsageError: the file has no such column.
          Fault: the file is broken, or no Arrow stream.
        """
        path = pathlib.Path(part.path)
        sizes = _batch_sizes(path)
        with _arrow(path) as stream:
            _check_columns(path, stream.schema.names, split.fields)
            number = 0
            for position, batch in enumerate(stream):
                if part.stop is not None and position >= part.stop:
                    return
                if position < part.start:
                    # The file is mapped: a batch that is passed over is not read.
                    number += batch.num_rows
                    continue
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    piece = batch.select(list(split.fields)).slice(start, ROWS_AT_ONCE)
                    for row in _as_bytes(piece).to_pylist():
                        number += 1
                        yield Record(f"{path} row {number}", row)
                on_read(sizes[position])


def _batch_sizes(path: pathlib.Path) -> list[int]:
    with _arrow(path) as stream:
        return _sizes(path, [batch.num_rows for batch in stream])


def _sizes(path: pathlib.Path, rows: Sequence[int]) -> list[int]:
    """The bytes of a file, divided in proportion to the rows of its pieces."""
    ends = np.cumsum(rows) * path.stat().st_size // max(1, sum(rows))
    return np.diff(ends, prepend=0).tolist()


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


@contextlib.contextmanager
def _arrow(path: pathlib.Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as raw, pyarrow.ipc.open_stream(raw) as stream:
            yield stream
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise Fault(f"{path} cannot be read as an Arrow stream: {error}") from error


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
