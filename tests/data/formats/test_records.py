"""Parts that add up to the split, what is known of a document, and splits by date."""

import contextlib
import datetime
import gzip
import io
import json
import struct
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from t5x_style.data import FileFormat, Source
from t5x_style.data.formats import format as file_format
from t5x_style.data.formats import plain_files
from t5x_style.data.formats.array_record import BrokenExample, example_fields
from t5x_style.data.formats.format import BadRecord, LineCount, Part
from t5x_style.data.sources.documents import (
    Document,
    belongs,
    document_of,
    documents,
    parts,
    records,
)
from t5x_style.errors import Fault, UsageError

LINES = st.lists(
    st.one_of(
        st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")),
        st.just(b"x" * 300),
        st.just(b"\r"),
    ),
    max_size=20,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.lists(LINES, min_size=1, max_size=3), part_bytes=st.integers(1, 400), end=...)
def test_parts_of_lines_add_up_to_the_lines(files, part_bytes, end: bool, tmp_path):
    """Whatever the size of a part: each line once, in order, under its own number."""
    expected = []
    for number, lines in enumerate(files):
        content = b"\n".join(lines) + (b"\n" if end else b"")
        if content[:1].strip():
            content = b"{" + content  # no archive begins so, and no byte-order mark
        (tmp_path / f"{number}.jsonl").write_bytes(content)
        expected += [
            (f"{number}.jsonl:{k}", line.rstrip(b"\n"))
            for k, line in enumerate(content.split(b"\n"), start=1)
            if line.strip()
        ]
    for left_over in tmp_path.glob("*.jsonl"):
        if int(left_over.stem) >= len(files):
            left_over.unlink()
    source = Source(name="a", splits={"train": str(tmp_path / "*.jsonl")})
    found, read = [], []
    for part in parts(source, "train", part_bytes):
        for record in records(source, "train", part, read.append):
            found.append((record.place.rsplit("/", 1)[1], record.data.rstrip(b"\n")))
    assert found == expected
    assert sum(read) == sum(path.stat().st_size for path in source.files("train"))


def test_a_part_of_a_large_file_opens_in_its_middle(tmp_path):
    with open(tmp_path / "a.jsonl", "wb") as file:
        for i in range(5000):
            file.write(json.dumps({"text": "word " * 50, "id": i}).encode() + b"\n")
        file.write(b"broken\n")
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl")}, id_field="id")
    cut = parts(source, "train", 100_000)
    assert len(cut) == 14
    assert sum(part.size for part in cut) == (tmp_path / "a.jsonl").stat().st_size
    *_, last = records(source, "train", cut[-1])
    with pytest.raises(BadRecord, match=r"a\.jsonl:5001: broken JSON"):
        document_of(source, last)


def test_the_lines_before_a_part_are_counted_once(tmp_path):
    """Not for each bad record: of a file with many, that would be most of a build."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": null}\n' * 100)
    source = Source(name="a", splits={"train": str(path)})
    *_, last = parts(source, "train", 700)
    first, *others = records(source, "train", last)
    assert first.place == f"{path}:95"
    path.unlink()
    assert [record.place for record in others] == [f"{path}:{n}" for n in range(96, 101)]


def test_lines_before_any_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(file_format, "BUFFER_BYTES", 4)
    content = b"\na\nbcdefg\n\nhi\njk"
    (tmp_path / "a").write_bytes(content)
    for offset in range(len(content) + 1):
        lines = LineCount(str(tmp_path / "a"), offset).lines_before
        assert lines == content[:offset].count(b"\n")
    assert LineCount(str(tmp_path / "a"), 99).lines_before == 5


@pytest.mark.parametrize(
    ("part_bytes", "found"),
    [
        (1, [(0, 10, 5), (10, 20, 5), (20, None, 5)]),
        (5, [(0, 10, 5), (10, 20, 5), (20, None, 5)]),
        (6, [(0, 20, 10), (20, None, 5)]),
        (10, [(0, 20, 10), (20, None, 5)]),
        (11, [(0, None, 15)]),
    ],
)
def test_a_part_has_at_least_the_wanted_bytes_but_for_the_last(tmp_path, part_bytes, found):
    class InThree(FileFormat):
        def cuts(self, path, part_bytes):
            return [(10, 5), (20, 5), (None, 5)]

        def records(self, split, part, on_read):
            raise AssertionError

    (tmp_path / "a.x").write_text("a")
    (tmp_path / "b.x").write_text("b")
    split = Source(name="a", splits={"train": str(tmp_path / "*.x")}).split("train")
    assert InThree().parts(split, part_bytes) == [
        Part(str(tmp_path / name), *part) for name in ("a.x", "b.x") for part in found
    ]


def test_small_text_files_share_a_part(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.txt").write_text(f"{i}" * 40)
    source = Source(name="a", format="text", splits={"train": str(tmp_path / "*.txt")})
    cut = parts(source, "train", 100)
    assert [(part.start, part.stop, part.size) for part in cut] == [
        (0, 3, 120),
        (3, 6, 120),
        (6, 9, 120),
        (9, 10, 40),
    ]
    texts = [document_of(source, r).text for part in cut for r in records(source, "train", part)]
    assert texts == [f"{i}" * 40 for i in range(10)]


def test_an_archive_is_one_part(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wb") as file:
        file.write(b'{"text": "x"}\n' * 1000)
    source = Source(name="a", splits={"train": str(tmp_path / "a.jsonl.gz")})
    (part,) = parts(source, "train", 10)
    assert sum(1 for _ in records(source, "train", part)) == 1000


def test_tables_are_cut_between_row_groups_and_batches(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": f"text {i}", "id": i} for i in range(5000)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    (tmp_path / "hf").mkdir()
    with pyarrow.ipc.new_stream(tmp_path / "hf" / "data.arrow", table.schema) as stream:
        stream.write_table(table, max_chunksize=700)
    (tmp_path / "hf" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data.arrow"}]})
    )
    for kind, where in (("parquet", "a.parquet"), ("hf", "hf")):
        source = Source(
            name="a", format=kind, splits={"train": str(tmp_path / where)}, id_field="id"
        )
        for part_bytes, count in ((1, 8), (1 << 30, 1)):
            cut = parts(source, "train", part_bytes)
            assert len(cut) == count
            read = []
            found = [
                (document_of(source, record).id, record.where.rsplit(" ", 1)[1])
                for part in cut
                for record in records(source, "train", part, read.append)
            ]
            assert found == [(str(i), str(i + 1)) for i in range(5000)]
            assert sum(read) == sum(part.size for part in cut)


def dated(tmp_path, found, **options):
    lines = [json.dumps({"text": f"text of {date}", "date": date}) for date in found]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    return Source(
        name="a", splits={"train": str(tmp_path / "a.jsonl")}, date_field="date", **options
    )


DATES = ["1999-12-31", "2000-01-01", "2021-06-30T23:59:59Z", "2021-07-01", "2023-01", "2024"]


def test_validation_is_strictly_later_than_training(tmp_path):
    source = dated(tmp_path, DATES, validation_from="2021-07", dates=("2000", "2024"))
    assert source.split_names() == ("train", "validation")
    assert list(documents(source, "train")) == [f"text of {date}" for date in DATES[1:3]]
    assert list(documents(source, "validation")) == [f"text of {date}" for date in DATES[3:5]]


@pytest.mark.parametrize(
    ("dates", "train", "validation"),
    [
        ((None, None), (None, "2021-07"), ("2021-07", None)),
        (("2000", "2024"), ("2000", "2021-07"), ("2021-07", "2024")),
        # Bounds that leave one of the splits nothing.
        (("2022", None), ("2022", "2021-07"), ("2022", None)),
        ((None, "2020"), (None, "2020"), ("2021-07", "2020")),
    ],
)
def test_the_dates_of_a_split(dates, train, validation):
    source = Source("a", {"train": "x"}, date_field="d", dates=dates, validation_from="2021-07")
    assert source.date_window("train") == train
    assert source.date_window("validation") == validation
    plain = Source("a", {"train": "x"}, date_field="d", dates=dates)
    assert plain.date_window("train") == dates


@settings(deadline=None)
@given(
    date=st.dates(datetime.date(1990, 1, 1), datetime.date(2030, 1, 1)),
    bound=st.dates(datetime.date(1990, 1, 1), datetime.date(2030, 1, 1)),
    digits=st.sampled_from([4, 7, 10]),
)
def test_each_dated_document_is_in_one_split(date, bound, digits):
    """Against the calendar: the first day of the bound is the first of validation."""
    written = bound.isoformat()[:digits]
    source = Source(name="a", splits={"train": "x"}, date_field="date", validation_from=written)
    first_day = datetime.date.fromisoformat(written + "2000-01-01"[digits:])
    document = Document("", None, date.isoformat(), None, "")
    assert belongs(source, "validation", document) == (date >= first_day)
    assert belongs(source, "train", document) == (date < first_day)


@pytest.mark.parametrize(
    ("date", "message"),
    [
        (None, "date = None is no date"),
        ("soon", "date = 'soon' is no date"),
        ("20210701", "date = '20210701' is no date"),
        ("2021", "date = '2021' may be before or after '2021-07-01'"),
    ],
)
def test_a_date_that_decides_nothing_is_a_bad_record(tmp_path, date, message):
    source = dated(tmp_path, ["2020-01-01", date], validation_from="2021-07-01")
    with pytest.raises(Fault, match=rf"a\.jsonl:2: {message}"):
        list(documents(source, "train"))


def test_metadata_of_any_type_is_text(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"text": "a", "n": 7, "when": datetime.date(2020, 1, 2), "terms": ["MIT", "BSD"]},
        {"text": "b", "n": None, "when": None, "terms": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    source = Source(
        name="a",
        format="parquet",
        splits={"train": str(tmp_path / "a.parquet")},
        id_field="n",
        date_field="when",
        license_field="terms",
    )
    found = [
        document_of(source, record)
        for part in parts(source, "train")
        for record in records(source, "train", part)
    ]
    assert [(d.id, d.date, d.license) for d in found] == [
        ("7", "2020-01-02", "MIT, BSD"),
        (None, None, None),
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dates": ("2020",)}, r"write \(FROM, BEFORE\)"),
        ({"dates": ("2020-13", None), "date_field": "d"}, "'2020-13' is no date"),
        ({"dates": ("20200101", None), "date_field": "d"}, "'20200101' is no date"),
        ({"validation_from": "2020"}, "set date_field"),
        (
            {
                "validation_from": "2020",
                "date_field": "d",
                "splits": {"train": "a", "validation": "b"},
            },
            "which of them",
        ),
        (
            {"format": "text", "license_field": "l"},
            "format 'text' does not read it; jsonl",
        ),
    ],
)
def test_declarations_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        Source(**{"name": "a", "splits": {"train": "a"}} | options)


def message(number, content):
    """A length-delimited field, written by hand."""
    size, head = len(content), b""
    while True:
        head += bytes([size & 0x7F | (0x80 if size > 0x7F else 0)])
        size >>= 7
        if not size:
            return bytes([number << 3 | 2]) + head + content


def test_an_example_as_tensorflow_writes_it():
    """By the encoding guide of protocol buffers, field by field."""
    text = message(1, b"text") + message(2, message(1, message(1, "caf\u00e9 ".encode() * 40)))
    numbers = b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x80\x02"
    ints = message(1, b"n") + message(2, message(3, message(1, numbers)))
    floats = message(1, b"f") + message(2, message(2, message(1, struct.pack("<2f", 0.5, -2))))
    empty = message(1, b"none") + message(2, b"")
    example = message(1, b"".join(message(1, item) for item in (text, ints, floats, empty)))
    assert example_fields(example) == {
        "text": "caf\u00e9 ".encode() * 40,
        "n": [1, -1, 256],
        "f": [0.5, -2.0],
        "none": [],
    }


def test_examples_are_parsed_without_tensorflow():
    program = (
        "import sys\n"
        "from t5x_style.data.formats.array_record import example_fields\n"
        "fields = example_fields(bytes.fromhex('0a0c0a0a0a016e12051a030a0107'))\n"
        "print(fields, 'tensorflow' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "{'n': 7} False\n", run.stderr


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_example_are_refused_or_read(data):
    with contextlib.suppress(BrokenExample):
        assert example_fields(data)


def test_array_records_of_examples(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    for i in range(3):
        feature = message(1, b"text") + message(2, message(1, message(1, f"text {i}".encode())))
        writer.write(message(1, message(1, feature)))
    writer.close()
    source = Source(
        name="a",
        format="array_record_example",
        splits={"train": str(tmp_path / "a.array_record")},
    )
    assert list(documents(source, "train")) == ["text 0", "text 1", "text 2"]
    as_json = Source(
        name="a", format="array_record", splits={"train": str(tmp_path / "a.array_record")}
    )
    with pytest.raises(Fault, match="record 1: broken JSON"):
        list(documents(as_json, "train"))


def test_a_file_of_array_records_is_cut_for_many_workers(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    path = tmp_path / "a.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:64")
    for i in range(3000):
        writer.write(json.dumps({"text": f"text {i}"}).encode())
    writer.close()
    source = Source(name="a", format="array_record", splits={"train": str(path)})
    size = path.stat().st_size
    found = parts(source, "train", part_bytes=size // 3)
    assert [(part.start, part.stop) for part in found] == [(0, 1024), (1024, 2048), (2048, 3000)]
    assert sum(part.size for part in found) == size
    read = [record for part in found for record in records(source, "train", part)]
    assert [json.loads(record.data)["text"] for record in read] == [
        f"text {i}" for i in range(3000)
    ]


def test_lines_are_read_a_megabyte_at_a_time(tmp_path, monkeypatch):
    """Not by the 8 kB that Python reads unless it is asked for more."""
    path = tmp_path / "a.jsonl"
    path.write_bytes((json.dumps({"text": "word " * 600}).encode() + b"\n") * 1500)
    sizes = []

    class Counted(io.FileIO):
        def readinto(self, buffer):
            sizes.append(super().readinto(buffer))
            return sizes[-1]

    def opened(file, mode, buffering):
        return io.BufferedReader(Counted(file, mode), buffering)

    monkeypatch.setattr(plain_files, "open", opened, raising=False)
    source = Source(name="a", splits={"train": str(path)})
    assert sum(1 for p in parts(source, "train") for _ in records(source, "train", p)) == 1500
    assert sum(sizes) == path.stat().st_size > 4 * 2**20
    assert sizes[:4] == [2**20] * 4
