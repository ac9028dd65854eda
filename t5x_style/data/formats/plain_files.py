"""The formats 'jsonl' and 'text': plain files, .gz or .zst."""

import gzip
import io
import itertools
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO, cast

from t5x_style.data.formats.format import (
    BUFFER_BYTES,
    FileFormat,
    LineCount,
    OnRead,
    Part,
    Record,
    Split,
    json_fields,
)
from t5x_style.errors import Fault

COMPRESSED = (".gz", ".zst")


class Jsonl(FileFormat):
    """One JSON object a line. Blank lines are skipped. A compressed file is one part."""

    def cuts(self, path: pathlib.Path, part_bytes: int) -> list[tuple[int | None, int]]:
        """Any byte: a line belongs to the part in which it begins."""
        size = path.stat().st_size
        if path.suffix in COMPRESSED:
            return [(None, size)]
        borders = [*range(0, size, part_bytes), size]
        return [(end, end - start) for start, end in itertools.pairwise(borders)]

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The lines of a part, as bytes."""
        path = pathlib.Path(part.path)
        try:
            if path.suffix in COMPRESSED:
                yield from _compressed_lines(path, on_read)
            else:
                yield from _lines(path, part.start, part.stop, on_read)
        except (OSError, EOFError, zlib.error) as error:
            raise Fault(f"{path} cannot be read: {error}") from error

    def fields(self, record: Record) -> Mapping[str, Any]:
        """The object of a line."""
        return json_fields(record)


class Text(FileFormat):
    """One document a file."""

    source_options: Sequence[str] = ()

    def parts(self, split: Split, part_bytes: int) -> list[Part]:
        """Whole files, as many of them as make up a part."""
        files = self.files(split)
        found: list[Part] = []
        first = size = 0
        for number, path in enumerate(files, start=1):
            size += path.stat().st_size
            if size >= part_bytes or number == len(files):
                found.append(Part(str(files[first]), first, number, size))
                first, size = number, 0
        return found

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The content of each file."""
        for path in self.files(split)[part.start : part.stop]:
            try:
                with open(path, "rb") as raw:
                    content = _decompressed(raw, path.suffix).read()
            except (OSError, EOFError, zlib.error) as error:
                raise Fault(f"{path} cannot be read: {error}") from error
            yield Record(str(path), content)
            on_read(path.stat().st_size)


def _lines(path: pathlib.Path, start: int, stop: int | None, on_read: OnRead) -> Iterator[Record]:
    """The lines that begin at bytes `start` to `stop` - 1."""
    name = str(path)
    with open(path, "rb", buffering=BUFFER_BYTES) as raw:
        position = start
        if start:
            # The line that holds the byte before `start` belongs to the part in which it begins.
            raw.seek(start - 1)
            position += len(raw.readline()) - 1
        begin = LineCount(name, position)
        for number, line in enumerate(raw, start=1):
            if stop is not None and position >= stop:
                return
            if line.strip():
                yield Record(f"{name} byte {position}", line, (begin, number))
            position += len(line)
            on_read(len(line))


def _compressed_lines(path: pathlib.Path, on_read: OnRead) -> Iterator[Record]:
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

        # Reads frames that follow one another, and refuses a frame that was cut short.
        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return raw
