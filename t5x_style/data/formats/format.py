"""What a file format is: which files a split names, their parts for workers, and their records.

`Source.format` names a built-in format, or the dotted path of a user's own:

    class CsvFormat(FileFormat):
        def records(self, split, part, on_read):
            with open(part.path, newline="", encoding="utf-8-sig") as file:
                for number, row in enumerate(csv.DictReader(file), start=1):
                    yield Record(f"{part.path} row {number}", row)
            on_read(part.size)
"""

import abc
import dataclasses
import functools
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from t5x_style.data.formats.files import matching_files
from t5x_style.errors import did_you_mean
from t5x_style.files import local_path

BUFFER_BYTES = 1 << 20
MAX_RECORD_BYTES = 64 << 20
# Names of fields that a message lists.
SHOWN_FIELDS = 20

OnRead = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class Split:
    """One split of a source, as a format reads it.

    Attributes:
      where: the value of `Source.splits`, a string or several.
      binding: the name of that value, for messages.
      fields: the fields of a record that are needed; that of the text comes first.
      tfds_name, tfds_data_dir: those of the source.
      max_record_bytes: a longer record is a bad one. `Record.problem` says so where a format need
        not hold it; the text of any other record is measured.
    """

    where: str | tuple[str, ...]
    binding: str
    fields: tuple[str, ...]
    tfds_name: str | None = None
    tfds_data_dir: str | None = None
    max_record_bytes: int = MAX_RECORD_BYTES

    @property
    def places(self) -> tuple[str, ...]:
        """`where` as globs or folders, one or more."""
        return (self.where,) if isinstance(self.where, str) else self.where


@dataclasses.dataclass(frozen=True)
class Part:
    """A piece of a split that one worker reads.

    Attributes:
      path: its file, the first of its text files, or the folder of a TFDS dataset.
      start, stop: the range within that file, in units of the format: bytes, row groups, batches,
        records, or files of the split. A stop of None is the end.
      size: bytes on disk.
    """

    path: str
    start: int
    stop: int | None
    size: int


@dataclasses.dataclass(frozen=True)
class LineCount:
    """A place in a file from which lines are counted.

    Attributes:
      path: the file.
      offset: the byte at which a line begins.
    """

    path: str
    offset: int

    @functools.cached_property
    def lines_before(self) -> int:
        """Lines that end before the offset. The file is read once for all records of a part."""
        count, left = 0, self.offset
        with open(self.path, "rb") as file:
            while left > 0 and (block := file.read(min(left, BUFFER_BYTES))):
                count += block.count(b"\n")
                left -= len(block)
        return count


@dataclasses.dataclass(frozen=True)
class Record:
    """One record as it was read.

    Attributes:
      where: file and byte (or line, row, record). It is cheap, and the same for any parts.
      data: fields by name, or bytes that `Format.fields` parses.
      line: where counting of lines began, and the number from there, 1 for the first. None if the
        record is no line, or has its number in `where`.
      problem: why the record has no usable text, where the format knows it. It is a bad record
        then, and `data` is not looked at.
    """

    where: str
    data: bytes | Mapping[str, Any]
    line: tuple[LineCount, int] | None = None
    problem: str | None = None

    @property
    def place(self) -> str:
        """`where` for people: file and line number of a line. The file is read to count them."""
        if self.line is None:
            return self.where
        begin, number = self.line
        return f"{begin.path}:{begin.lines_before + number}"


class BadRecord(Exception):
    """A record without a usable text. The message has the place and the reason."""


class MissingField(Exception):
    """A record without a field. The message names the keys at the level that fails."""

    def __init__(self, name: str, outer: str, level: Any, rest: str):
        """`level`, under the path `outer`, is where `rest` of the `name` was looked for."""
        self.found = (name, outer, level, rest)

    def __str__(self) -> str:
        """Made when it is shown: a field of metadata may be missing in every record."""
        name, outer, level, rest = self.found
        if not isinstance(level, Mapping):
            return f"no field {name!r}; {outer!r} is a {type(level).__name__}, not an object"
        owner = repr(outer) if outer else "it"
        return f"no field {name!r}; {owner} has {_listed(level)}{did_you_mean(rest, level)}"


@runtime_checkable
class Format(Protocol):
    """How the files of a source are read. `FileFormat` implements all but `records`.

    Attributes:
      source_options: the options of `Source` that are read, among text_field, id_field, date_field,
        license_field, tfds_name and tfds_data_dir. A source that sets another of them is refused.
      where_selects: `Source.splits` selects records within the files, as a slice does. Its value
        then enters the fingerprint of a store.
    """

    source_options: Sequence[str]
    where_selects: bool

    def check(self, split: Split) -> None:
        """Raises UsageError if the declaration is wrong. Called when the source is declared."""

    def files(self, split: Split) -> list[pathlib.Path]:
        """The files of a split, in order. Their content enters the fingerprint of a store."""

    def parts(self, split: Split, part_bytes: int) -> list[Part]:
        """The parts of a split in order, of roughly `part_bytes` each."""

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The records of a part in order.

        `on_read` is called with the bytes read from disk (compressed, if they are), at most once a
        record.
        """

    def fields(self, record: Record) -> Mapping[str, Any] | bytes:
        """The fields of a record, or UTF-8 bytes that are the text itself.

        Raises BadRecord for a record that cannot be parsed.
        """


class FileFormat(abc.ABC):
    """Files that `Source.splits` names, each cut alone. Subclasses read the records.

    Attributes:
      suffixes: how the names of the files end, in lower case. A split may then name a folder.
    """

    source_options: Sequence[str] = ("text_field", "id_field", "date_field", "license_field")
    suffixes: Sequence[str] = ()
    where_selects = False

    def check(self, split: Split) -> None:
        """Refuses a path that is not of this machine."""
        for where in split.places:
            local_path(where, split.binding)

    def files(self, split: Split) -> list[pathlib.Path]:
        """The files of each glob or folder, sorted."""
        return matching_files(split.places, split.binding, self.suffixes)

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """Where a file may be cut: (stop, bytes from the cut before). Here: nowhere."""
        return [(None, path.stat().st_size)]

    def parts(self, split: Split, part_bytes: int) -> list[Part]:
        """The parts of each file, of at least `part_bytes` but for the last."""
        found = []
        for path in self.files(split):
            cuts = self.cuts(path, part_bytes)
            start = held = 0
            for number, (stop, size) in enumerate(cuts, start=1):
                held += size
                if held >= part_bytes or number == len(cuts):
                    found.append(Part(str(path), start, stop, held))
                    start, held = stop or 0, 0
            if not cuts:
                found.append(Part(str(path), 0, 0, path.stat().st_size))
        return found

    @abc.abstractmethod
    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """See `Format.records`."""

    def fields(self, record: Record) -> Mapping[str, Any] | bytes:
        """The data of the record as it is."""
        return record.data


def field_value(fields: Mapping[str, Any], name: str) -> Any:
    """The value of a field. `doc.text` is the field `text` of the object `doc`.

    A field that has the dot in its name comes first. The names of the columns of a table follow
    the same rule: `fields` may be a schema, with a mapping for every nested column.

    Raises:
      MissingField: there is none.
    """
    level, outer, rest = fields, "", name
    while rest not in level:
        head, dot, inner = rest.partition(".")
        if not dot or head not in level:
            raise MissingField(name, outer, level, rest)
        level, outer, rest = level[head], f"{outer}.{head}" if outer else head, inner
        if not isinstance(level, Mapping):
            raise MissingField(name, outer, level, rest)
    return level[rest]


def _listed(names: Mapping[str, Any]) -> str:
    shown = list(itertools.islice(names, SHOWN_FIELDS))
    more = len(names) - len(shown)
    return (", ".join(shown) or "no field") + (f" and {more:,} more" if more else "")


def too_long(limit: int) -> str:
    """The problem of a record of more than `limit` bytes."""
    return (
        f"more than {limit:,} bytes (Source.max_record_bytes): raise the limit if the record is "
        f"right"
    )


def decoded(record: Record, data: bytes) -> str:
    """UTF-8 as text.

    Raises:
      BadRecord: it is not UTF-8.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(
            f"{record.place}: not UTF-8 (byte {error.start} of the record is "
            f"0x{data[error.start]:02x})"
        ) from None


def json_fields(record: Record) -> dict[str, Any]:
    """The fields of a record whose bytes are a JSON object.

    Raises:
      BadRecord: they are not.
    """
    assert isinstance(record.data, bytes)
    content = decoded(record, record.data)
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
