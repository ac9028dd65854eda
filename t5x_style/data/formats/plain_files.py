"""The formats 'jsonl' and 'text': plain files, .gz or .zst.

A byte-order mark at the start of a file is no text. A record that is longer than the limit of the
source is given up without being held: an archive of some kB may hold a line of any length.
"""

import contextlib
import gzip
import io
import itertools
import pathlib
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from t5x_style.data.formats.file_kinds import (
    ARCHIVES,
    BOM,
    HEAD_BYTES,
    WIDE,
    advice_on_line,
    foreign_kind,
    is_wide,
)
from t5x_style.data.formats.format import (
    BUFFER_BYTES,
    BadRecord,
    FileFormat,
    LineCount,
    OnRead,
    Part,
    Record,
    Split,
    json_fields,
    too_long,
)
from t5x_style.errors import Fault, UsageError

COMPRESSED = tuple(ARCHIVES)


class Jsonl(FileFormat):
    """One JSON object a line. Blank lines are skipped. A compressed file is one part."""

    suffixes = tuple(
        kind + packed for kind in (".jsonl", ".ndjson", ".json") for packed in ("", *COMPRESSED)
    )

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """Any byte: a line belongs to the part in which it begins.

        Raises:
          UsageError, Fault: as `_check_kind`.
        """
        _check_kind(path)
        size = path.stat().st_size
        if path.suffix in COMPRESSED:
            return [(None, size)]
        borders = [*range(0, size, part_bytes), size]
        return [(end, end - start) for start, end in itertools.pairwise(borders)]

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The lines of a part, as bytes."""
        path = pathlib.Path(part.path)
        limit = split.max_record_bytes
        with _opened(path) as (archive, stream):
            if path.suffix in COMPRESSED:
                yield from _compressed_lines(path, archive, stream, limit, on_read)
            else:
                yield from _lines(path, stream, part, limit, on_read)

    def fields(self, record: Record) -> Mapping[str, Any]:
        """The object of a line."""
        assert isinstance(record.data, bytes)
        try:
            return json_fields(record)
        except BadRecord as bad:
            raise BadRecord(f"{bad}{advice_on_line(record.data)}") from None


class Text(FileFormat):
    """One document a file."""

    source_options: Sequence[str] = ()
    suffixes = tuple(".txt" + packed for packed in ("", *COMPRESSED))

    def parts(self, split: Split, part_bytes: int) -> list[Part]:
        """Whole files, as many of them as make up a part.

        Raises:
          UsageError, Fault: as `_check_kind`.
        """
        files = self.files(split)
        found: list[Part] = []
        first = size = 0
        for number, path in enumerate(files, start=1):
            _check_kind(path)
            size += path.stat().st_size
            if size >= part_bytes or number == len(files):
                found.append(Part(str(files[first]), first, number, size))
                first, size = number, 0
        return found

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The content of each file."""
        limit = split.max_record_bytes
        for path in self.files(split)[part.start : part.stop]:
            with _opened(path) as (_, stream):
                # Most texts are small, and a read takes the memory that it may need.
                content = stream.read(BUFFER_BYTES)
                if len(content) == BUFFER_BYTES:
                    content += stream.read(max(0, len(BOM) + limit + 1 - BUFFER_BYTES))
                content = content.removeprefix(BOM)
            if len(content) > limit:
                yield Record(str(path), b"", problem=too_long(limit))
            else:
                yield Record(str(path), content)
            on_read(path.stat().st_size)

    def fields(self, record: Record) -> bytes:
        """The text, which is not decoded yet."""
        assert isinstance(record.data, bytes)
        # With NULs between its letters it would pass for UTF-8.
        if is_wide(record.data):
            raise BadRecord(f"{record.place}: {WIDE}")
        return record.data


def _lines(
    path: pathlib.Path, stream: BinaryIO, part: Part, limit: int, on_read: OnRead
) -> Iterator[Record]:
    """The lines that begin in a part of a file that is not compressed."""
    name = str(path)
    stop = sys.maxsize if part.stop is None else part.stop
    position = part.start
    if position:
        # The line that holds the byte before the part belongs to the part in which it begins.
        stream.seek(position - 1)
        position += _pass_line(stream, stop - position + 1) - 1
    begin = LineCount(name, position)
    for number in itertools.count(1):
        if position >= stop:
            return
        line, size = _next_line(stream, limit)
        if not size:
            return
        where = f"{name} byte {position}"
        if line is None:
            yield Record(where, b"", (begin, number), too_long(limit))
        elif (content := line if position else line.removeprefix(BOM)).strip():
            yield Record(where, content, (begin, number))
        position += size
        on_read(size)


def _compressed_lines(
    path: pathlib.Path, archive: BinaryIO, stream: BinaryIO, limit: int, on_read: OnRead
) -> Iterator[Record]:
    position = 0
    for number in itertools.count(1):
        line, size = _next_line(stream, limit)
        if not size:
            return
        where = f"{path}:{number}"
        if line is None:
            yield Record(where, b"", problem=too_long(limit))
        elif (content := line if number > 1 else line.removeprefix(BOM)).strip():
            yield Record(where, content)
        on_read(archive.tell() - position)
        position = archive.tell()


def _next_line(stream: BinaryIO, limit: int) -> tuple[bytes | None, int]:
    """(a line, its bytes); (None, its bytes) for one of more than `limit` bytes; (b"", 0) at the
    end of the file."""
    line = stream.readline(limit + 1)
    if len(line) <= limit or line.endswith(b"\n"):
        return line, len(line)
    return None, len(line) + _pass_line(stream, sys.maxsize)


def _pass_line(stream: BinaryIO, most: int) -> int:
    """Reads to the end of a line, or `most` bytes of it. Returns how many were read."""
    passed = 0
    while passed < most:
        piece = stream.readline(min(BUFFER_BYTES, most - passed))
        passed += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return passed


@contextlib.contextmanager
def _opened(
    path: pathlib.Path, buffer_bytes: int = BUFFER_BYTES
) -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """(the file, its content): two streams of an archive, twice the same of another file.

    Raises:
      Fault: in its body too: the file cannot be read, or the archive is not whole.
    """
    try:
        with open(path, "rb", buffering=buffer_bytes) as raw:
            yield raw, _decompressed(raw, path.suffix, buffer_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise Fault(f"{path} cannot be read: {error}") from error


def _decompressed(raw: BinaryIO, suffix: str, buffer_bytes: int) -> BinaryIO:
    if suffix == ".gz":
        archive: Any = gzip.GzipFile(fileobj=raw)
    elif suffix == ".zst":
        import pyarrow

        # Reads frames that follow one another, and refuses a frame that was cut short.
        archive = pyarrow.CompressedInputStream(raw, "zstd")
    else:
        return raw
    return io.BufferedReader(archive, buffer_bytes)


def _check_kind(path: pathlib.Path) -> None:
    """Refuses a file that is neither lines nor text, by its first bytes.

    Raises:
      UsageError: it is of another kind, or an archive of such a file.
      Fault: an archive without a single byte, or of which the first bytes cannot be read.
    """
    with path.open("rb") as raw:
        head = raw.read(HEAD_BYTES)
    if path.suffix not in COMPRESSED:
        what, found = str(path), foreign_kind(head)
    elif not head:
        raise Fault(f"{path} is empty: an archive of nothing has a head, so this one is not whole")
    elif head.startswith(ARCHIVES[path.suffix]) or foreign_kind(head) is None:
        with _opened(path, io.DEFAULT_BUFFER_SIZE) as (_, stream):
            what, found = f"the content of {path}", foreign_kind(stream.read(HEAD_BYTES))
    else:
        what, found = str(path), foreign_kind(head)
    if found is not None:
        kind, way = found
        packed_twice = what != str(path) and way.startswith("end its name")
        raise UsageError(f"{what} is {kind}: {'unpack it once' if packed_twice else way}")
