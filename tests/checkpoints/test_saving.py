"""What follows from the end of a save: its event, another try, or the end of the run."""

import errno
import types

import pytest

from t5x_style.accounting import Ledger
from t5x_style.accounting.audit import ledger as ledger_module
from t5x_style.checkpoints import Saver, saving
from t5x_style.checkpoints.checkpointer import EndedSave
from t5x_style.errors import Fault, StartAgain

EIO = OSError(errno.EIO, "Input/output error")


class Bench:
    """A clock, a disk and the events of a saver; a save that is waited for lasts `seconds`."""

    def __init__(self, monkeypatch, **options):
        self.now, self.seconds, self.ends = 0.0, 5.0, []
        self.work: list[str] = []
        self.events: list[dict] = []
        self.in_progress = None
        for module in (saving, ledger_module):
            monkeypatch.setattr(module, "time", self)
        self.ledger = Ledger()
        options = {"patience_seconds": 100.0, "timeout_seconds": 60.0, **options}
        self.saver = Saver(self, self, self.ledger, **options)

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def start_flush(self):
        return dict

    def save(self, step, state, record, *, best_steps, last_facts, make_room):
        self.work.append(f"save {step}" + (", room first" if make_room else ""))
        self.in_progress = step, self.now + self.seconds

    def ended(self, *, wait_seconds=0.0):
        if self.in_progress is None:
            return None
        step, until = self.in_progress
        self.now += min(wait_seconds, max(0.0, until - self.now))
        if self.now < until:
            return None
        self.in_progress = None
        error = self.ends.pop(0) if self.ends else None
        return error if isinstance(error, EndedSave) else EndedSave(step, self.seconds, error)

    def latest_step(self):
        return 7

    def close(self):
        self.work.append("closed")

    def event(self, kind, **fields):
        self.events.append({"event": kind, **fields})

    def start(self, step):
        self.saver.save(step, step * 100, None, dict)

    def kinds(self):
        return [(event["event"], event["step"]) for event in self.events]


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


def test_a_save_is_told_when_it_is_whole_with_the_seconds_of_loop_and_disk(bench):
    bench.start(10)
    assert not bench.saver.look()
    assert bench.events == []
    bench.now += 6.0
    assert not bench.saver.look()
    assert bench.events == [
        {"event": "saved", "step": 10, "tokens": 1000, "held_seconds": 0.0, "write_seconds": 5.0}
    ]
    # The loop waits two seconds for the save before.
    bench.start(20)
    bench.now += 3.0
    bench.start(30)
    bench.saver.finish(pytest.fail)
    assert [event["held_seconds"] for event in bench.events] == [0.0, 0.0, 2.0]
    assert bench.ledger.seconds["save"] == 2.0 + 5.0


def test_a_failed_save_is_tried_again_later_and_later_while_steps_go_on(bench):
    bench.ends = [EIO] * 3
    tries = []
    bench.start(10)
    for step in range(11, 60):
        bench.now += 1.0
        if bench.saver.look():
            tries.append(bench.now)
            bench.start(step)
    # It fails at second 5, 11 and 18: a second of pause, two, and four.
    assert tries == [6.0, 13.0, 22.0]
    assert bench.kinds() == [
        ("save_failed", 10), ("save_failed", 16), ("save_failed", 23), ("saved", 32),
    ]  # fmt: skip
    assert [event.get("failures") for event in bench.events] == [1, 2, 3, None]
    assert bench.events[0]["reason"] == "[Errno 5] Input/output error"


def test_a_success_forgives_the_failures_before_it(bench):
    bench.ends = [EIO, EIO, None, EIO]
    for step in (10, 20, 30, 40):
        bench.start(step)
    bench.saver.finish(lambda: bench.start(40))
    assert [event.get("failures") for event in bench.events] == [1, 2, None, 1, None]


def test_a_run_whose_saves_fail_ends_when_the_patience_does(bench):
    bench.ends = [EIO] * 100
    bench.start(10)
    with pytest.raises(Fault, match="Input/output error") as caught:
        bench.saver.finish(lambda: bench.start(10))
    assert not isinstance(caught.value, StartAgain)
    # Tries of 5 s, pauses of 1, 2, 4, 8, 16 and 30: the seventh failure is at second 96, and the
    # next pause would end after 100 s.
    assert bench.now == 96.0
    assert str(caught.value) == (
        "the checkpoint of step 10 could not be saved (the newest is of step 7): [Errno 5] "
        "Input/output error (7 failures in 91 s; train.save_patience = 100 s)"
    )


def test_without_patience_the_first_failure_ends_the_run(monkeypatch):
    bench = Bench(monkeypatch, patience_seconds=0.0)
    bench.ends = [EIO]
    bench.start(10)
    bench.now += 6.0
    with pytest.raises(Fault, match="1 failures in 0 s"):
        bench.saver.look()


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
        # TensorStore gives a text alone.
        ValueError("PERMISSION_DENIED: Error opening d/x [OS error 13: EACCES Permission denied]"),
    ],
)
def test_a_forbidden_save_is_not_tried_again(bench, error):
    bench.ends = [error]
    bench.start(10)
    bench.now += 6.0
    with pytest.raises(Fault) as caught:
        bench.saver.look()
    assert type(caught.value) is Fault
    assert bench.kinds() == [("save_failed", 10)]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        ValueError("RESOURCE_EXHAUSTED: writing d/x [OS error 28: ENOSPC No space left on device]"),
    ],
)
def test_a_full_disk_is_given_room_before_the_next_try_alone(bench, error):
    bench.ends = [error, EIO]
    for step in (10, 20, 30):
        bench.start(step)
    assert bench.work == ["save 10", "save 20, room first", "save 30"]


def test_memory_that_is_full_is_no_full_disk(bench):
    bench.ends = [RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")]
    for step in (10, 20):
        bench.start(step)
    assert bench.work == ["save 10", "save 20"]
    assert bench.events[0]["reason"].startswith("RuntimeError: RESOURCE_EXHAUSTED")


def test_a_failure_of_one_of_several_processes_ends_them_to_be_started_again(bench, monkeypatch):
    monkeypatch.setattr(saving, "jax", types.SimpleNamespace(process_count=lambda: 2))
    bench.ends = [EIO]
    bench.start(10)
    bench.now += 6.0
    with pytest.raises(StartAgain, match=r"step 10 could not be saved .*Input/output error"):
        bench.saver.look()
    assert bench.kinds() == [("save_failed", 10)]


@pytest.mark.parametrize("waits", [True, False])
def test_a_save_without_an_end_ends_the_run_to_be_started_again(bench, waits):
    bench.seconds = 1e9
    bench.start(10)

    def go_on():
        bench.now += 1.0
        assert not bench.saver.look()

    with pytest.raises(StartAgain, match=r"takes longer than train.save_timeout = 60 s"):
        _ = bench.saver.finish(pytest.fail) if waits else [go_on() for _ in range(100)]
    assert 60 < bench.now < 63
    assert bench.kinds() == [("save_failed", 10)]
    # What hangs is not waited for again, and Orbax is not closed: that would wait for it.
    bench.saver.close()
    assert bench.now < 63
    assert bench.work == ["save 10"]


def test_an_older_checkpoint_that_cannot_be_removed_is_told_and_nothing_is_lost(bench):
    bench.ends = [EndedSave(10, 5.0, None, OSError(errno.EBUSY, "Device or resource busy"))]
    bench.start(10)
    bench.saver.finish(pytest.fail)
    assert bench.kinds() == [("saved", 10), ("warned", 10)]
    assert "could not be removed: [Errno 16]" in bench.events[1]["reason"]


def test_a_run_that_ends_for_another_reason_tells_how_its_last_save_ended(bench):
    """And raises nothing, which would hide that reason."""
    bench.ends = [PermissionError(errno.EPERM, "Operation not permitted")]
    bench.start(10)
    bench.saver.close()
    assert bench.kinds() == [("save_failed", 10)]
    bench.start(20)
    bench.saver.close()
    assert bench.kinds()[1:] == [("saved", 20)]
    assert bench.work[-1] == "closed"
