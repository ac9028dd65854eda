"""Signals that ask a run to leave, sent to real processes: before its steps, and in them."""

import pathlib
import signal
import subprocess
import sys
import time

import pytest

from t5x_style import signals
from t5x_style.errors import NothingToSave

ROOT = pathlib.Path(__file__).parents[1]

# `t5x-style train`, with another verb's work in it.
COMMAND = """
import os, signal, sys, time
from t5x_style.commands import main

def work(arguments):
    print("at work", flush=True)
    {work}
    return 0

main._run = work
sys.exit(main.main(["{verb}"]))
"""
SLEEPING = "time.sleep(60)"
KEPT = """
    from t5x_style.signals import requests_kept
    with requests_kept() as requested:
        print("steps", flush=True)
        deadline = time.monotonic() + 60
        while (name := requested()) is None and time.monotonic() < deadline:
            time.sleep(0.01)
        print("saving", name, flush=True)
        {then}
"""
# A call into compiled code, as a compiler's: no handler of Python runs before it returns.
IN_COMPILED_CODE = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'', b'', 400_000_000)"


def start(work: str, verb: str = "train", before: str = "", **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", before + COMMAND.format(work=work, verb=verb)],
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
        | options,
    )


def wait_for(process: subprocess.Popen, line: str) -> None:
    assert process.stdout is not None
    while (found := process.stdout.readline()) != f"{line}\n":
        assert found, end(process)


def end(process: subprocess.Popen) -> tuple[int, list[str]]:
    """Status and lines of standard error."""
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, (errors or "").splitlines()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_before_the_steps_a_run_leaves_at_once_and_says_that_nothing_is_lost(number):
    process = start(SLEEPING)
    wait_for(process, "at work")
    process.send_signal(number)
    status, errors = end(process)
    assert status == 143
    assert errors == [
        f"preempted: signal {number.name} before the first step: nothing to save, start again"
    ]


def test_a_compiler_that_hears_no_signal_is_left_too():
    process = start(IN_COMPILED_CODE)
    wait_for(process, "at work")
    process.send_signal(signal.SIGTERM)
    status, errors = end(process)
    assert status == 143
    assert "signal SIGTERM before the first step: nothing to save" in errors[-1]


@pytest.mark.parametrize("work", [SLEEPING, IN_COMPILED_CODE])
def test_who_has_a_file_open_writes_down_why_the_run_left(work, tmp_path):
    """Once, whichever thread finds that it is time to leave."""
    file = tmp_path / "events"
    file.touch()
    record = f"lambda reason: open({str(file)!r}, 'ab', 0).write(reason.encode() + b'!')"
    inside = f"print('in it', flush=True); {work}"
    process = start(
        f"from t5x_style.signals import recorded\n    with recorded({record}): {inside}"
    )
    wait_for(process, "in it")
    process.send_signal(signal.SIGTERM)
    assert end(process)[0] == 143
    assert file.read_text() == "signal SIGTERM before the first step: nothing to save, start again!"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_in_the_steps_a_signal_is_a_request_that_names_it(number):
    process = start(KEPT.format(then="pass"))
    wait_for(process, "steps")
    process.send_signal(number)
    wait_for(process, f"saving {number.name}")
    assert end(process)[0] == 0


@pytest.mark.parametrize("then", [SLEEPING, IN_COMPILED_CODE])
def test_a_second_ctrl_c_leaves_at_once_whatever_the_run_does(then):
    process = start(KEPT.format(then=then))
    wait_for(process, "steps")
    process.send_signal(signal.SIGINT)
    wait_for(process, "saving SIGINT")
    process.send_signal(signal.SIGINT)
    status, errors = end(process)
    assert status == 130
    assert "Traceback" not in "".join(errors)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_what_was_ignored_at_the_start_stays_ignored(number):
    """As `nohup` ignores SIGHUP, and a shell's `&` ignores SIGINT."""
    ignoring = f"import signal; signal.signal({int(number)}, signal.SIG_IGN)\n"
    process = start(KEPT.format(then="pass"), before=ignoring)
    wait_for(process, "steps")
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    wait_for(process, "saving SIGTERM")
    assert end(process)[0] == 0


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGHUP, -1)]
)
def test_other_verbs_hear_signals_as_before(number, status):
    process = start(SLEEPING, verb="cache")
    wait_for(process, "at work")
    process.send_signal(number)
    assert end(process)[0] == status


def test_a_mapped_file_that_is_cut_leaves_the_stacks_of_all_threads(tmp_path):
    """The process gets SIGBUS where it reads past the new end."""
    file = tmp_path / "tokens.bin"
    file.write_bytes(bytes(1 << 20))
    process = start(
        f"""import numpy as np
    tokens = np.memmap({str(file)!r}, np.uint16, mode="r")
    os.truncate({str(file)!r}, 0)
    tokens[400_000]"""
    )
    status, errors = end(process)
    assert status == -signal.SIGBUS
    assert errors[0] == "Fatal Python error: Bus error"
    assert "in work" in "".join(errors)


def test_a_signal_that_the_other_thread_read_first_still_leaves():
    requests = signals._Requests()
    requests.name = "SIGHUP"
    with pytest.raises(NothingToSave, match="signal SIGHUP before the first step"):
        requests(signal.SIGHUP, None)
    requests(signal.SIGHUP, None)  # while it leaves, it need not be asked again
