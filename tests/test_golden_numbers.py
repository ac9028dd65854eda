"""Each golden number stands in its test, and counts as held where that test ran and passed."""

from types import SimpleNamespace

import pytest

from tests.golden_numbers import FITTING, GOLDEN, NAMES, NO_POINTS, numbers_of, verdict


@pytest.mark.parametrize(
    ("test", "values"),
    [pytest.param(test, values, id=name) for name, test, values in GOLDEN],
)
def test_its_test_has_its_numbers(test, values):
    assert set(values) - numbers_of(test) == set()


def test_a_test_or_a_row_that_is_gone_is_missed():
    with pytest.raises(LookupError, match="0 tests test_gone"):
        numbers_of(f"{FITTING}::test_gone")
    with pytest.raises(LookupError, match="0 rows gone"):
        numbers_of(f"{FITTING}::test_huber_bad[gone]")
    # A docstring is no assertion: this one has the number of a row of parameters.
    assert 4500 in numbers_of(f"{FITTING}::test_the_grid_is_that_of_the_paper")
    assert 240 not in numbers_of(f"{FITTING}::test_huber_fit")


def reports(*nodes: str, reason: str = "") -> list[SimpleNamespace]:
    skip = ("a file", 1, f"Skipped: {reason}")
    return [SimpleNamespace(nodeid=f"tests/{node}", longrepr=skip) for node in nodes]


ALL = [test for _, test, _ in GOLDEN]


def test_a_golden_number_whose_test_is_skipped_is_not_held():
    count = len(NAMES)
    assert verdict({"passed": reports(*ALL)}) == (f"golden numbers: {count} of {count} held", True)
    one_less = f"golden numbers: {count - 1} of {count} held; "
    others = [test for test in ALL if "huber_bad" not in test]
    # One row of a test is enough to hold nothing.
    rows = [f"{FITTING}::test_huber_bad[{law}]" for law in ("TeX", "printed")]
    passed = {"passed": reports(*others, rows[0])}
    without_points = passed | {"skipped": reports(rows[1], reason=NO_POINTS)}
    assert verdict(without_points) == (f"{one_less}huber_bad: Skipped: {NO_POINTS}", True)
    for_no_good_reason = passed | {"skipped": reports(rows[1], reason="slow")}
    assert verdict(for_no_good_reason) == (f"{one_less}huber_bad: Skipped: slow", False)
    assert verdict(passed | {"failed": reports(rows[1])}) == (f"{one_less}huber_bad: failed", True)
    assert verdict({"passed": reports(*others)}) == (f"{one_less}1: not run", True)


def test_a_file_that_is_skipped_as_a_whole_holds_nothing():
    others = [test for test in ALL if not test.startswith(FITTING)]
    stats = {"passed": reports(*others), "skipped": reports(FITTING, reason="x")}
    text, allowed = verdict(stats)
    assert text.endswith("held; huber_bad, huber_fit, mean_trap: Skipped: x")
    assert not allowed


def test_a_number_of_two_tests_needs_both():
    second = [test for name, test, _ in GOLDEN if name == "dc_epochs"][1]
    text, _ = verdict({"passed": reports(*(test for test in ALL if test != second))})
    assert text.endswith(f"{len(NAMES) - 1} of {len(NAMES)} held; 1: not run")


def test_a_session_without_golden_numbers_says_nothing_of_them():
    assert verdict({"passed": reports("test_house.py::test_x")}) == ("", True)
