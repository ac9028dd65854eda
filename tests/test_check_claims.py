"""tools/check_claims: every figure of the pages has a holder, and what has none is named."""

import re

import pytest

from tests.test_claims import check_claims

# A test that names a constant of 9.
NINE = "tests/test_rooms.py::test_a_folder_holds_at_most_nine_files"


def test_every_figure_has_a_holder(capsys):
    assert check_claims.main([]) == 0, capsys.readouterr().err
    assert re.search(r"^README.md:\d+  529,056  tests/.*::", capsys.readouterr().out, re.MULTILINE)


PAGE = """# A page of 9 lines

It reads 9 files in 3.5 s, by `tools/prose 7`, with v5p and step 8.
{more}

    9 lines of code
"""


@pytest.mark.parametrize(
    ("entries", "more", "fault"),
    [
        ({"reads {} files": NINE, "It reads": "tools/prose"}, "", ""),
        ({"It reads": "tools/prose"}, "And nine more.\n\nThen 5 %.", "page:6: 5 %: nothing holds"),
        ({"It reads": "tools/nothing"}, "", "page:3: 9: there is no tools/nothing"),
        ({"It reads": "tools/setup"}, "", "9: its section does not name the command"),
        ({"It reads": "tests/calls.py::test_nothing"}, "", "9: there is no test tests/calls.py::"),
        ({"reads {} files": NINE, "It reads": NINE}, "", f"3.5: {NINE} has no 3.5"),
        ({"reads {} filed": "tools/prose", "It reads": "tools/prose"}, "", "stand there 0 times"),
        ({"It reads": "tools/prose", "by `tools": "tools/prose"}, "", "0 times"),
    ],
)
def test_what_nothing_holds_is_named(entries, more, fault):
    _, faults = check_claims.figures_of("page", PAGE.format(more=more), entries)
    assert [bool(fault)] == [bool(faults)]
    assert fault in "\n".join(faults)


@pytest.mark.parametrize(
    ("text", "value", "rounding"),
    [
        ("9.6B", 9.6e9, 0.05e9),
        ("43 %", 0.43, 0.005),
        ("−2 %", -0.02, 0.005),
        ("1.02e22", 1.02e22, 0.005e22),
        ("6e-5", 6e-5, 0.5e-5),
        ("1,852", 1852, 0.5),
        ("1/2", 0.5, 0),
        ("100,000ths", 100_000, 0),
        ("Nine", 9, 0),
    ],
)
def test_the_number_of_a_figure(text, value, rounding):
    assert check_claims.FIGURE.fullmatch(text)
    assert check_claims.value(text) == pytest.approx(value)
    assert check_claims.rounding(text) == pytest.approx(rounding)
