"""Main threads that hang and processes that are stopped: told, and ended to be started again."""

import os
import re
import signal
import time
import types

import pytest

from t5x_style.hosts import Watchdog, enter_phase, watchdog
from t5x_style.hosts.watchdog import Activity, hang_reason, pass_step
from tests import warm
from tests.hosts.test_meeting import free_port

AGAIN = 75


def test_the_limit_of_a_phase_is_ten_medians_of_it_or_a_minute(monkeypatch):
    now = [0.0]
    times = types.SimpleNamespace(perf_counter=lambda: now[0], monotonic=time.monotonic)
    monkeypatch.setattr(watchdog, "time", times)

    def pass_phase(phase: str, seconds: float) -> None:
        enter_phase(phase)
        now[0] += seconds

    def limit(phase: str) -> float:
        enter_phase(phase)
        return watchdog._watch.activity().limit

    with Watchdog().watching():
        assert watchdog._watch.activity().limit == 7200.0
        for step, seconds in enumerate([1.0, 19.0, 1.0, 400.0, 3.0], start=1):
            pass_phase("step", 11.0)
            pass_phase("data", 0.5)
            pass_phase("step", seconds)
            pass_phase("save", 0.1)
            if step > 1:
                pass_phase("evaluate", 70.0)
            pass_phase("other", 0.1)
            pass_step(step)
        # Sums of a step: 12, 30, 12, 411 and 14 seconds.
        assert limit("step") == 140.0
        assert limit("data") == 60.0
        # Four evaluations are not enough; a save waits for the disk, and compiling takes what it
        # takes.
        for phase in ("evaluate", "save", "compile", "restore", "never seen"):
            assert limit(phase) == 7200.0
        enter_phase("other")
        pass_phase("evaluate", 70.0)
        pass_step(6)
        assert limit("evaluate") == 700.0


def test_a_hang_names_those_that_are_behind_and_counts_the_rest():
    waiting = {f"process {index}": Activity("step", 1301, 60.4, 60.0) for index in range(2000)}
    waiting["process 7"] = Activity("data", 1300, 61.0, 60.0)
    waiting["process 9"] = Activity("data", 1300, 64.6, 60.0)
    assert hang_reason(waiting) == (
        "the run hangs: process 7, process 9 in 'data' at step 1,300 for 65 s; "
        "1,998 processes in 'step' at step 1,301 for 60 s"
    )


ALONE = """
import ctypes, os, sys, threading, time
from t5x_style.hosts import Watchdog, enter_phase, watchdog, write_ends_by

def waits_for_a_dead_disk():
    threading.Event().wait()

def keeps_the_lock_of_python():
    ctypes.PyDLL(None).sleep(600)

def is_stopped():
    print("ready", flush=True)
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.01)
    time.sleep(0.3)

watchdog.LAST_WORDS_SECONDS = 0.5
first_seconds = 600.0 if sys.argv[1] == "is_stopped" else 1.0
with Watchdog(min_seconds=1.0, first_seconds=first_seconds).watching():
    for step in range(8):
        watchdog.pass_step(step)
        enter_phase("step")
        enter_phase("data")
    if sys.argv[1:] == ["waits_for_a_dead_disk", "and cannot write"]:
        write_ends_by(lambda kind, step, reason: waits_for_a_dead_disk())
    else:
        write_ends_by(lambda kind, step, reason: print("event", step, reason, flush=True))
    globals()[sys.argv[1]]()
print("went on")
"""
LAST = r"error: the run hangs: its main thread is in 'data' at step 7 for [12] s: start it again"


def test_a_main_thread_that_hangs_ends_its_process_with_its_stacks_and_an_event():
    done = warm.run(["-c", ALONE, "waits_for_a_dead_disk"], timeout=60)
    assert done.returncode == AGAIN, done.stderr
    assert "in waits_for_a_dead_disk" in done.stderr
    assert re.fullmatch(LAST, done.stderr.splitlines()[-1])
    assert done.stdout.startswith("event 7 the run hangs: ")


START = """
import threading, time
from t5x_style.hosts import Watchdog, building
with Watchdog(min_seconds=1.0, first_seconds=1.0).watching():
    with building():
        time.sleep(2.5)
        print("built", flush=True)
    threading.Event().wait()
"""


def test_a_start_has_a_limit_and_the_building_of_stores_has_none():
    done = warm.run(["-c", START], timeout=60)
    assert (done.returncode, done.stdout) == (AGAIN, "built\n"), done.stderr
    last = (
        r"error: the run hangs: its main thread is in 'start' at step 0 for [12] s: start it again"
    )
    assert re.fullmatch(last, done.stderr.splitlines()[-1])


def test_an_event_that_cannot_be_written_holds_up_no_end():
    done = warm.run(["-c", ALONE, "waits_for_a_dead_disk", "and cannot write"], timeout=60)
    assert done.returncode == AGAIN, done.stderr
    assert re.fullmatch(LAST, done.stderr.splitlines()[-1])


def test_a_main_thread_that_never_lets_go_of_python_ends_its_process():
    done = warm.run(["-c", ALONE, "keeps_the_lock_of_python"], timeout=60)
    assert done.returncode == AGAIN, done.stderr
    assert "in keeps_the_lock_of_python" in done.stderr


def test_a_process_that_was_stopped_and_continued_goes_on(tmp_path):
    child = warm.start(["-c", ALONE, "is_stopped", str(tmp_path / "go")])
    wait_for(child, lambda: "ready" in child.output_so_far()[0])
    child.send_signal(signal.SIGSTOP)
    time.sleep(2.5)  # over its limit
    (tmp_path / "go").touch()
    child.send_signal(signal.SIGCONT)
    output, errors = child.communicate(timeout=60)
    assert (child.returncode, output) == (0, "ready\nwent on\n"), errors


PAIR = """
import os, sys, threading, time
from t5x_style.hosts import (
    Hosts, Watchdog, enter_phase, preemption_requested, watchdog, write_ends_by
)
coordinator, index, silent, case, go = sys.argv[1:]
index = int(index)

def waits_for_a_dead_disk():
    threading.Event().wait()

hosts = Hosts(coordinator, processes=2, index=index, silent_seconds=float(silent))
min_seconds = 600.0 if case == "goes on" else 1.0
with hosts.join(), preemption_requested(), Watchdog(min_seconds, first_seconds=600.0).watching():
    write_ends_by(lambda kind, step, reason: print(f"event {step} {reason}", file=sys.stderr))
    for step in range(8):
        watchdog.pass_step(step)
        for phase in ("save", "data", "step"):
            enter_phase(phase)
    if index:
        enter_phase("save" if case == "saves" else "data")
    if case == "goes on":
        time.sleep(1.0)  # some beats, which tell the other what this one does
    print("ready", file=sys.stderr, flush=True)
    if case == "hangs":
        waits_for_a_dead_disk()
    while not os.path.exists(go):
        time.sleep(0.01)
"""


def wait_for(child, condition) -> None:
    while not condition():
        assert child.poll() is None, child.output_so_far()
        time.sleep(0.02)


def start_pair(case: str, go, silent: float = 60.0) -> list[warm.Child]:
    coordinator = f"localhost:{free_port()}"
    pair = [warm.start(["-c", PAIR, coordinator, index, silent, case, go]) for index in range(2)]
    for child in pair:
        wait_for(child, lambda child=child: "ready" in child.output_so_far()[1])
    return pair


def test_all_processes_end_when_the_main_thread_of_one_hangs(tmp_path):
    """Also a SIGTERM does not reach a main thread that waits for the one that hangs."""
    pair = start_pair("hangs", tmp_path / "go", silent=12.0)
    pair[0].send_signal(signal.SIGTERM)
    errors = [child.communicate(timeout=60)[1] for child in pair]
    assert [child.returncode for child in pair] == [AGAIN, AGAIN], errors
    last = {text.splitlines()[-1] for text in errors}
    assert len(last) == 1
    assert re.fullmatch(
        r"error: the run hangs: process 1 of 2 \(.*\) in 'data' at step 7 for \d+ s; "
        r"process 0 of 2 \(.*\) in 'step' at step 7 for \d+ s: start all processes again",
        last.pop(),
    )
    assert [text.count("in waits_for_a_dead_disk") for text in errors] == [1, 1]
    assert [text.count("event 7 the run hangs: ") for text in errors] == [1, 0]


def test_who_waits_for_the_long_save_of_another_is_not_ended(tmp_path):
    pair = start_pair("saves", tmp_path / "go")
    time.sleep(2.5)  # over the limit of the step of process 0
    (tmp_path / "go").touch()
    errors = [child.communicate(timeout=60)[1] for child in pair]
    assert [child.returncode for child in pair] == [0, 0], errors


@pytest.mark.parametrize("stopped", [1, 0])
def test_a_process_that_is_stopped_is_named_by_the_others(tmp_path, stopped):
    pair = start_pair("goes on", tmp_path / "go", silent=2.0)
    pair[stopped].send_signal(signal.SIGSTOP)
    try:
        errors = pair[1 - stopped].communicate(timeout=60)[1]
        assert pair[1 - stopped].returncode == AGAIN, errors
    finally:
        os.kill(pair[stopped].pid, signal.SIGKILL)
    phase = "data" if stopped else "step"
    last = errors.splitlines()[-1]
    assert last.startswith(f"error: process {stopped} of 2 (")
    assert f") gave no sign of life for 2 s; it was in '{phase}' at step 7 for " in last
    assert last.endswith(": start all processes again")
    assert errors.count("event 7 process ") == 1
