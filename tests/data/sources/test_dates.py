"""Dates of documents by the calendar: what is a date, and on which side of a bound it is."""

import calendar
import datetime
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from t5x_style.data import Source
from t5x_style.data.building import worker_process
from t5x_style.data.sources.dates import first_day
from t5x_style.data.sources.documents import documents
from t5x_style.errors import Fault, UsageError
from tests.data.store_helpers import write_store

ARABIC = "\u0662\u0660\u0662\u0662"  # 2022 in other digits


def dated(folder, *dates, **options):
    lines = [json.dumps({"text": f"text of {date}", "date": date}) for date in dates]
    (folder / "a.jsonl").write_text("\n".join(lines))
    return Source(name="a", splits={"train": str(folder / "a.jsonl")}, date_field="date", **options)


@pytest.mark.parametrize(
    "date",
    [
        "0000-00-00",  # SQL's null
        "0000",
        "2022-00",
        "2022-13",
        "2023-13-45",
        "2023-02-30",
        "2023-02-29",
        "1900-02-29",  # no leap year, by the rule of centuries
        "2022-3-1",
        "20220301",
        "1646092800",
        "1646092800000",
        " 2022-03-01",
        "2022-03-01 ",
        "2022-03-01\n",
        "March 2022",
        "2022/03/01",
        "2022.03.01",
        "2022 or so",
        "2022-03-01 or so",
        "2022-03-01/2022-03-05",
        "2022-03-01T25:00",
        "2022-03-01T23:61:00",
        "2022-03-01T23:30+25:00",
        "2022-03T10:00",
        "2022-W09-2",
        "2022-W09",
        "2022-060",
        f"{ARABIC}-03-01",
        "2022-0\u0663-01",
        "-2022-03-01",
        "+2022-03-01",
        "12022-03-01",
        "",
    ],
)
def test_what_is_no_date_is_a_bad_record_with_its_value_and_the_right_form(tmp_path, date):
    source = dated(tmp_path, "2020-01-01", date, validation_from="2023-07")
    for split in ("train", "validation"):
        with pytest.raises(Fault) as error:
            list(documents(source, split))
        assert f"a.jsonl:2: date = {date!r} is no date" in str(error.value)
        assert "YYYY-MM-DD" in str(error.value)
    forgiving = dated(
        tmp_path, "2020-01-01", date, "2024-01-01", validation_from="2023-07", on_bad_record="skip"
    )
    assert list(documents(forgiving, "train")) == ["text of 2020-01-01"]
    assert list(documents(forgiving, "validation")) == ["text of 2024-01-01"]


@pytest.mark.parametrize(
    ("date", "advice"),
    [
        ("20220301", "write '2022-03-01'"),
        # By GNU date: `date -u -d @1646092800`.
        ("1646092800", "counts seconds since 1970, write '2022-03-01'"),
        ("1646092800000", "counts milliseconds since 1970, write '2022-03-01'"),
        ("1646092800000000", "counts microseconds since 1970, write '2022-03-01'"),
        ("1646092800000000000", "counts nanoseconds since 1970, write '2022-03-01'"),
    ],
)
def test_a_number_is_no_date_and_the_advice_is_the_date_that_it_may_mean(tmp_path, date, advice):
    for value in (date, int(date)):
        with pytest.raises(Fault, match=f"date = '{date}' is no date.*{advice}"):
            list(documents(dated(tmp_path, value, validation_from="2021"), "train"))
    impossible = dated(tmp_path, "20221301", validation_from="2021")
    with pytest.raises(Fault) as error:
        list(documents(impossible, "train"))
    assert "write '" not in str(error.value)


@pytest.mark.parametrize(
    "date",
    [
        "2022-03-01",
        "2022-03-01T23:30-08:00",  # already the second of March in UTC
        "2022-03-01T00:30+14:00",  # still the last of February
        "2022-03-01T23:59:59Z",
        "2022-03-01t23:59:60z",  # a leap second
        "2022-03-01 10:00:00.123456789",
        "2022-03-01 10:00:00,5 UTC",
        "2022-03-01 10:00:00+00",
        "2022-03-01 10:00:00 +0100",
        "2022-03-01T10:00",
    ],
)
def test_a_time_belongs_to_its_local_day(tmp_path, date):
    for bound, split in (("2022-03-01", "validation"), ("2022-03-02", "train")):
        source = dated(tmp_path, date, validation_from=bound)
        assert list(documents(source, split)) == [f"text of {date}"]
        other = {"train": "validation", "validation": "train"}[split]
        assert list(documents(source, other)) == []


@pytest.mark.parametrize(
    ("date", "bound", "split"),
    [
        ("2024-02-29", "2024-03", "train"),
        ("2000-02-29", "2000-02-29", "validation"),
        ("2021-12", "2022-01-01", "train"),
        # The whole of a year or month is on one side of a bound that begins it.
        ("2021", "2021-01", "validation"),
        ("2021", "2021-01-01", "validation"),
        ("2021-07", "2021-07-01", "validation"),
        ("2020", "2021-01-01", "train"),
        (2021, "2021", "validation"),
        (2020.0, "2021", "train"),
        ("9999-12-31", "2021", "validation"),
        ("0001-01-01", "2021", "train"),
    ],
)
def test_the_side_of_a_bound(tmp_path, date, bound, split):
    source = dated(tmp_path, date, validation_from=bound)
    assert list(documents(source, split)) == [f"text of {date}"]
    other = {"train": "validation", "validation": "train"}[split]
    assert list(documents(source, other)) == []


@settings(deadline=None)
@given(
    year=st.integers(1990, 2010),
    month=st.none() | st.integers(1, 12),
    bound=st.dates(datetime.date(1989, 1, 1), datetime.date(2011, 1, 1)),
)
@example(year=2000, month=2, bound=datetime.date(2000, 2, 29))
def test_a_coarse_date_is_decided_or_refused_as_all_of_its_days_are(
    year, month, bound, tmp_path_factory
):
    """Against each day of it: refused if and only if some are before the bound and some not."""
    date = f"{year}" if month is None else f"{year}-{month:02}"
    months = range(1, 13) if month is None else [month]
    days = [
        datetime.date(year, m, day)
        for m in months
        for day in range(1, calendar.monthrange(year, m)[1] + 1)
    ]
    sides = {day >= bound for day in days}
    folder = tmp_path_factory.getbasetemp()
    source = dated(folder, date, validation_from=bound.isoformat())
    if len(sides) == 2:
        with pytest.raises(Fault, match=f"date = '{date}' may be before or after '{bound}'"):
            list(documents(source, "train"))
    else:
        assert len(list(documents(source, "validation"))) == sides.pop()


@given(text=st.text("0123456789-T:Z+W ", max_size=20))
def test_any_text_that_is_taken_for_a_date_begins_with_one_of_the_calendar(text):
    """Whatever the interpreter's own parser takes beyond that."""
    try:
        first_day(text)
    except ValueError:
        return
    padded = text[:10] + "2000-01-01"[len(text[:10]) :]
    assert datetime.date.fromisoformat(padded).isoformat() == padded


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_from": "2022-W01-1"}, "'2022-W01-1' is no date"),
        ({"validation_from": "2022-060"}, "'2022-060' is no date"),
        ({"validation_from": "2023-02-29"}, "'2023-02-29' is no date"),
        ({"validation_from": "2022-01-01T00:00"}, "'2022-01-01T00:00' is no date"),
        ({"validation_from": f"{ARABIC}"}, "is no date"),
        ({"validation_from": 2022}, "2022 is no date: write YYYY"),
        ({"dates": ("2022", "2020")}, r"dates of 'a' = \('2022', '2020'\): no day is from 2022 on"),
        ({"dates": ("2022", "2022")}, "no day is from 2022 on and before 2022"),
        ({"dates": ("2022-01", "2022")}, "no day is from 2022-01 on and before 2022"),
    ],
)
def test_bounds_that_cannot_be(options, message):
    with pytest.raises(UsageError, match=message):
        Source("a", {"train": "x"}, date_field="date", **options)


def test_dates_of_the_future_are_counted_and_told(tmp_path, capsys):
    today = datetime.date.today()
    far = ["9999-12-31", f"{today.year + 2}-01-01T10:00", f"{today.year + 1}", None]
    rows = [{"date": date} for date in [*far, "2020-01-01", today.isoformat()]]
    store = write_store(tmp_path / "a", [[5, 1]] * len(rows), rows=rows)
    worker_process._print_future_dates("a validation", store.path, store.meta)
    assert capsys.readouterr().err == (
        "a validation: 3 documents are dated in the future, the last of them 9999-12-31; "
        "Source.dates = (FROM, BEFORE) leaves them out\n"
    )
    past = write_store(tmp_path / "b", [[5, 1]], rows=[{"date": today.isoformat()}])
    plain = write_store(tmp_path / "c", [[5, 1]])
    for store in (past, plain):
        worker_process._print_future_dates("a train", store.path, store.meta)
    assert capsys.readouterr().err == ""
