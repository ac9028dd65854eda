"""A run whose saves fail: it goes on, says so, and in the end nothing is missing."""

import errno
import pathlib
import threading

import pytest
from orbax.checkpoint._src.checkpointers import async_checkpointer as orbax_saving

from t5x_style.checkpoints import checkpoint_steps
from t5x_style.errors import EXIT_AGAIN, Fault
from t5x_style.training import train
from tests.model_dir import events, lines
from tests.training.runs import make_run
from tests.training.test_hosts import end, start

EIO = OSError(errno.EIO, "Input/output error")


def losses(model_dir: pathlib.Path) -> list[float]:
    return [line["loss"] for line in lines(model_dir) if "loss" in line]


@pytest.fixture
def failing(monkeypatch):
    """A function that gives checkpoints the errors of their next writes: {step: errors}."""
    left: dict[int, list[Exception]] = {}
    write = orbax_saving._background_wait_for_commit_futures

    def writing(directory, *arguments, **options):
        if errors := left.get(int(directory.name.split("_")[1])):
            raise errors.pop(0)
        return write(directory, *arguments, **options)

    monkeypatch.setattr(orbax_saving, "_background_wait_for_commit_futures", writing)
    return left.update


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(make_run(folder, steps=20))
    return folder


def test_failed_writes_cost_no_step_and_are_told(tmp_path, failing, undisturbed):
    """One of a checkpoint in the middle, and one of the last, which is tried again at once."""
    failing({10: [EIO], 20: [EIO]})
    train(make_run(tmp_path, steps=20))
    assert losses(tmp_path) == losses(undisturbed)
    failed = events(tmp_path, "save_failed")
    assert [event["step"] for event in failed] == [10, 20]
    assert all("Input/output error" in event["reason"] for event in failed)
    saved = [event["step"] for event in events(tmp_path, "saved")]
    assert 10 not in saved
    assert saved[-1] == 20
    # The newest two are kept, and no half of one is left.
    assert set(checkpoint_steps(str(tmp_path))) == set(saved[-2:])
    assert not list(tmp_path.glob("*tmp*"))
    assert events(tmp_path)[-1]["event"] == "finished"


def test_a_run_that_may_not_save_ends_and_no_thread_holds_its_process(tmp_path, failing):
    failing({10: [PermissionError(errno.EACCES, "Permission denied")]})
    with pytest.raises(Fault, match=r"step 10 .* \(the newest is of step 5\): .*Permission denied"):
        train(make_run(tmp_path, steps=200))
    assert [event["step"] for event in events(tmp_path, "saved")] == [5]
    assert checkpoint_steps(str(tmp_path)).keys() == {5}
    holding = [
        thread.name
        for thread in threading.enumerate()
        if not thread.daemon and thread is not threading.main_thread()
    ]
    assert holding == []


def test_a_checkpoint_has_the_lines_up_to_it_on_disk_and_says_its_seconds(undisturbed):
    assert [event["step"] for event in events(undisturbed, "saved")] == [5, 10, 15, 20]
    for event in events(undisturbed, "saved"):
        assert event["held_seconds"] >= 0
        assert event["write_seconds"] > 0


@pytest.mark.parametrize("process", [0, 1])
def test_a_failed_save_of_one_of_two_processes_ends_both_to_be_started_again(tmp_path, process):
    """Orbax lets the other one wait for 20 minutes."""
    run = {"model_dir": str(tmp_path), "steps": 1000, "seconds_per_batch": 0.05}
    ended = end(start(2, run | {"failing_save": process, "checkpoint_period": 4}))
    assert [item.status for item in ended] == [EXIT_AGAIN] * 2, ended
    assert "step 4 could not be saved (there is no whole one): [Errno 5]" in "".join(
        line for item in ended for line in item.errors
    )
    assert events(tmp_path, "saved") == []
    assert checkpoint_steps(str(tmp_path)) == {}
    # Process 0 writes the events, also that of what it hears from the other one.
    (failed,) = events(tmp_path, "save_failed")
    if process == 0:
        assert failed["step"] == 4
    else:
        assert failed["reason"].startswith("process 1 of 2")
        assert "the checkpoint of step 4 could not be saved" in failed["reason"]
