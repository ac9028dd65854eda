"""tools/soak: what it calls flat, and a run of seconds."""

import os
import re

import pytest

from tests import warm
from tests.scripts import script

soak = script("soak")


def readings(*megabytes: float) -> list:
    return [soak.Reading(10 * n, n, value, 30, 20) for n, value in enumerate(megabytes)]


def test_windows_leave_the_warm_up_out_and_take_medians():
    found = soak.windows(readings(*[900.0] * 10, *range(90)))
    # Ninety readings in windows of four, whose medians are between the second and the third.
    assert [window.megabytes for window in found[:3]] == [1.5, 5.5, 9.5]
    assert [window.saves for window in found[:3]] == [13, 17, 21]
    assert found[0].handles == 30


@pytest.mark.parametrize(
    ("values", "rise"),
    [([5.0], 0.0), ([5.0, 3.0], 0.0), ([5.0, 3.0, 4.0, 9.0, 1.0], 6.0), ([], 0.0)],
)
def test_a_rise_is_seen_wherever_it_begins(values, rise):
    assert soak.largest_rise(values) == rise


def test_memory_that_is_not_flat_fails(monkeypatch, capsys):
    grown = readings(*[200.0 + n / 2 for n in range(100)])
    monkeypatch.setattr(soak, "soak", lambda *_: (0, "", grown))
    assert soak.main([]) == 1
    printed = capsys.readouterr().out
    assert "megabytes: NOT FLAT" in printed
    assert "threads: flat" in printed


def test_a_training_that_fails_fails(monkeypatch, capsys):
    monkeypatch.setattr(soak, "soak", lambda *_: (1, "error: no room", readings(*range(40))))
    assert soak.main([]) == 1
    assert "error: no room" in capsys.readouterr().out


def test_a_process_is_read_as_it_is():
    found = soak.read_process(os.getpid(), 3, 1)
    held = os.open(os.devnull, os.O_RDONLY)
    more = soak.read_process(os.getpid(), 3, 1)
    os.close(held)
    assert more.handles == found.handles + 1
    assert more.megabytes > 50


def test_a_short_soak():
    """So short a run is all warm-up: what it says of itself and its status must agree."""
    start = "raise SystemExit(script('soak').main(['--steps=40', '--save_period=2']))"
    done = warm.run(["-c", f"from tests.scripts import script; {start}"])
    assert "40 steps, 20 saves" in done.stdout, done.stdout + done.stderr
    assert len(re.findall("(?:megabytes|handles|threads): (?:flat|NOT FLAT)", done.stdout)) == 3
    assert done.returncode == ("NOT FLAT" in done.stdout)
