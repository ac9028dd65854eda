"""The documents of a source: the text, id, date and license of its records."""

import dataclasses
import datetime
import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from t5x_style.data.formats.format import (
    BadRecord,
    MissingField,
    OnRead,
    Part,
    Record,
    decoded,
    field_value,
    too_long,
)
from t5x_style.data.sources.dates import advice, first_day, is_split_by
from t5x_style.data.sources.filters import filtered
from t5x_style.data.sources.normal_form import document_digest
from t5x_style.data.sources.source import Source
from t5x_style.errors import Fault, UsageError

# Large enough that starting a part costs little, small enough that many workers share a file, and
# that none of them works on for long when the others are done.
PART_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True)
class Document:
    """A document as it is learned from.

    Attributes:
      text: before any filter.
      id, date, license: of the fields that the source names. None if it names none, or the record
        has none.
      where: of the record.
    """

    text: str
    id: str | None
    date: str | None
    license: str | None
    where: str


def parts(source: Source, split: str, part_bytes: int = PART_BYTES) -> list[Part]:
    """The parts of a split in order. Their records end to end are those of the split.

    Args:
      source: the source.
      split: 'train' or 'validation'.
      part_bytes: rough size of a part. A compressed file is one part, whatever its size.

    Raises:
      UsageError: there is no file.
      Fault: a file cannot be read.
    """
    return source.reader.parts(source.split(split), part_bytes)


def records(
    source: Source, split: str, part: Part, on_read: OnRead = lambda size: None
) -> Iterator[Record]:
    """The records of a part in order.

    Args:
      source: the source.
      split: 'train' or 'validation'.
      part: of that split.
      on_read: called with the bytes read from disk (compressed, if they are), at most once a
        record.

    Raises:
      UsageError: a table without the column.
      Fault: a file cannot be read or decompressed, or the code of a format failed.
    """
    try:
        yield from source.reader.records(source.split(split), part, on_read)
    except (UsageError, Fault, OSError):
        raise
    except Exception as error:
        raise _failure(source, part.path, error) from error


def document_of(source: Source, record: Record) -> Document:
    """The text of a record, and the other fields that the source names.

    Raises:
      BadRecord: broken JSON, no such field, not a string, not UTF-8, no date where one is needed,
        or a problem that the format found.
    """
    if record.problem is not None:
        raise BadRecord(f"{record.place}: {record.problem}")
    fields = _fields(source, record)
    if isinstance(fields, bytes):
        fields = {source.text_field: fields}
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
    if source.needs_dates() and not (source.undated == "train" and is_undated(document)):
        _check_date(source, record, document.date)
    return document


def _fields(source: Source, record: Record) -> Mapping[str, Any] | bytes:
    try:
        return source.reader.fields(record)
    except (BadRecord, UsageError, Fault):
        raise
    except Exception as error:
        raise _failure(source, record.place, error) from error


def _failure(source: Source, where: str, error: Exception) -> Fault:
    return Fault(
        f"source {source.name!r}: Source.format = {source.format!r} failed on {where}: "
        f"{type(error).__name__}: {error}"
    )


def belongs(source: Source, split: str, document: Document) -> bool:
    """Whether the date of a document is in the range of the split.

    The day of the date is compared; of a year or a month, the first. A document without a date is
    in the train split.
    """
    if not source.needs_dates():
        return True
    if is_undated(document):
        return split == "train"
    after, before = source.date_window(split)
    day = first_day(document.date or "")
    if after is not None and day < first_day(after):
        return False
    return before is None or day < first_day(before)


def is_undated(document: Document) -> bool:
    """Whether a document has no date, or an empty one."""
    return not (document.date or "").strip()


def is_chosen(source: Source, split: str, text: str) -> bool:
    """Whether a text, after the filters, is in the split by `Source.validation_share`."""
    if source.validation_share is None:
        return True
    key = document_digest(text) + str(source.validation_seed).encode()
    place = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest()) / 2**64
    return (place < source.validation_share) == (split == "validation")


def documents(source: Source, split: str) -> Iterator[str]:
    """The texts of `kept_documents`."""
    return (document.text for document in kept_documents(source, split))


def kept_documents(
    source: Source, split: str, when_skipped: Callable[[str], None] = lambda bad: None
) -> Iterator[Document]:
    """The documents of a split in order, after the filters of the source, without empty ones.

    Args:
      source: the source.
      split: 'train' or 'validation'.
      when_skipped: called with the place and the reason of a bad record that is skipped.

    Raises:
      Fault: a bad record, unless the source skips them.
    """
    for part in parts(source, split):
        for record in records(source, split, part):
            document = document_in(source, split, record, when_skipped)
            if document is None:
                continue
            text, _ = filtered(source.filters, document.text)
            if text is not None and text.strip() and is_chosen(source, split, text):
                yield dataclasses.replace(document, text=text)


def document_in(
    source: Source,
    split: str,
    record: Record,
    when_skipped: Callable[[str], None] = lambda bad: None,
) -> Document | None:
    """The document of a record; None if it is of another split, or a bad one that is skipped.

    `when_skipped` is that of `kept_documents`.

    Raises:
      Fault: a bad record, unless the source skips them.
    """
    try:
        document = document_of(source, record)
    except BadRecord as bad:
        if source.on_bad_record == "skip":
            when_skipped(str(bad))
            return None
        raise refusal(source, str(bad)) from None
    return document if belongs(source, split, document) else None


def refusal(source: Source, bad: str) -> Fault:
    """The error that names a bad record."""
    return Fault(
        f"source {source.name!r}: {bad}. Correct it, or set on_bad_record = 'skip' to count bad "
        f"records and continue"
    )


def _named(source: Source, record: Record, fields: Mapping[str, Any]) -> str:
    """The place of a record, with its id if it has one."""
    if source.id_field is None:
        return record.place
    name = _optional(fields, source.id_field)
    if isinstance(name, bytes):
        name = name.decode(errors="replace")
    return f"{record.place} ({source.id_field} {name!r})"


def _optional(fields: Mapping[str, Any], field: str) -> Any:
    try:
        return field_value(fields, field)
    except MissingField:
        return None


def _text(source: Source, record: Record, fields: Mapping[str, Any]) -> str:
    try:
        text = field_value(fields, source.text_field)
    except MissingField as missing:
        raise BadRecord(
            f"{_named(source, record, fields)}: {missing} (text_field of source {source.name!r})"
        ) from None
    if isinstance(text, bytes):
        utf8, text = text, None
    elif isinstance(text, str):
        utf8 = _utf8(source, record, fields, text)
    else:
        raise BadRecord(
            f"{_named(source, record, fields)}: field {source.text_field!r} is a "
            f"{type(text).__name__}, not a string"
        )
    if len(utf8) > source.max_record_bytes:
        raise BadRecord(f"{_named(source, record, fields)}: {too_long(source.max_record_bytes)}")
    return decoded(record, utf8) if text is None else text


def _utf8(source: Source, record: Record, fields: Mapping[str, Any], text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise BadRecord(
            f"{_named(source, record, fields)}: half a surrogate pair at character {error.start}"
        ) from None


def _metadata(
    source: Source, record: Record, fields: Mapping[str, Any], field: str | None
) -> str | None:
    """A field as text: a date in ISO form, a list with commas, a whole number without a point.

    None where there is none.
    """
    value = None if field is None else _optional(fields, field)
    if value is None:
        return None
    if isinstance(value, list):
        text = ", ".join(_plain(record, item) for item in value)
    else:
        text = _plain(record, value)
    _utf8(source, record, fields, text)
    return text


def _plain(record: Record, value: Any) -> str:
    if isinstance(value, bytes):
        return decoded(record, value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, float) and value.is_integer():
        # pandas makes floats of whole numbers where some are missing.
        value = int(value)
    return str(value)


def _check_date(source: Source, record: Record, date: str | None) -> None:
    way_out = "" if (date or "").strip() else "; Source.undated = 'train' trains on it"
    try:
        first_day(date or "")
    except ValueError:
        raise BadRecord(
            f"{record.place}: {source.date_field} = {date!r} is no date, YYYY, YYYY-MM or "
            f"YYYY-MM-DD with or without a time, and source {source.name!r} is split by date"
            f"{advice(date or '')}{way_out}"
        ) from None
    for bound in source.date_bounds():
        if is_split_by(date or "", bound):
            raise BadRecord(
                f"{record.place}: {source.date_field} = {date!r} may be before or after "
                f"{bound!r}, by which source {source.name!r} is split"
            )
