"""Records of files that are not lines of text: Parquet, Hugging Face datasets on disk, ArrayRecord.

The libraries that read them are imported when they are called: in the process that builds stores.
"""

import json
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from t5x_style.errors import Fault, UsageError, did_you_mean

HF_STATE_FILE = "state.json"
# Records that are read at a time: rows of a table hold whole documents.
ROWS_AT_ONCE = 1024


def parquet_rows(
    path: pathlib.Path, fields: Sequence[str], on_read: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file in order, the columns `fields` alone.

    Args:
      path: the file.
      fields: columns to read.
      on_read: called with bytes of the file, in proportion to the rows that were read.

    Raises:
      UsageError: the file has no such column.
      Fault: it is not Parquet, or broken.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow.names, fields)
            size, total, rows, told = path.stat().st_size, file.metadata.num_rows, 0, 0
            for batch in file.iter_batches(ROWS_AT_ONCE, columns=list(fields)):
                yield from batch.to_pylist()
                rows += batch.num_rows
                on_read(size * rows // total - told)
                told = size * rows // total
    except (pyarrow.ArrowException, OSError) as error:
        raise Fault(f"{path} cannot be read as Parquet: {error}") from error


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


def hf_rows(
    path: pathlib.Path, fields: Sequence[str], on_read: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """The rows of one Arrow file of a Hugging Face dataset; as `parquet_rows`."""
    import pyarrow
    import pyarrow.ipc

    try:
        with pyarrow.memory_map(str(path)) as raw, pyarrow.ipc.open_stream(raw) as stream:
            _check_columns(path, stream.schema.names, fields)
            told = 0
            for batch in stream:
                for part in range(0, batch.num_rows, ROWS_AT_ONCE):
                    yield from batch.select(list(fields)).slice(part, ROWS_AT_ONCE).to_pylist()
                on_read(raw.tell() - told)
                told = raw.tell()
    except (pyarrow.ArrowException, OSError) as error:
        raise Fault(f"{path} cannot be read as an Arrow stream: {error}") from error


def array_records(path: pathlib.Path, on_read: Callable[[int], None]) -> Iterator[bytes]:
    """The records of an ArrayRecord file in order, as bytes; `on_read` as in `parquet_rows`.

    Raises:
      Fault: it is not ArrayRecord, or broken.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        reader = ArrayRecordReader(str(path))
        size, total, told = path.stat().st_size, reader.num_records(), 0
        for start in range(0, total, ROWS_AT_ONCE):
            end = min(start + ROWS_AT_ONCE, total)
            yield from reader.read(start, end)
            on_read(size * end // total - told)
            told = size * end // total
        # A broken file passes for one without records; closing it says what was wrong.
        reader.close()
    except (ValueError, RuntimeError, IndexError) as error:
        raise Fault(f"{path} cannot be read as ArrayRecord: {error}") from error


def _check_columns(path: pathlib.Path, columns: Sequence[str], fields: Sequence[str]) -> None:
    for field in fields:
        if field not in columns:
            raise UsageError(
                f"{path} has no column {field!r}; it has {', '.join(columns)}"
                f"{did_you_mean(field, columns)}"
            )
