import contextlib
import json

import pytest

from t5x_style.accounting import Ledger
from t5x_style.accounting.audit import ledger


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves by hand."""

    class Clock:
        now = 100.0

        def perf_counter(self):
            return self.now

    moved = Clock()
    monkeypatch.setattr(ledger, "time", moved)
    return moved


def test_seconds_by_cause(clock):
    book = Ledger()
    with book.time("compile"):
        clock.now += 5
    clock.now += 100  # nobody's
    with book.time("step"):
        clock.now += 3
    book.add("save", 2)
    assert {cause: value for cause, value in book.seconds.items() if value} == {
        "compile": 5,
        "step": 3,
        "save": 2,
    }
    assert book.goodput == 0.3


def test_nested_blocks_book_no_second_twice(clock):
    book = Ledger()
    with book.time("step"):
        clock.now += 1
        with book.time("data"):
            clock.now += 2
        clock.now += 4
        # An open block counts up to now.
        assert book.seconds["step"] == 5
        clock.now += 8
    assert book.seconds["step"] == 13
    assert book.seconds["data"] == 2
    assert sum(book.seconds.values()) == 15


def test_a_block_left_by_an_exception_is_closed(clock):
    book = Ledger()
    with contextlib.suppress(RuntimeError), book.time("step"):
        clock.now += 1
        raise RuntimeError
    clock.now += 50
    assert book.seconds["step"] == 1


def test_after_its_beginning_every_second_is_booked(clock):
    book = Ledger({"idle": 3})
    clock.now += 50  # before it
    book.begin()
    clock.now += 1
    with book.time("start"):
        clock.now += 2
        with book.time("restore"):
            clock.now += 4
    clock.now += 8
    found = {cause: value for cause, value in book.seconds.items() if value}
    assert found == {"idle": 3, "start": 2, "restore": 4, "other": 9}


def test_it_survives_a_restart_through_json(clock):
    book = Ledger()
    with book.time("step"):
        clock.now += 7
    again = Ledger(json.loads(json.dumps(book.state())))
    again.add("lost", 3)
    with again.time("step"):
        clock.now += 1
    assert again.seconds["step"] == 8
    assert again.line() == {
        "seconds/start": 0,
        "seconds/restore": 0,
        "seconds/compile": 0,
        "seconds/data": 0,
        "seconds/step": 8,
        "seconds/evaluate": 0,
        "seconds/save": 0,
        "seconds/idle": 0,
        "seconds/lost": 3,
        "seconds/other": 0,
        "goodput": 8 / 11,
    }


def test_an_empty_ledger_has_no_goodput():
    assert Ledger().goodput == 0


@pytest.mark.parametrize("book", [lambda book: book.add("rest", 1), lambda book: book.time("rest")])
def test_unknown_causes_are_refused(book):
    with pytest.raises(KeyError, match="rest"):
        book(Ledger())


def test_work_since_a_checkpoint_is_lost_when_a_run_goes_back_to_it(clock):
    book = Ledger()
    with book.time("step"):
        clock.now += 7
    state = json.loads(json.dumps(book.state()))
    for cause, seconds in (("step", 5), ("compile", 30), ("evaluate", 2)):
        with book.time(cause):
            clock.now += seconds
    with book.time("restore"):
        clock.now += 1
        book.lose_since(state)
        clock.now += 1
    # What was compiled is not compiled again.
    spent = {cause: seconds for cause, seconds in book.seconds.items() if seconds}
    assert spent == {"step": 7, "compile": 30, "restore": 2, "lost": 7}
