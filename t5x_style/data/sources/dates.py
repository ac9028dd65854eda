"""Dates as documents and bounds have them: YYYY, YYYY-MM or YYYY-MM-DD, by the calendar."""

import datetime
import functools
import re

# After a whole date a time as in RFC 3339, and as SQL, Python and git write it. Seconds and the
# offset may be left out.
DATE = re.compile(
    r"[0-9]{4}(-[0-9]{2}(-[0-9]{2}"
    r"([Tt ]([01][0-9]|2[0-3]):[0-5][0-9](:([0-5][0-9]|60)([.,][0-9]+)?)?"
    r"( ?([Zz]|UTC|[+-]([01][0-9]|2[0-3])(:?[0-5][0-9])?))?)?)?)?"
)
DAY_DIGITS = len("YYYY-MM-DD")
SINCE_1970 = {10: "seconds", 13: "milliseconds", 16: "microseconds", 19: "nanoseconds"}


@functools.lru_cache(maxsize=4096)
def first_day(text: str) -> datetime.date:
    """The day of a date, or the first day of a year or month.

    After a whole date there may be a time, which is not looked at: a document is of the local day
    that is written.

    Raises:
      ValueError: it is no date of the calendar. Week dates (2022-W09-2), ordinal dates (2022-060)
        and dates without dashes are none.
    """
    if not DATE.fullmatch(text):
        raise ValueError(f"{text!r} is no date")
    return datetime.date.fromisoformat(text[:DAY_DIGITS] + "2000-01-01"[len(text) :])


def is_bound(value: object) -> bool:
    """Whether a value is a date without a time."""
    try:
        return isinstance(value, str) and len(value) <= DAY_DIGITS and bool(first_day(value))
    except ValueError:
        return False


def is_split_by(date: str, bound: str) -> bool:
    """Whether a year or month has days before the bound and others from it on."""
    if len(date) >= DAY_DIGITS:
        return False
    first = first_day(bound)
    return first_day(date) < first and first.isoformat().startswith(date)


def advice(text: str) -> str:
    """The date that a number may mean, as `; if … write 'YYYY-MM-DD'`; otherwise nothing."""
    if not re.fullmatch("[0-9]+", text):
        return ""
    try:
        if len(text) == len("YYYYMMDD"):
            day = datetime.date.fromisoformat(f"{text[:4]}-{text[4:6]}-{text[6:]}")
            return f"; write '{day}'"
        if len(text) in SINCE_1970:
            day = datetime.datetime.fromtimestamp(int(text[:10]), datetime.UTC).date()
            return f"; if it counts {SINCE_1970[len(text)]} since 1970, write '{day}'"
    except ValueError:
        pass
    return ""
