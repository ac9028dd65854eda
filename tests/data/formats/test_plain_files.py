"""Lines and texts: byte-order marks, archives that are not whole, and records of any length."""

import bz2
import gzip
import io
import json
import lzma
import tracemalloc
import zipfile

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_style.data import Source
from t5x_style.data.formats.format import BadRecord
from t5x_style.data.sources.documents import document_of, documents, parts, records
from t5x_style.errors import Fault, UsageError

BOM = b"\xef\xbb\xbf"


def zstd(content):
    return pyarrow.compress(content, "zstd", asbytes=True)


PACKED = {"": lambda content: content, ".gz": gzip.compress, ".zst": zstd}
packed = pytest.mark.parametrize("suffix", PACKED)
compressed = pytest.mark.parametrize("suffix", [".gz", ".zst"])


def source_of(folder, name, content, **options):
    path = folder / name
    path.write_bytes(content)
    kind = "jsonl" if ".jsonl" in name else "text"
    return Source(name="a", format=kind, splits={"train": str(path)}, **options)


def line(text):
    return json.dumps({"text": text}).encode() + b"\n"


def texts(source):
    return list(documents(source, "train"))


@packed
def test_a_byte_order_mark_at_the_head_of_a_file_is_no_text(suffix, tmp_path):
    pack = PACKED[suffix]
    source = source_of(tmp_path, f"a.txt{suffix}", pack(BOM + b"one" + BOM))
    assert texts(source) == ["one\ufeff"]
    source = source_of(tmp_path, f"a.jsonl{suffix}", pack(BOM + line("one") + line("two")))
    assert texts(source) == ["one", "two"]
    source = source_of(tmp_path, f"b.jsonl{suffix}", pack(BOM + b"\r\n" + line("two")))
    assert texts(source) == ["two"]
    for name in ("c.jsonl", "c.txt"):
        assert texts(source_of(tmp_path, f"{name}{suffix}", pack(BOM))) == []


@pytest.mark.parametrize("part_bytes", [1, 3, 4, 17, 1000])
def test_the_mark_is_cut_off_at_the_head_alone_however_the_file_is_cut(part_bytes, tmp_path):
    content = BOM + line("one") + BOM + line("two") + line("\ufeffthree")
    source = source_of(tmp_path, "a.jsonl", content)
    found, bad, read = [], [], []
    for part in parts(source, "train", part_bytes):
        for record in records(source, "train", part, read.append):
            try:
                found.append(document_of(source, record).text)
            except BadRecord as reason:
                bad.append(str(reason))
    assert found == ["one", "\ufeffthree"]
    assert len(bad) == 1
    assert bad[0].startswith(f"{tmp_path}/a.jsonl:2: broken JSON")
    assert "a byte-order mark within the file" in bad[0]
    assert sum(read) == len(content)


@compressed
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_file_of_no_bytes_is_no_archive(suffix, name, tmp_path):
    source = source_of(tmp_path, name + suffix, b"", on_bad_record="skip")
    with pytest.raises(Fault, match=rf"{name}\{suffix} is empty: an archive of nothing has a head"):
        texts(source)


@compressed
def test_an_archive_of_nothing_is_an_empty_file(suffix, tmp_path):
    for name in ("a.jsonl", "a.txt"):
        assert texts(source_of(tmp_path, name + suffix, PACKED[suffix](b""))) == []


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl.gz", gzip.compress),
        ("a.txt.gz", gzip.compress),
        ("a.jsonl.zst", zstd),
        ("a.txt.zst", zstd),
        ("b.jsonl.gz", lambda content: gzip.compress(b"") + gzip.compress(content)),
        ("b.jsonl.zst", lambda content: zstd(b"") + zstd(content)),
    ],
)
def test_an_archive_cut_at_any_byte_is_named(name, pack, tmp_path):
    content = line("one") + line("two " * 9)
    whole = pack(content)
    # Two archives end to end are one; cut between them, the first is a whole one.
    border = len(pack(b"")) // 2 if name.startswith("b") else 0
    assert texts(source_of(tmp_path, name, whole))
    for end in range(len(whole)):
        if end == border and end:
            continue
        with pytest.raises(Fault, match=name):
            texts(source_of(tmp_path, name, whole[:end], on_bad_record="skip"))


@compressed
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
@pytest.mark.parametrize("rest", [b"x", b"garbage behind the end", b"\0x"])
def test_bytes_after_the_end_of_an_archive_are_named(suffix, name, rest, tmp_path):
    source = source_of(tmp_path, name + suffix, PACKED[suffix](line("one")) + rest)
    with pytest.raises(Fault, match=rf"{name}\{suffix}"):
        texts(source)


LIMIT = 40


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.one_of(st.integers(1, 200), st.integers(LIMIT - 1, LIMIT + 2)), max_size=12),
    part_bytes=st.integers(1, 300),
    end=...,
    suffix=st.sampled_from(sorted(PACKED)),
)
def test_a_line_over_the_limit_is_bad_alone(sizes, part_bytes, end: bool, suffix, tmp_path):
    """Its place is right, its neighbours are read, and every byte is counted."""
    lines = [bytes([97 + k % 26]) * size for k, size in enumerate(sizes)]
    content = b"\n".join(lines) + (b"\n" if end else b"")
    source = source_of(
        tmp_path, f"a.jsonl{suffix}", PACKED[suffix](content), max_record_bytes=LIMIT
    )
    found, read = [], []
    for part in parts(source, "train", part_bytes):
        for record in records(source, "train", part, read.append):
            number = int(record.place.rsplit(":", 1)[1])
            if record.problem is None:
                found.append((number, record.data.rstrip(b"\n")))
            else:
                assert "more than 40 bytes" in record.problem
                found.append((number, None))
    assert found == [
        (number, text if len(text) <= LIMIT else None) for number, text in enumerate(lines, 1)
    ]
    if not suffix:
        assert sum(read) == len(content)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_a_record_that_expands_without_end_takes_no_memory(suffix, name, tmp_path):
    """30 MB of one line, of which an archive is some kB: the peak stays at a few buffers."""
    huge = b"x" * 30_000_000
    content = line("before") + huge + b"\n" + line("after") if name == "a.jsonl" else huge
    source = source_of(
        tmp_path,
        name + suffix,
        PACKED[suffix](content),
        on_bad_record="skip",
        max_record_bytes=100_000,
    )
    del content, huge
    cut = parts(source, "train", 4_000_000)
    tracemalloc.start()
    found = []
    for part in cut:
        for record in records(source, "train", part):
            found.append(record.problem or record.data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    problem = (
        "more than 100,000 bytes (Source.max_record_bytes): raise the limit if the record is right"
    )
    assert found == ([line("before"), problem, line("after")] if ".jsonl" in name else [problem])
    assert peak < 8_000_000, peak
    assert texts(source) == (["before", "after"] if ".jsonl" in name else [])


@pytest.mark.parametrize(("text", "kept"), [("é" * 20, True), ("é" * 21, False), ("x" * 41, False)])
def test_the_limit_holds_for_texts_of_every_format(text, kept, tmp_path):
    import pyarrow.parquet
    from array_record.python.array_record_module import ArrayRecordWriter

    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", text]}), tmp_path / "a.parquet")
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for row in ("a", text):
        writer.write(json.dumps({"text": row}, ensure_ascii=False).encode())
    writer.close()
    for kind in ("parquet", "array_record"):
        source = Source(
            name="a",
            format=kind,
            splits={"train": str(tmp_path / f"a.{kind}")},
            on_bad_record="skip",
            max_record_bytes=40,
        )
        assert texts(source) == (["a", text] if kept else ["a"])


def test_the_limit_without_a_word_of_the_user():
    source = Source(name="a", splits={"train": "a.jsonl"})
    assert source.max_record_bytes == 64 * 2**20


def test_a_limit_below_one_byte_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"Source\.max_record_bytes = 0: must be 1 or more"):
        Source(name="a", splits={"train": "a"}, max_record_bytes=0)


def zipped(content):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("a.jsonl", content)
    return sink.getvalue()


def as_parquet(content):
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": [content]}), sink)
    return sink.getvalue().to_pybytes()


def as_arrow(content):
    sink = pyarrow.BufferOutputStream()
    table = pyarrow.table({"text": [content]})
    with pyarrow.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return sink.getvalue().to_pybytes()


def as_tar(content):
    import tarfile

    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w") as archive:
        entry = tarfile.TarInfo("a.jsonl")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return sink.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FOREIGN = {
    "gzip": (gzip.compress, "a gzip archive: end its name in .gz"),
    "zstd": (zstd, "a zstd archive: end its name in .zst"),
    "bzip2": (bz2.compress, "a bzip2 archive: unpack it"),
    "xz": (lzma.compress, "an xz archive: unpack it"),
    "zip": (zipped, "a zip archive"),
    "tar": (as_tar, "a tar archive: unpack it"),
    "parquet": (as_parquet, "a Parquet file: set Source.format = 'parquet'"),
    "arrow": (as_arrow, "an Arrow file"),
    "pdf": (lambda content: b"%PDF-1.7\n" + content, "a PDF: extract its text"),
    "pointer": (lambda content: POINTER, "a Git LFS pointer"),
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.GZ", "a.txt"])
def test_a_file_of_another_kind_is_named_as_what_it_is(kind, name, tmp_path):
    """Also where bad records are skipped: it is not a record that is wrong."""
    make, words = FOREIGN[kind]
    source = source_of(tmp_path, name, make(line("one")), on_bad_record="skip")
    with pytest.raises(UsageError, match=rf"{name} is {words}"):
        texts(source)


@pytest.mark.parametrize(
    "text",
    ["BZhang, 1998", "PAR1 and PAR2", "PK", "7zip", "a" * 256 + "mustard", "%PDF", "version https"],
)
def test_a_text_that_begins_like_an_archive_is_a_text(text, tmp_path):
    assert texts(source_of(tmp_path, "a.txt", text.encode())) == [text]


@compressed
@pytest.mark.parametrize("kind", ["gzip", "zstd", "tar", "pdf"])
def test_what_an_archive_holds_is_named_too(kind, suffix, tmp_path):
    make, _ = FOREIGN[kind]
    source = source_of(tmp_path, f"a.jsonl{suffix}", PACKED[suffix](make(line("one"))))
    what = "PDF" if kind == "pdf" else f"{kind} archive"
    with pytest.raises(UsageError, match=rf"the content of .*a\.jsonl\{suffix} is a {what}"):
        texts(source)


@pytest.mark.parametrize(("suffix", "other"), [(".gz", "zstd"), (".zst", "gzip")])
def test_an_archive_under_the_name_of_another_is_named(suffix, other, tmp_path):
    make, words = FOREIGN[other]
    source = source_of(tmp_path, f"a.jsonl{suffix}", make(line("one")))
    with pytest.raises(UsageError, match=rf"a\.jsonl\{suffix} is {words}"):
        texts(source)


@compressed
def test_lines_under_the_name_of_an_archive_are_named(suffix, tmp_path):
    with pytest.raises(Fault, match=rf"a\.jsonl\{suffix} cannot be read"):
        texts(source_of(tmp_path, f"a.jsonl{suffix}", line("one")))


ROWS = [{"text": "one"}, {"text": "two", "tags": ["x"]}]
FOREIGN_LINES = {
    "array": (json.dumps(ROWS), r"jq -c '\.\[\]'"),
    "array, an object a line": ("[" + ",\n".join(map(json.dumps, ROWS)) + "]", r"jq -c '\.\[\]'"),
    "pretty array": (json.dumps(ROWS, indent=2), r"jq -c '\.\[\]'"),
    "pretty object": (json.dumps(ROWS[1], indent=2), r"jq -c \. "),
    "half pretty": ('{"id": 7,\n"text": "x"}', r"jq -c \. "),
    "carriage returns": ("\r".join(map(json.dumps, ROWS)), "end in CR alone"),
}


@pytest.mark.parametrize("kind", FOREIGN_LINES)
def test_json_that_is_no_jsonl_is_named_with_the_way_out(kind, tmp_path):
    content, words = FOREIGN_LINES[kind]
    source = source_of(tmp_path, "a.jsonl", content.encode())
    with pytest.raises(Fault, match=rf"a\.jsonl:1: .*{words}"):
        texts(source)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.txt"])
def test_text_in_utf_16_is_named(encoding, name, tmp_path):
    """Without a mark, half of its bytes are NUL: as UTF-8 it would pass for a text of NULs."""
    content = line("a text in ASCII").decode().encode(encoding)
    with pytest.raises(Fault, match=rf"{name}.* text in UTF-16 or UTF-32.*iconv"):
        texts(source_of(tmp_path, name, content))


def test_a_text_with_nuls_is_a_text(tmp_path):
    content = b"a\0b\0\0c" * 20
    assert texts(source_of(tmp_path, "a.txt", content)) == [content.decode()]


def test_a_line_separator_in_a_text_is_no_end_of_line(tmp_path):
    """U+2028, U+0085, form feed and a lone carriage return stand in JSON strings and in texts."""
    odd = "a\u2028b\u0085c\x0cd\x1ce"
    content = json.dumps({"text": odd}, ensure_ascii=False).encode()
    assert texts(source_of(tmp_path, "a.jsonl", content)) == [odd]
    assert texts(source_of(tmp_path, "a.txt", (odd + "\rf").encode())) == [odd + "\rf"]
