"""The values of table columns: any Arrow type that is text or a date, bad ones row by row."""

import datetime
import json
import tracemalloc
import uuid
import zoneinfo

import numpy
import pyarrow
import pyarrow.compute
import pyarrow.ipc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data import Source
from t5x_style.data.sources.documents import document_of, kept_documents, parts, records
from t5x_style.errors import Fault, UsageError

TEXTS = ["one", None, "two \u00e9", "one"]
# By GNU date: `date -u -d 10000-01-01 +%s`, `date -u -d 0001-01-01 +%s`.
SECONDS_OF_YEAR_10000 = 253402300800
FIRST_SECOND = -62135596800


def parquet(folder, table, use_dictionary=True, write_batch_size=None, **options):
    pyarrow.parquet.write_table(
        table,
        folder / "a.parquet",
        use_dictionary=use_dictionary,
        write_batch_size=write_batch_size,
    )
    return Source(
        name="a", format="parquet", splits={"train": str(folder / "a.parquet")}, **options
    )


def arrow(folder, table, **options):
    with pyarrow.ipc.new_stream(str(folder / "a.arrow"), table.schema) as stream:
        stream.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    return Source(name="a", format="hf", splits={"train": str(folder)}, **options)


KINDS = [parquet, arrow]


def read(source):
    return [
        document_of(source, record)
        for part in parts(source, "train")
        for record in records(source, "train", part)
    ]


def column_of(values):
    """{name of a type: the same values in it}."""
    plain = pyarrow.array(values)
    json_type = pyarrow.json_(pyarrow.string())
    return {
        "string": plain,
        "large_string": plain.cast(pyarrow.large_string()),
        "string_view": plain.cast(pyarrow.string_view()),
        "binary": plain.cast(pyarrow.binary()),
        "large_binary": plain.cast(pyarrow.large_binary()),
        "binary_view": plain.cast(pyarrow.binary_view()),
        "dictionary": plain.dictionary_encode(),
        "dictionary of large": plain.cast(pyarrow.large_string()).dictionary_encode(),
        "run ends": pyarrow.compute.run_end_encode(plain),
        "extension": pyarrow.ExtensionArray.from_storage(json_type, plain),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", column_of(TEXTS))
def test_every_type_that_holds_text_is_read_as_text(kind, name, tmp_path):
    column = column_of(TEXTS)[name]
    if kind is parquet and name == "run ends":
        pytest.skip("Parquet has no such type")
    table = pyarrow.table({"text": column, "n": [1, 2, 3, 4]})
    source = kind(tmp_path, table, id_field="n", license_field="text", on_bad_record="skip")
    found = [(d.text, d.id, d.license) for d in kept_documents(source, "train")]
    assert found == [
        ("one", "1", "one"),
        ("two \u00e9", "3", "two \u00e9"),
        ("one", "4", "one"),
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_is_no_utf8_spoils_its_row_alone(kind, tmp_path):
    table = pyarrow.table({"text": ["a", "b", "c"]})
    broken = pyarrow.array([b"ok", b"\xff", b"ok"]).view(pyarrow.string())
    words = broken.dictionary_encode()
    for column in (broken, words):
        source = kind(tmp_path, table.append_column("license", column), license_field="license")
        with pytest.raises(Fault, match=r"row 2: not UTF-8"):
            list(kept_documents(source, "train"))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zone", [None, "UTC", "+05:30"])
@pytest.mark.parametrize("unit", ["ms", "us"])
def test_a_timestamp_beyond_the_calendar_is_a_bad_record_with_its_row(kind, zone, unit, tmp_path):
    """The last day of Python's calendar is read, the next is not."""
    seconds = [0, SECONDS_OF_YEAR_10000, -(10**12), SECONDS_OF_YEAR_10000 - 86400]
    per_second = {"ms": 10**3, "us": 10**6}[unit]
    values = pyarrow.array([s * per_second for s in seconds], pyarrow.timestamp(unit, zone))
    table = pyarrow.table({"text": ["a", "b", "c", "d"], "when": values})
    source = kind(tmp_path, table, date_field="when", on_bad_record="skip")
    tail = {None: "", "UTC": "Z", "+05:30": "+05:30"}[zone]
    clock = "05:30:00" if zone == "+05:30" else "00:00:00"
    found = [(d.text, d.date) for d in kept_documents(source, "train")]
    assert found == [("a", f"1970-01-01T{clock}{tail}"), ("d", f"9999-12-31T{clock}{tail}")]
    strict = kind(tmp_path, table, date_field="when")
    message = (
        rf"row 2: field 'when': timestamp\[{unit}.*\] {seconds[1] * per_second} is no date of the "
        rf"years 1 to 9999"
    )
    with pytest.raises(Fault, match=message):
        list(kept_documents(strict, "train"))


def test_a_time_zone_that_leaves_the_calendar_spoils_its_row_alone(tmp_path):
    """23:00 of the last day in UTC is in the year 10000 of India; so before the year 1."""
    values = [SECONDS_OF_YEAR_10000 - 3600, 0, FIRST_SECOND]
    for zone, left in (("+05:30", ["b", "c"]), ("-05:00", ["a", "b"])):
        column = pyarrow.array(values, pyarrow.timestamp("s", zone))
        table = pyarrow.table({"text": ["a", "b", "c"], "when": column})
        source = arrow(tmp_path, table, date_field="when", on_bad_record="skip")
        assert [d.text for d in kept_documents(source, "train")] == left


def test_digits_of_nanoseconds_and_zones_do_not_change_the_day(tmp_path):
    values = [0, 1, -1, 10**9 * 1646092799 + 999_999_999, 2**63 - 1]
    for zone, days in (
        (None, ["1970-01-01", "1970-01-01", "1969-12-31", "2022-02-28", "2262-04-11"]),
        ("America/New_York", ["1969-12-31"] * 3 + ["2022-02-28", "2262-04-11"]),
        ("Asia/Kolkata", ["1970-01-01"] * 3 + ["2022-03-01", "2262-04-12"]),
    ):
        column = pyarrow.array(values, pyarrow.timestamp("ns", zone))
        table = pyarrow.table({"text": ["x"] * 5, "when": column})
        for kind in KINDS:
            found = [d.date[:10] for d in read(kind(tmp_path, table, date_field="when"))]
            assert found == days


@settings(deadline=None, max_examples=50)
@given(
    moments=st.lists(
        # Arrow knows no summer time after 2037.
        st.none() | st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2037, 1, 1)),
        min_size=1,
        max_size=5,
    ),
    unit=st.sampled_from(["s", "ms", "us"]),
    zone=st.sampled_from([None, "UTC", "-07:00", "America/New_York", "Asia/Kolkata"]),
)
def test_timestamps_are_those_of_the_standard_library(moments, unit, zone):
    from t5x_style.data.formats.columns import find_columns, rows_of

    digits = {"s": 10**6, "ms": 1000, "us": 1}[unit]
    moments = [m and m.replace(microsecond=m.microsecond // digits * digits) for m in moments]
    batch = pyarrow.record_batch(
        {
            "text": ["x"] * len(moments),
            "when": pyarrow.array(moments, pyarrow.timestamp(unit, zone)),
        }
    )
    columns = find_columns("a", batch.schema, ["text", "when"])
    found = [row["when"] for row, _ in rows_of(batch, columns, 100)]
    read = [None if text is None else datetime.datetime.fromisoformat(text) for text in found]
    if zone is None:
        assert read == moments
    elif "/" not in zone:
        assert read == [m and m.replace(tzinfo=datetime.UTC) for m in moments]
    else:
        # The written time is that of the place, whose offset may have had seconds long ago.
        place = zoneinfo.ZoneInfo(zone)
        there = [m and m.replace(tzinfo=datetime.UTC).astimezone(place) for m in moments]
        assert [t and t.replace(tzinfo=None) for t in read] == [
            t and t.replace(tzinfo=None) for t in there
        ]


def test_dates_and_times_of_every_type(tmp_path):
    day = datetime.date(2020, 2, 29)
    columns = {
        "date32": pyarrow.array([day], pyarrow.date32()),
        "date64": pyarrow.array([day], pyarrow.date64()),
        "dictionary": pyarrow.array([day], pyarrow.date32()).dictionary_encode(),
    }
    for name, column in columns.items():
        source = arrow(tmp_path, pyarrow.table({"text": ["x"], "when": column}), date_field="when")
        assert [(name, d.date) for d in read(source)] == [(name, "2020-02-29")]
    far = pyarrow.array([2932897, -719163, 0], pyarrow.int32()).view(pyarrow.date32())
    table = pyarrow.table({"text": ["a", "b", "c"], "when": far})
    for kind in KINDS:
        source = kind(tmp_path, table, date_field="when", on_bad_record="skip")
        assert [d.date for d in kept_documents(source, "train")] == ["1970-01-01"]


def test_the_old_timestamps_of_spark_do_not_wrap(tmp_path):
    """INT96 read as nanoseconds ends in 2262: SQL's open end 9999-12-31 becomes another date."""
    open_end = pyarrow.array([datetime.datetime(9999, 12, 31)], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(
        pyarrow.table({"text": ["x"], "when": open_end}),
        tmp_path / "a.parquet",
        use_deprecated_int96_timestamps=True,
    )
    source = Source(
        name="a",
        format="parquet",
        splits={"train": str(tmp_path / "a.parquet")},
        date_field="when",
    )
    assert [d.date for d in read(source)] == ["9999-12-31T00:00:00"]


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_numbers_too_as_they_are_written(kind, tmp_path):
    key = uuid.UUID(int=5)
    columns = {
        "7": pyarrow.array([7]),
        "18446744073709551615": pyarrow.array([2**64 - 1], pyarrow.uint64()),
        "True": pyarrow.array([True]),
        "0.5": pyarrow.array([0.5]),
        # pandas makes floats of whole numbers where some are missing.
        "8": pyarrow.array([8.0]),
        "1.50": pyarrow.array(["1.50"]).cast(pyarrow.decimal128(5, 2)),
        str(key): pyarrow.array([key.bytes], pyarrow.uuid()),
        "MIT, BSD": pyarrow.array([["MIT", "BSD"]]),
        "MIT, GPL": pyarrow.array([["MIT", "GPL"]], pyarrow.large_list(pyarrow.binary())),
        "1, 2": pyarrow.array([numpy.array([1, 2])], pyarrow.list_(pyarrow.int8(), 2)),
    }
    for expected, column in columns.items():
        source = kind(tmp_path, pyarrow.table({"text": ["x"], "id": column}), id_field="id")
        assert [d.id for d in read(source)] == [expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("column", "options", "message"),
    [
        ([["a"]], {}, r"the column 'text' is list<.*: string>, which is no text"),
        ([3], {}, r"the column 'text' is int64, which is no text"),
        ([datetime.date(2020, 1, 1)], {}, r"the column 'text' is date32\[day\], which is no text"),
        ([{"body": "x"}], {}, r"the column 'text' is a struct: name a field of it.*'text.body'"),
        (
            [[{"a": 1}]],
            {"id_field": "text", "text_field": "t"},
            r"the column 'text' is list<.*no text",
        ),
        (
            pyarrow.array([0], pyarrow.timestamp("ms", "Nowhere/City")),
            {"id_field": "text", "text_field": "t"},
            r"the column 'text' is timestamp\[ms, tz=Nowhere/City\].*Nowhere/City",
        ),
    ],
)
def test_a_column_that_is_no_text_is_refused_before_work(kind, column, options, message, tmp_path):
    table = pyarrow.table({"text": column, "t": ["x"]})
    source = kind(tmp_path, table, **options)
    with pytest.raises(UsageError, match=r"a\.(parquet|arrow): " + message):
        parts(source, "train")


@pytest.mark.parametrize("kind", KINDS)
def test_a_column_that_is_there_twice_is_refused(kind, tmp_path):
    table = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], ["text"] * 2)
    with pytest.raises(UsageError, match=r"has the column 'text' twice"):
        parts(kind(tmp_path, table), "train")


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_of_a_struct_is_named_with_a_dot(kind, tmp_path):
    rows = [
        {"doc": {"text": "a", "meta": {"id": 1, "b.c": "x"}}, "n": 1},
        {"doc": None, "n": 2},
        {"doc": {"text": "c", "meta": None}, "n": 3},
    ]
    table = pyarrow.Table.from_pylist(rows)
    source = kind(
        tmp_path,
        table,
        text_field="doc.text",
        id_field="doc.meta.id",
        license_field="doc.meta.b.c",
        on_bad_record="skip",
    )
    found = [(d.text, d.id, d.license) for d in kept_documents(source, "train")]
    assert found == [("a", "1", "x"), ("c", None, None)]
    # A column of that very name wins.
    direct = table.append_column("doc.text", pyarrow.array(["d", "e", "f"]))
    assert [d.text for d in read(kind(tmp_path, direct, text_field="doc.text"))] == ["d", "e", "f"]
    for field, message in (
        ("doc.txt", r"no field 'doc\.txt'; 'doc' has text, meta; did you mean 'text'"),
        ("n.text", r"no field 'n\.text'; 'n' is a Column, not an object"),
    ):
        with pytest.raises(UsageError, match=r"a\.(parquet|arrow): " + message):
            parts(kind(tmp_path, table, text_field=field), "train")


@pytest.mark.parametrize("kind", KINDS)
def test_huge_texts_are_python_objects_a_few_at_a_time(kind, tmp_path, monkeypatch):
    """30 texts of a megabyte: at once they are no more than a third of them."""
    monkeypatch.setattr("t5x_style.data.formats.columns.PIECE_BYTES", 2_000_000)
    texts = [f"{i:07}" + "x" * 10**6 for i in range(30)]
    source = kind(tmp_path, pyarrow.table({"text": texts}))
    (part,) = parts(source, "train")
    tracemalloc.start()
    rows = sum(1 for _ in records(source, "train", part))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == len(texts)
    assert 10**6 < peak < 10 * 10**6


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_over_the_limit_is_a_bad_record_that_python_never_holds(kind, tmp_path):
    texts = ["x" * 999, "\u00e9" * 501, None, "\u00e9" * 500, "x" * 10**7, "last"]
    table = pyarrow.table({"text": texts})
    source = kind(tmp_path, table, max_record_bytes=1000, on_bad_record="skip")
    (part,) = parts(source, "train")
    tracemalloc.start()
    found = [(r.where.rsplit(" ", 1)[1], r.problem) for r in records(source, "train", part)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * 10**6
    assert [row for row, problem in found if problem] == ["2", "5"]
    assert [d.text for d in kept_documents(source, "train")] == [texts[0], texts[3], "last"]
    message = r"row 2: field 'text': more than 1,000 bytes \(Source\.max_record_bytes\)"
    with pytest.raises(Fault, match=message):
        list(kept_documents(kind(tmp_path, table, max_record_bytes=1000), "train"))


def test_a_parquet_batch_of_huge_texts_is_of_few_rows(tmp_path):
    texts = [f"{i:07}" + "x" * 10**6 for i in range(60)]
    pages = {"use_dictionary": False, "write_batch_size": 1}  # a text is a page
    source = parquet(tmp_path, pyarrow.table({"text": texts, "n": list(range(60))}), **pages)
    before = pyarrow.total_allocated_bytes()
    held = [
        pyarrow.total_allocated_bytes() - before
        for _ in records(source, "train", *parts(source, "train"))
    ]
    assert len(held) == len(texts)
    assert 0 < max(held) < 30 * 10**6


def test_every_size_of_a_piece_gives_the_same_rows(tmp_path, monkeypatch):
    texts = [None if i % 7 == 0 else "x" * (i % 13) for i in range(100)]
    source = arrow(tmp_path, pyarrow.table({"text": texts}))
    for size in (1, 5, 12, 1000):
        monkeypatch.setattr("t5x_style.data.formats.columns.PIECE_BYTES", size)
        read_texts = [
            record.data["text"] for record in records(source, "train", *parts(source, "train"))
        ]
        assert read_texts == [None if text is None else text.encode() for text in texts]
