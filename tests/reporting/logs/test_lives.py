"""The seconds between a checkpoint and the next start, by hand-made histories of runs."""

import os
import subprocess
import sys
import time

import pytest

from t5x_style.reporting import process_began
from t5x_style.reporting.logs.lives import beat, last_beat, unbooked_seconds


def event(kind: str, time: float, step: int = 0, **fields) -> dict:
    return {"event": kind, "time": time, "step": step, "tokens": 0, **fields}


def seconds(events, *, began, resume_step=5, booked_until=None, last_sign=0.0):
    """The causes that have any, and the pause before this start."""
    found, pause = unbooked_seconds(
        events,
        resume_step=resume_step,
        booked_until=booked_until,
        last_sign=last_sign,
        began=began,
    )
    return {cause: value for cause, value in found.items() if value}, pause


STARTED = event("started", 110.0, began=100.0, pause_seconds=0.0)


def test_a_run_that_has_no_file_yet_has_nothing_to_book():
    assert seconds([], began=500.0, resume_step=None) == ({}, 0.0)


def test_a_kill_loses_what_came_after_the_save_and_the_pause_is_idle():
    # Saved at 150, last seen at 170, started again at 200.
    events = [STARTED, event("saved", 152.0, 5)]
    found = seconds(events, began=200.0, booked_until=150.0, last_sign=170.0)
    assert found == ({"lost": 20.0, "idle": 30.0}, 30.0)


def test_all_of_a_process_that_saved_nothing_is_lost():
    """Killed at 170; the second process ran from 200 to 260; the third begins at 300."""
    again = event("resumed", 215.0, 5, began=200.0, pause_seconds=30.0)
    found = seconds([STARTED, again], began=300.0, booked_until=150.0, last_sign=260.0)
    assert found == ({"lost": 20.0 + 60.0, "idle": 30.0 + 40.0}, 40.0)


def test_a_start_of_an_older_version_paused_since_the_event_before_it_or_the_save():
    events = [STARTED, event("resumed", 215.0, 5)]
    found = seconds(events, began=300.0, booked_until=150.0, last_sign=260.0)
    assert found == ({"lost": 45.0, "idle": 65.0 + 40.0}, 40.0)


def test_a_run_without_a_checkpoint_counts_from_its_first_process():
    """It was killed at 130, started from nothing at 140, and killed at 190."""
    again = event("started", 150.0, began=140.0, pause_seconds=10.0)
    found = seconds([STARTED, again], began=200.0, resume_step=None, last_sign=190.0)
    assert found == ({"lost": 30.0 + 50.0, "idle": 10.0 + 10.0}, 10.0)


def test_a_process_that_left_on_purpose_lost_nothing():
    """It waited until 158 for the save that began at 150."""
    events = [STARTED, event("saved", 157.0, 5), event("preempted", 158.0, 5)]
    found = seconds(events, began=200.0, booked_until=150.0)
    assert found == ({"save": 8.0, "idle": 42.0}, 42.0)


def test_an_event_about_the_logs_is_a_sign_of_life_and_nothing_else():
    events = [STARTED, event("preempted", 158.0, 5), event("logs_rewritten", 159.0, 5)]
    found = seconds(events, began=200.0, booked_until=150.0)
    assert found == ({"save": 9.0, "idle": 41.0}, 41.0)


def test_the_time_after_the_end_of_a_run_is_not_idle():
    """A run that is made longer a week later was not waiting for a machine."""
    events = [STARTED, event("saved", 150.0, 5), event("finished", 151.0, 5)]
    found = seconds(events, began=604_951.0, booked_until=150.0)
    assert found == ({"save": 1.0}, 604_800.0)
    # It was killed at once after its second start.
    events.append(event("resumed", 604_961.0, 5, began=604_951.0, pause_seconds=604_800.0))
    found = seconds(events, began=604_991.0, booked_until=150.0, last_sign=604_971.0)
    assert found == ({"lost": 1.0 + 20.0, "idle": 20.0}, 20.0)


def test_an_earlier_checkpoint_than_the_last_loses_more():
    """The newest was damaged: the run goes on from the one before, of 120."""
    events = [STARTED, event("saved", 120.0, 5), event("saved", 150.0, 10)]
    found = seconds(events, began=200.0, booked_until=120.0, last_sign=170.0)
    assert found == ({"lost": 50.0, "idle": 30.0}, 30.0)


def test_a_clock_that_went_back_books_nothing_below_zero():
    events = [STARTED, event("saved", 9000.0, 5)]
    assert seconds(events, began=200.0, booked_until=8999.0, last_sign=9010.0) == ({}, 0.0)


def test_a_beat_outlives_the_process_and_a_broken_one_is_none(tmp_path):
    assert last_beat(tmp_path) == 0.0
    before = time.time()
    beat(tmp_path)
    beat(tmp_path)
    assert before - 0.001 <= last_beat(tmp_path) <= time.time() + 0.001
    (tmp_path / ".alive").write_bytes(b"\xff\x00")
    assert last_beat(tmp_path) == 0.0
    # A folder that is gone or may not be written is no reason to stop.
    beat(tmp_path / "gone")


def test_the_beginning_of_a_process_is_that_of_the_kernel():
    before = time.time()
    program = "import time; time.sleep(0.3); from t5x_style.reporting import process_began as b;"
    program += "print(b(), time.time())"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    began, now = map(float, done.stdout.split())
    # The kernel counts in hundredths of a second.
    assert before - 0.05 <= began <= now - 0.25
    assert process_began() == pytest.approx(process_began(), abs=0.05)
    assert process_began() < os.stat("/proc/self").st_ctime + 5
