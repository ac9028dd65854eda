"""Records of a source: cut into parts that are read each by itself, one document at a time."""

import dataclasses
import datetime
import functools
import gzip
import io
import itertools
import json
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast

from t5x_style.data.sources import tables
from t5x_style.data.sources.filters import filtered
from t5x_style.data.sources.source import JSON_FORMATS, Source
from t5x_style.data.sources.tf_example import BrokenExample, example_fields
from t5x_style.errors import Fault, did_you_mean

# Large enough that a part costs nothing to begin, small enough that many workers share a file.
PART_BYTES = 32 << 20
BUFFER_BYTES = 1 << 20
COMPRESSED = (".gz", ".zst")
ISO_DATE = re.compile(r"\d{4}(-\d\d(-\d\d)?)?(?![\d-])")


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a split that one worker reads by itself.

    Attributes:
      path: its file, the first of its text files, or the folder of a TFDS dataset.
      start, stop: which of its bytes (of lines), row groups, batches or records, or which of the
        split's text files; stop None: to the end.
      size: bytes, as they lie on disk.
    """

    path: str
    start: int
    stop: int | None
    size: int


@dataclasses.dataclass(frozen=True)
class Beginning:
    """A place in a file of lines from which on they were counted.

    Attributes:
      path: the file.
      offset: the byte at which a line begins.
    """

    path: str
    offset: int

    @functools.cached_property
    def lines_before(self) -> int:
        """Lines that end before; the file is read for it, once for all records of a part."""
        count, left = 0, self.offset
        with open(self.path, "rb") as file:
            while left > 0 and (block := file.read(min(left, BUFFER_BYTES))):
                count += block.count(b"\n")
                left -= len(block)
        return count


@dataclasses.dataclass(frozen=True)
class Record:
    """One record as it lies in the source.

    Attributes:
      where: file and byte (or line, row, record), cheap to tell and the same for any parts.
      data: a line of JSON, or the text, in bytes; of a table, its fields by name.
      line: where counting of its lines began, and its number from there on, 1 for the first; None
        of what is no line, or has its number in `where`.
    """

    where: str
    data: bytes | dict[str, Any]
    line: tuple[Beginning, int] | None = None

    @property
    def place(self) -> str:
        """`where` for people: of a line, file and line number, for which the file is read."""
        if self.line is None:
            return self.where
        begun, number = self.line
        return f"{begun.path}:{begun.lines_before + number}"


@dataclasses.dataclass(frozen=True)
class Document:
    """What is learnt of a record.

    Attributes:
      text: before any filter.
      id, date, license: of the fields that the source names; None where it names none, or the
        record has none.
      where: of the record.
    """

    text: str
    id: str | None
    date: str | None
    license: str | None
    where: str


class BadRecord(Exception):
    """A record that holds no text that can be used; says where and why."""


def parts(source: Source, split: str, part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of a split in order; their records end to end are the split's.

    Args:
      source: what to read.
      split: one of its splits.
      part_bytes: roughly how much a part holds. A compressed file is one part, whatever its size.

    Raises:
      UsageError: there is no file.
      Fault: a file cannot be read.
    """
    files = source.files(split)
    if source.format == "tfds":
        return [Part(str(source.tfds_folder()), 0, None, sum(f.stat().st_size for f in files))]
    if source.format == "text":
        return _grouped(files, part_bytes)
    return [part for path in files for part in _parts_of(source, path, part_bytes)]


def _grouped(files: list[pathlib.Path], part_bytes: int) -> list[Part]:
    """Parts of whole text files, as many of them as make up a part."""
    found: list[Part] = []
    first = size = 0
    for number, path in enumerate(files, start=1):
        size += path.stat().st_size
        if size >= part_bytes or number == len(files):
            found.append(Part(str(files[first]), first, number, size))
            first, size = number, 0
    return found


def _parts_of(source: Source, path: pathlib.Path, part_bytes: int) -> Iterator[Part]:
    size = path.stat().st_size
    if source.format == "jsonl":
        if path.suffix in COMPRESSED:
            yield Part(str(path), 0, None, size)
            return
        borders = [*range(0, size, part_bytes), size]
        cuts = [(end, end - start) for start, end in itertools.pairwise(borders)]
    else:
        cuts = tables.cuts(source.format, path)
    start = held = 0
    for number, (end, each) in enumerate(cuts, start=1):
        held += each
        if held >= part_bytes or number == len(cuts):
            yield Part(str(path), start, end, held)
            start, held = end, 0
    if not cuts:
        yield Part(str(path), 0, 0, size)


def records(
    source: Source, split: str, part: Part, on_read: Callable[[int], None] = lambda size: None
) -> Iterator[Record]:
    """The records of a part in the order of its file; blank lines of JSONL are none.

    Args:
      source: what to read.
      split: one of its splits.
      part: of that split.
      on_read: called with the bytes taken from disk (compressed, as they lie there), at most once a
        record.

    Raises:
      Fault: a file cannot be read or decompressed.
    """
    if source.format == "tfds":
        from t5x_style.data.sources.tfds import tfds_texts

        for number, text in enumerate(tfds_texts(source, split)):
            yield Record(f"{source.tfds_name} {source.where(split)} example {number}", text)
        on_read(part.size)
    elif source.format == "text":
        for path in source.files(split)[part.start : part.stop]:
            yield Record(str(path), _whole_text(path))
            on_read(path.stat().st_size)
    elif source.format == "jsonl":
        path = pathlib.Path(part.path)
        try:
            if path.suffix in COMPRESSED:
                yield from _compressed_lines(path, on_read)
            else:
                yield from _lines(path, part.start, part.stop, on_read)
        except (OSError, EOFError, zlib.error) as error:
            raise Fault(f"{path} cannot be read: {error}") from error
    else:
        path = pathlib.Path(part.path)
        what = "record" if source.format in tables.ARRAY_RECORDS else "row"
        rows = tables.rows(source.format, path, source.fields(), part.start, part.stop, on_read)
        for number, data in rows:
            yield Record(f"{path} {what} {number}", data)


def _whole_text(path: pathlib.Path) -> bytes:
    try:
        with open(path, "rb") as raw:
            return _decompressed(raw, path.suffix).read()
    except (OSError, EOFError, zlib.error) as error:
        raise Fault(f"{path} cannot be read: {error}") from error


def _lines(
    path: pathlib.Path, start: int, stop: int | None, on_read: Callable[[int], None]
) -> Iterator[Record]:
    """The lines that begin at bytes `start` to `stop` - 1."""
    name = str(path)
    with open(path, "rb", buffering=BUFFER_BYTES) as raw:
        at = start
        if start:
            # The line that the byte before belongs to is read by the part in which it begins.
            raw.seek(start - 1)
            at += len(raw.readline()) - 1
        begun = Beginning(name, at)
        for number, line in enumerate(raw, start=1):
            if stop is not None and at >= stop:
                return
            if line.strip():
                yield Record(f"{name} byte {at}", line, (begun, number))
            at += len(line)
            on_read(len(line))


def _compressed_lines(path: pathlib.Path, on_read: Callable[[int], None]) -> Iterator[Record]:
    with open(path, "rb") as raw:
        position = 0
        for number, line in enumerate(_decompressed(raw, path.suffix), start=1):
            if line.strip():
                yield Record(f"{path}:{number}", line)
            on_read(raw.tell() - position)
            position = raw.tell()


def _decompressed(raw: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if suffix == ".zst":
        import pyarrow

        # Reads frames that follow each other, and refuses one that was cut short.
        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return raw


def document_of(source: Source, record: Record) -> Document:
    """The text of a record, and what else the source names of it.

    Raises:
      BadRecord: broken JSON, no such field, not a string, not UTF-8, or no date where one is
        needed.
    """
    fields = record.data
    if not isinstance(fields, dict):
        if source.format == "array_record_example":
            try:
                fields = example_fields(fields)
            except BrokenExample as error:
                raise BadRecord(f"{record.place}: no tf.train.Example: {error}") from None
        elif source.format in JSON_FORMATS:
            fields = _parsed(record, fields)
        else:
            return Document(_decoded(record, fields), None, None, None, record.where)
    text = _text(source, record, fields)
    found = {
        name: _metadata(source, record, fields, field)
        for name, field in (
            ("id", source.id_field),
            ("date", source.date_field),
            ("license", source.license_field),
        )
    }
    document = Document(text, found["id"], found["date"], found["license"], record.where)
    if source.needs_dates():
        _check_date(source, record, document.date)
    return document


def belongs(source: Source, split: str, document: Document) -> bool:
    """Whether the date of a document is one of the split's.

    Dates are compared as far as the bounds are written, to the year, the month or the day.
    """
    after, before = source.date_window(split)
    date = document.date or ""
    if after is not None and date[: len(after)] < after:
        return False
    return before is None or date[: len(before)] < before


def documents(source: Source, split: str) -> Iterator[str]:
    """The texts of `kept_documents`."""
    return (document.text for document in kept_documents(source, split))


def kept_documents(source: Source, split: str) -> Iterator[Document]:
    """The documents of a split in order, after the source's filters, empty ones left out.

    Raises:
      Fault: a bad record, unless the source says to skip those.
    """
    for part in parts(source, split):
        for record in records(source, split, part):
            try:
                document = document_of(source, record)
            except BadRecord as bad:
                if source.on_bad_record == "skip":
                    continue
                raise refusal(source, str(bad)) from None
            if not belongs(source, split, document):
                continue
            text, _ = filtered(source.filters, document.text)
            if text is not None and text.strip():
                yield dataclasses.replace(document, text=text)


def refusal(source: Source, bad: str) -> Fault:
    """What to raise about a bad record."""
    return Fault(
        f"source {source.name!r}: {bad}. Mend it, or set on_bad_record = 'skip' to count such "
        f"records and go on"
    )


def _decoded(record: Record, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(
            f"{record.place}: not UTF-8 (byte {error.start} of the record is "
            f"0x{data[error.start]:02x})"
        ) from None


def _parsed(record: Record, data: bytes) -> dict[str, Any]:
    content = _decoded(record, data)
    try:
        fields = json.loads(content.rstrip())
    except json.JSONDecodeError as error:
        raise BadRecord(
            f"{record.place}: broken JSON: {error.msg} (column {error.colno})"
        ) from None
    except RecursionError:
        raise BadRecord(f"{record.place}: broken JSON: nested too deeply") from None
    except ValueError as error:
        # A number of more digits than Python reads.
        raise BadRecord(f"{record.place}: broken JSON: {error}") from None
    if not isinstance(fields, dict):
        raise BadRecord(f"{record.place}: a JSON {type(fields).__name__}, not an object")
    return fields


def _named(source: Source, record: Record, fields: Mapping[str, Any]) -> str:
    """The place of a record, with its id if it has one."""
    if source.id_field is None:
        return record.place
    name = fields.get(source.id_field)
    if isinstance(name, bytes):
        name = name.decode(errors="replace")
    return f"{record.place} ({source.id_field} {name!r})"


def _text(source: Source, record: Record, fields: Mapping[str, Any]) -> str:
    if source.text_field not in fields:
        raise BadRecord(
            f"{_named(source, record, fields)}: no field {source.text_field!r} (text_field of "
            f"source {source.name!r}); it has {', '.join(fields)}"
            f"{did_you_mean(source.text_field, fields)}"
        )
    text = fields[source.text_field]
    if isinstance(text, bytes):
        return _decoded(record, text)
    if not isinstance(text, str):
        raise BadRecord(
            f"{_named(source, record, fields)}: field {source.text_field!r} is a "
            f"{type(text).__name__}, not a string"
        )
    return _whole_characters(source, record, fields, text)


def _whole_characters(source: Source, record: Record, fields: Mapping[str, Any], text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(
            f"{_named(source, record, fields)}: half a surrogate pair at character {error.start}"
        ) from None
    return text


def _metadata(
    source: Source, record: Record, fields: Mapping[str, Any], field: str | None
) -> str | None:
    """A field as text: a date in ISO form, a list with commas; None where there is none."""
    value = None if field is None else fields.get(field)
    if value is None:
        return None
    if isinstance(value, bytes):
        return _decoded(record, value)
    if isinstance(value, datetime.date):
        value = value.isoformat()
    elif isinstance(value, list):
        value = ", ".join(map(str, value))
    return _whole_characters(source, record, fields, str(value))


def _check_date(source: Source, record: Record, date: str | None) -> None:
    found = ISO_DATE.match(date or "")
    if found is None:
        raise BadRecord(
            f"{record.place}: {source.date_field} = {date!r} is no date that begins YYYY, YYYY-MM "
            f"or YYYY-MM-DD, and source {source.name!r} is split by date"
        )
    for bound in source.date_bounds():
        if len(found[0]) < len(bound) and bound.startswith(found[0]):
            raise BadRecord(
                f"{record.place}: {source.date_field} = {date!r} may lie before or after "
                f"{bound!r}, by which source {source.name!r} is split"
            )
