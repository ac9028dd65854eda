"""Files as disks, networks and other programs leave them: refused by name, or counted, never less.

Of each corruption it is known which records survive it; with `on_bad_record = 'skip'` exactly those
are kept, and with 'refuse' the file is named.
"""

import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from t5x_style.data import Source
from t5x_style.data.formats.format import BadRecord
from t5x_style.data.sources.documents import document_of, documents, parts, records
from t5x_style.errors import Fault, UsageError

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    str.strip
)

# Lines of which none is a record with a text, and what is wrong with each.
BAD_LINES = {
    "cut off": b'{"text": "cut',
    "no JSON": b"text: hello",
    "not UTF-8": b'{"text": "\xff\xfe"}',
    "UTF-16": '{"text": "wide"}'.encode("utf-16"),
    "a list": b'["text"]',
    "a number": b"17",
    "nothing": b"null",
    "no field": b'{"txt": "hello"}',
    "null text": b'{"text": null}',
    "number as text": b'{"text": 3.5}',
    "list as text": b'{"text": ["a", "b"]}',
    "half a pair": b'{"text": "\\ud800 alone"}',
    "deep": b'{"text": ' + b"[" * 100_000,
    "deep and closed": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "huge number": b'{"text": "x", "n": ' + b"9" * 10_000 + b"}",
    "NULs": b"\0" * 50,
    "raw NUL in text": b'{"text": "a\0b"}',
    "raw tab in text": b'{"text": "a\tb"}',
    "byte order mark": b'\xef\xbb\xbf{"text": "marked"}',
    "two objects": b'{"text": "a"} {"text": "b"}',
    "zeros of a disk": b'{"text": "begun' + b"\0" * 4096,
}
# Lines that look odd and are records.
ODD_LINES = {
    "escaped NUL": (b'{"text": "a\\u0000b"}', "a\0b"),
    "NaN beside": (b'{"text": "kept", "score": NaN}', "kept"),
    "key twice": (b'{"text": "first", "text": "second"}', "second"),
    "carriage return": (b'{"text": "kept"}\r', "kept"),
    "blanks around": (b' \t{"text": "kept"} ', "kept"),
    "escaped newline": (b'{"text": "a\\r\\nb"}', "a\r\nb"),
    "a huge line": (b'{"text": "' + b"long " * 1_000_000 + b'"}', "long " * 1_000_000),
}


def source_of(path, **options):
    return Source(name="a", splits={"train": str(path)}, **options)


def refusal_or_texts(source):
    """The texts of a source, or the words in which it was refused."""
    try:
        return list(documents(source, "train"))
    except (Fault, UsageError) as error:
        return str(error)


def test_a_table_with_a_text_that_is_no_utf8_loses_that_row(tmp_path):
    texts = pyarrow.array([b"good", b"\xff\xfe", b"too"], pyarrow.binary()).view(pyarrow.string())
    table = pyarrow.table({"text": texts})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", store_schema=False)
    source = source_of(tmp_path / "a.parquet", format="parquet")
    with pytest.raises(Fault, match=r"a\.parquet row 2: not UTF-8"):
        list(documents(source, "train"))
    skipping = source_of(tmp_path / "a.parquet", format="parquet", on_bad_record="skip")
    assert list(documents(skipping, "train")) == ["good", "too"]


@pytest.mark.parametrize("what", BAD_LINES)
def test_a_bad_line_is_named_or_skipped_and_nothing_else_is(what, tmp_path):
    good = [json.dumps({"text": f"good {i}"}).encode() for i in range(4)]
    lines = [*good[:2], BAD_LINES[what], *good[2:]]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    with pytest.raises(Fault, match=r"a\.jsonl:3: "):
        list(documents(source_of(tmp_path / "a.jsonl"), "train"))
    skipping = source_of(tmp_path / "a.jsonl", on_bad_record="skip")
    assert list(documents(skipping, "train")) == [f"good {i}" for i in range(4)]


@pytest.mark.parametrize("what", ODD_LINES)
def test_an_odd_line_is_kept(what, tmp_path):
    line, text = ODD_LINES[what]
    (tmp_path / "a.jsonl").write_bytes(line + b"\n" + b'{"text": "after"}')
    assert list(documents(source_of(tmp_path / "a.jsonl"), "train")) == [text, "after"]


# Heads of files that are refused as what they are: `formats/test_plain_files.py`.
OTHER_KINDS = (
    b"\x1f\x8b",
    b"\x28\xb5",
    b"\xfd7z",
    b"7z",
    b"PK",
    b"%PDF",
    b"\xff\xfe",
    b"\xfe\xff",
    b"\0\0\xfe\xff",
)

LINES = st.lists(
    st.one_of(
        TEXTS.map(lambda text: (json.dumps({"text": text}).encode(), text)),
        TEXTS.map(lambda text: (json.dumps({"text": text}, ensure_ascii=False).encode(), text)),
        st.sampled_from([*ODD_LINES.values()][:-1]),
        st.sampled_from([(line, None) for line in BAD_LINES.values()]),
        st.sampled_from([(b"", ""), (b"  ", ""), (b"\r", "")]),
    ),
    max_size=12,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, newlines=st.sampled_from([b"\n", b"\r\n"]), part_bytes=st.integers(1, 300))
def test_what_survives_is_what_was_good(lines, newlines, part_bytes, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(newlines.join(line for line, _ in lines))
    source = source_of(tmp_path / "a.jsonl", on_bad_record="skip")
    if lines and lines[0][0] == BAD_LINES["byte order mark"]:
        # At the head of a file it is no text.
        lines = [(lines[0][0], "marked"), *lines[1:]]
    kept, bad = [], 0
    # A deep line alone would be opened 100,000 times for parts of one byte.
    size = (tmp_path / "a.jsonl").stat().st_size
    for part in parts(source, "train", max(part_bytes, size // 1000)):
        for record in records(source, "train", part):
            try:
                kept.append(document_of(source, record).text)
            except BadRecord as reason:
                bad += "a.jsonl:" in str(reason)
    assert kept == [text for _, text in lines if text]
    assert bad == sum(text is None for _, text in lines)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=200))
@example(content=b"\x0b" * 10 + b"\x00\x85{")
@example(content=b" \n\r\n")
@example(content=b'\n{"text": "a line"}\n{')
@example(content=b'\xef\xbb\xbf{"text": "marked"}\n')
def test_any_bytes_at_all(content, tmp_path):
    """As lines and as a text: the texts, or a refusal that names the file and the line."""
    assume(not content.startswith(OTHER_KINDS))
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "a.txt").write_bytes(content)
    found = refusal_or_texts(source_of(tmp_path / "a.jsonl"))
    content = content.removeprefix(b"\xef\xbb\xbf")
    lines = list(map(plain_text, content.split(b"\n")))
    if None in lines:
        assert f"a.jsonl:{lines.index(None) + 1}: " in found
    else:
        assert found == [line for line in lines if line.strip()]
    found = refusal_or_texts(source_of(tmp_path / "a.txt", format="text"))
    readable = content.decode(errors="ignore")
    if readable.encode() == content:
        assert found == [text for text in [readable] if text.strip()]
    else:
        assert "a.txt: not UTF-8 (byte " in found


def plain_text(line):
    """The text of a line, "" for a blank one, None for one that has none."""
    if not line.strip():
        return ""
    try:
        text = json.loads(line.decode().rstrip())["text"]
        text.encode()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return text


def packed(kind, folder):
    """A file of 3,000 records of each kind that can be cut short or damaged."""
    rows = [{"text": f"document {i} " * 20} for i in range(3000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if kind == "gz":
        (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines, mtime=0))
        return folder / "a.jsonl.gz", {}
    if kind == "zst":
        (folder / "a.jsonl.zst").write_bytes(pyarrow.compress(lines, "zstd", asbytes=True))
        return folder / "a.jsonl.zst", {}
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "a.parquet")
        return folder / "a.parquet", {"format": "parquet"}
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(folder / "a.array_record"), "group_size:64")
    for row in rows:
        writer.write(json.dumps(row).encode())
    writer.close()
    return folder / "a.array_record", {"format": "array_record"}


KINDS = ("gz", "zst", "parquet", "array_record")


@pytest.fixture(scope="module", params=KINDS)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path, options = packed(request.param, folder)
    return path, path.read_bytes(), options


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_packed_file_cut_anywhere_is_never_taken_for_a_whole_one(whole, data):
    path, content, options = whole
    end = data.draw(st.integers(0, len(content) - 1))
    path.write_bytes(content[:end])
    source = source_of(path, on_bad_record="skip", **options)
    with pytest.raises(Fault, match=path.name):
        list(documents(source, "train"))


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_a_packed_file_with_a_flipped_bit_is_refused_or_harmless(whole, data):
    """Checksums find it in gzip and ArrayRecord; where a format has none, nothing else may come."""
    path, content, options = whole
    place, bit = data.draw(st.integers(0, len(content) - 1)), data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    path.write_bytes(damaged)
    found = refusal_or_texts(source_of(path, on_bad_record="skip", **options))
    if isinstance(found, str):
        assert path.name in found
    else:
        assert len(found) <= 3000
        if path.suffix == ".gz":
            assert found == [f"document {i} " * 20 for i in range(3000)]
