"""The formats 'parquet' and 'hf': tables, of which the named columns alone are read.

pyarrow is imported when it is called: in the process that builds stores.
"""

import abc
import contextlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from t5x_style.data.formats.columns import PIECE_BYTES, Column, find_columns, rows_of
from t5x_style.data.formats.files import unique
from t5x_style.data.formats.format import FileFormat, OnRead, Part, Record, Split
from t5x_style.errors import Fault, UsageError
from t5x_style.files import local_path

HF_STATE_FILE = "state.json"
# Rows that are read at a time: they hold whole documents.
ROWS_AT_ONCE = 256
BUFFER_BYTES = 1 << 20


class Table(FileFormat):
    """Files of columns. A file without the columns of a source is refused before any is read."""

    @abc.abstractmethod
    def schema(self, path: pathlib.Path) -> Any:
        """The Arrow schema of a file."""

    def parts(self, split: Split, part_bytes: int) -> list[Part]:
        """The parts of each file.

        Raises:
          UsageError: a file lacks a column, or its type is no text.
          Fault: a file is broken, or of another format.
        """
        for path in self.files(split):
            find_columns(path, self.schema(path), split.fields)
        return super().parts(split, part_bytes)


class Parquet(Table):
    """Parquet files, cut between row groups."""

    suffixes = (".parquet",)

    def schema(self, path: pathlib.Path) -> Any:
        """From the end of the file."""
        with _parquet(path) as file:
            return file.schema_arrow

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """Row groups, and bytes of the file in proportion to their rows."""
        with _parquet(path) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        return list(enumerate(_sizes(path, rows), start=1))

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The rows of the row groups of a part.

        Raises:
          UsageError: the file lacks a column, or its type is no text.
          Fault: the file is broken, or no Parquet.
        """
        path = pathlib.Path(part.path)
        with _parquet(path) as file:
            columns = find_columns(path, file.schema_arrow, split.fields)
            groups = list(range(file.num_row_groups)[part.start : part.stop])
            size, total = path.stat().st_size, file.metadata.num_rows
            number = sum(file.metadata.row_group(i).num_rows for i in range(part.start))
            batches = file.iter_batches(
                _rows_at_once(file.metadata, groups, columns.values()),
                row_groups=groups,
                columns=[".".join(column.path) for column in columns.values()],
            )
            for batch in batches:
                before = number
                for row, problem in rows_of(batch, columns, split.max_record_bytes):
                    number += 1
                    yield Record(f"{path} row {number}", row, problem=problem)
                on_read(size * number // total - size * before // total)


class HuggingFace(Table):
    """A folder that `datasets.Dataset.save_to_disk` wrote: Arrow streams, cut between batches."""

    def files(self, split: Split) -> list[pathlib.Path]:
        """The Arrow files of the datasets, in their order.

        A folder is that of one split. Each split of a DatasetDict has a folder of its own.

        Raises:
          UsageError: there is no such dataset.
          Fault: it is not whole.
        """
        return unique(file for place in split.places for file in self._files(place, split))

    def _files(self, place: str, split: Split) -> list[pathlib.Path]:
        folder = local_path(place, split.binding)
        state = folder / HF_STATE_FILE
        if not state.is_file():
            splits = sorted(path.parent.name for path in folder.glob(f"*/{HF_STATE_FILE}"))
            hint = f"; it holds the splits {', '.join(splits)}: name one of them" if splits else ""
            raise UsageError(
                f"{split.binding} = {str(folder)!r} is no dataset that save_to_disk wrote (it has "
                f"no {HF_STATE_FILE}){hint}"
            )
        try:
            listed = json.loads(state.read_text())
            files = [folder / entry["filename"] for entry in listed["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(
                f"{state} does not list the files of a dataset: {type(error).__name__}: {error}"
            ) from error
        if listed.get("_indices_data_files"):
            raise UsageError(
                f"{split.binding} = {str(folder)!r}: an older version of datasets selected rows of "
                f"it without copying them: load it, and save flatten_indices() of it"
            )
        for file in files:
            if not file.is_file():
                raise Fault(
                    f"{state} names {file.name}, which is not there: the dataset is not whole"
                )
        return files

    def schema(self, path: pathlib.Path) -> Any:
        """From the start of the file."""
        with _arrow(path) as stream:
            return stream.schema

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """Batches, and bytes of the file in proportion to their rows."""
        return list(enumerate(_batch_sizes(path), start=1))

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The rows of the batches of a part.

        Raises:
          UsageError: the file lacks a column, or its type is no text.
          Fault: the file is broken, or no Arrow stream.
        """
        path = pathlib.Path(part.path)
        sizes = _batch_sizes(path)
        with _arrow(path) as stream:
            columns = find_columns(path, stream.schema, split.fields)
            number = 0
            for position, batch in enumerate(stream):
                if part.stop is not None and position >= part.stop:
                    return
                if position < part.start:
                    # The file is mapped: a batch that is passed over is not read.
                    number += batch.num_rows
                    continue
                for start in range(0, batch.num_rows, ROWS_AT_ONCE):
                    piece = batch.slice(start, ROWS_AT_ONCE)
                    for row, problem in rows_of(piece, columns, split.max_record_bytes):
                        number += 1
                        yield Record(f"{path} row {number}", row, problem=problem)
                on_read(sizes[position])


def _batch_sizes(path: pathlib.Path) -> list[int]:
    with _arrow(path) as stream:
        return _sizes(path, [batch.num_rows for batch in stream])


def _sizes(path: pathlib.Path, rows: Sequence[int]) -> list[int]:
    """The bytes of a file, divided in proportion to the rows of its pieces."""
    ends = np.cumsum(rows) * path.stat().st_size // max(1, sum(rows))
    return np.diff(ends, prepend=0).tolist()


def _rows_at_once(metadata: Any, groups: Sequence[int], columns: Iterable[Column]) -> int:
    """Rows of a batch: their texts are `PIECE_BYTES` or less, by the mean of a row group."""
    names = [".".join(column.path) for column in columns]
    largest = 1.0
    for group in map(metadata.row_group, groups):
        chunks = map(group.column, range(group.num_columns))
        used = (chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema in names)
        largest = max(largest, sum(used) / max(1, group.num_rows))
    return max(1, min(ROWS_AT_ONCE, int(PIECE_BYTES / largest)))


@contextlib.contextmanager
def _parquet(path: pathlib.Path) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet

    try:
        # Read as it is needed: the default holds a whole row group, which may be the whole file.
        with pyarrow.parquet.ParquetFile(
            path,
            page_checksum_verification=True,
            pre_buffer=False,
            buffer_size=BUFFER_BYTES,
            # Spark's. In nanoseconds, the default, a date after 2262 would become another one.
            coerce_int96_timestamp_unit="us",
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
