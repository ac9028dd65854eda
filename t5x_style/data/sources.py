"""Where text comes from: declared in gin, read one document at a time."""

import dataclasses
import gzip
import io
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

import gin

from t5x_style.data.files import matching_files
from t5x_style.data.filters import Filter, filtered
from t5x_style.data.tables import array_records, hf_files, hf_rows, parquet_rows
from t5x_style.errors import Fault, UsageError, did_you_mean

FORMATS = ("jsonl", "text", "parquet", "hf", "array_record", "tfds")
# Whose records are JSON.
JSON_FORMATS = ("jsonl", "array_record")
SPLITS = ("train", "validation")
ON_BAD_RECORD = ("refuse", "skip")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Source:
    """Documents of one kind: one task of a blend, counted and evaluated by itself.

    Attributes:
      name: letters, digits, `_`, `-` and `.`; metrics carry it.
      splits: {'train': WHERE, 'validation': WHERE}; the second may be left out. WHERE is a glob of
        files; or `package:NAME` for an embedded corpus; or the folder of a split that Hugging
        Face's `save_to_disk` wrote; or a split of the TFDS dataset, such as 'train[:99%]'.
      format: 'jsonl' (one JSON object a line) or 'text' (one document a file), both plain, .gz or
        .zst; 'parquet'; 'hf' (a Hugging Face dataset on disk); 'array_record' (each record a JSON
        object); or 'tfds'.
      text_field: the field of a record that holds the text.
      id_field: the field that names a record in messages about it; None: file and line alone.
      tfds_name: 'name:1.0.0' or 'name/config:1.0.0', with format 'tfds'.
      tfds_data_dir: the folder in which that dataset was prepared.
      on_bad_record: 'refuse' (stop, naming file and line) or 'skip' (count, and go on).
      filters: what each text goes through in order, @Length() or @Rewrite(); what they drop is
        counted in the store.
    """

    name: str
    splits: Mapping[str, str]
    format: str = "jsonl"
    text_field: str = "text"
    id_field: str | None = None
    tfds_name: str | None = None
    tfds_data_dir: str | None = None
    on_bad_record: str = "refuse"
    filters: Sequence[Filter] = ()

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise UsageError(f"Source.name = {self.name!r}: letters, digits, '_', '-' and '.' only")
        self._one_of("format", self.format, FORMATS)
        self._one_of("on_bad_record", self.on_bad_record, ON_BAD_RECORD)
        for split in self.splits:
            self._one_of("splits", split, SPLITS)
        if "train" not in self.splits:
            raise UsageError(f"Source.splits of {self.name!r} has no 'train'")
        if self.format == "tfds":
            if not self.tfds_name or not self.tfds_data_dir:
                raise UsageError(
                    f"Source {self.name!r} has format 'tfds': set tfds_name and tfds_data_dir"
                )
            self.tfds_folder()
        elif self.tfds_name or self.tfds_data_dir:
            raise UsageError(f"Source {self.name!r} names a TFDS dataset: set format = 'tfds'")

    def _one_of(self, attribute: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise UsageError(
                f"Source.{attribute} of {self.name!r}: {value!r} is not one of "
                f"{', '.join(allowed)}{did_you_mean(str(value), allowed)}"
            )

    def files(self, split: str) -> list[pathlib.Path]:
        """The files of a split, sorted.

        Raises:
          UsageError: there is none.
        """
        if self.format == "tfds":
            return sorted(path for path in self.tfds_folder().iterdir() if path.is_file())
        what = f"Source.splits[{split!r}] of {self.name!r}"
        if self.format == "hf":
            return hf_files(pathlib.Path(self.splits[split]), what)
        return matching_files(self.splits[split], what)

    def fields(self) -> list[str]:
        """The fields of a record that are read."""
        return [self.text_field] + ([self.id_field] if self.id_field else [])

    def tfds_folder(self) -> pathlib.Path:
        """Where the prepared dataset lies.

        Raises:
          UsageError: no version in the name, or nothing prepared there.
        """
        name, _, version = str(self.tfds_name).partition(":")
        if not version:
            raise UsageError(
                f"Source.tfds_name = {self.tfds_name!r} of {self.name!r} names no version: "
                f"write '{name}:1.0.0'"
            )
        folder = pathlib.Path(str(self.tfds_data_dir)) / name / version
        if not (folder / "dataset_info.json").is_file():
            raise UsageError(
                f"Source {self.name!r}: no prepared TFDS dataset in {str(folder)!r} "
                f"(tfds_data_dir / tfds_name); nothing is downloaded here"
            )
        return folder


@dataclasses.dataclass(frozen=True)
class Record:
    """One record as it lies in the source.

    Attributes:
      where: file and line (or file, or file and row) for messages.
      data: a line of JSON, or the text, in bytes; of a table, its fields by name.
    """

    where: str
    data: bytes | dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes, or characters, that it holds."""
        if isinstance(self.data, bytes):
            return len(self.data)
        return sum(len(value) for value in self.data.values() if isinstance(value, str))


class BadRecord(Exception):
    """A record that holds no text that can be used; says where and why."""


def records(
    source: Source, split: str, on_read: Callable[[int], None] = lambda size: None
) -> Iterator[Record]:
    """The records of a split in the order of its files; blank lines of JSONL are none.

    Args:
      source: what to read.
      split: of `source.splits`.
      on_read: called with the bytes taken from disk (compressed, as they lie there), at most once a
        record.

    Raises:
      Fault: a file cannot be read or decompressed.
    """
    if source.format == "tfds":
        from t5x_style.data.tasks import tfds_texts

        for number, text in enumerate(tfds_texts(source, split)):
            yield Record(f"{source.tfds_name} {source.splits[split]} example {number}", text)
        return
    for path in source.files(split):
        if source.format in ("parquet", "hf"):
            rows = parquet_rows if source.format == "parquet" else hf_rows
            for number, row in enumerate(rows(path, source.fields(), on_read), start=1):
                yield Record(f"{path} row {number}", row)
            continue
        if source.format == "array_record":
            for number, data in enumerate(array_records(path, on_read), start=1):
                yield Record(f"{path} record {number}", data)
            continue
        try:
            with open(path, "rb") as raw:
                stream = _decompressed(raw, path.suffix)
                if source.format == "text":
                    yield Record(str(path), stream.read())
                    on_read(raw.tell())
                    continue
                position = 0
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield Record(f"{path}:{number}", line)
                    on_read(raw.tell() - position)
                    position = raw.tell()
        except (OSError, EOFError, zlib.error) as error:
            raise Fault(f"{path} cannot be read: {error}") from error


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        import pyarrow

        # Reads frames that follow each other, and refuses one that was cut short.
        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return raw


def text_of(source: Source, record: Record) -> str:
    """The text of a record.

    Raises:
      BadRecord: broken JSON, no such field, not a string, or not UTF-8.
    """
    if isinstance(record.data, dict):
        return _text_field(source, record.where, record.data)
    try:
        content = record.data.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(
            f"{record.where}: not UTF-8 (byte {error.start} of the record is "
            f"0x{record.data[error.start]:02x})"
        ) from None
    if source.format not in JSON_FORMATS:
        return content
    try:
        fields = json.loads(content.rstrip())
    except json.JSONDecodeError as error:
        raise BadRecord(
            f"{record.where}: broken JSON: {error.msg} (column {error.colno})"
        ) from None
    except RecursionError:
        raise BadRecord(f"{record.where}: broken JSON: nested too deeply") from None
    if not isinstance(fields, dict):
        raise BadRecord(f"{record.where}: a JSON {type(fields).__name__}, not an object")
    return _text_field(source, record.where, fields)


def _text_field(source: Source, where: str, fields: Mapping[str, Any]) -> str:
    if source.id_field is not None:
        where += f" ({source.id_field} {fields.get(source.id_field)!r})"
    if source.text_field not in fields:
        raise BadRecord(
            f"{where}: no field {source.text_field!r} (text_field of source {source.name!r}); it "
            f"has {', '.join(fields)}{did_you_mean(source.text_field, fields)}"
        )
    text = fields[source.text_field]
    if not isinstance(text, str):
        raise BadRecord(
            f"{where}: field {source.text_field!r} is a {type(text).__name__}, not a string"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(f"{where}: half a surrogate pair at character {error.start}") from None
    return text


def documents(source: Source, split: str) -> Iterator[str]:
    """The texts of a split in order, after the source's filters, empty ones left out.

    Raises:
      Fault: a bad record, unless the source says to skip those.
    """
    for record in records(source, split):
        try:
            text, _ = filtered(source.filters, text_of(source, record))
        except BadRecord as bad:
            if source.on_bad_record == "skip":
                continue
            raise refusal(source, str(bad)) from None
        if text is not None and text.strip():
            yield text


def refusal(source: Source, bad: str) -> Fault:
    """What to raise about a bad record."""
    return Fault(
        f"source {source.name!r}: {bad}. Mend it, or set on_bad_record = 'skip' to count such "
        f"records and go on"
    )
