"""What a command does where its output cannot be written: real processes, pipes and devices."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
FULL = pathlib.Path("/dev/full")

# A verb with another verb's work in it.
COMMAND = """
import sys
from t5x_style.commands import main
from t5x_style.errors import Fault, Preempted, StartAgain, UsageError

def work(arguments):
    {work}
    return 0

main._run = work
sys.exit(main.main(["{verb}"]))
"""
# A short line waits in Python's buffer to the end, a long one does not.
WORK = "print('line'); print('x' * 70_000); {end}"
ENDS = {
    "pass": 0,
    "raise Fault('cause')": 1,
    "raise UsageError('cause')": 2,
    "raise StartAgain('cause')": 75,
    "raise Preempted('cause')": 143,
    "1 / 0": 1,
}
buffering = pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
places = pytest.mark.parametrize("place", ["closed pipe", "full device", "closed"])


def status(work: str, verb: str, place: str, unbuffered: str, *, errors_too: bool) -> int:
    """Of a process whose output goes to a place that takes nothing."""
    if place == "full device":
        if not FULL.exists():
            pytest.skip("needs a full device")
        descriptor = os.open(FULL, os.O_WRONLY)
    else:
        reader, descriptor = os.pipe()
        os.close(reader)
    code = COMMAND.format(work=work, verb=verb)
    shell = 'exec "$@" >&-' + (" 2>&-" if errors_too else "")
    done = subprocess.run(
        [*(["sh", "-c", shell, "sh"] if place == "closed" else []), sys.executable, "-c", code],
        stdout=descriptor,
        stderr=descriptor if errors_too else subprocess.DEVNULL,
        cwd=ROOT,
        # An empty value is no value for Python.
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=60,
    )
    os.close(descriptor)
    return done.returncode


@buffering
@places
@pytest.mark.parametrize("errors_too", [False, True])
@pytest.mark.parametrize("end", ENDS)
def test_a_run_goes_on_and_its_status_is_that_of_its_end(end, place, errors_too, unbuffered):
    """Ctrl-C ends `tee` at once; the run behind it still has to save, and to be started again."""
    found = status(WORK.format(end=end), "train", place, unbuffered, errors_too=errors_too)
    assert found == ENDS[end]


@buffering
@places
@pytest.mark.parametrize("lines", ["print('line')", "print('x' * 70_000)"])
def test_another_verb_has_status_1_where_its_output_cannot_be_written(lines, place, unbuffered):
    found = status(lines, "plan", place, unbuffered, errors_too=False)
    # Who closes the output wants none.
    assert found == (0 if place == "closed" else 1)
