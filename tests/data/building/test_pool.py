"""How many processes a pool has, and what becomes of it."""

import concurrent.futures
import concurrent.futures.process

import pytest

from t5x_style.data.building import pool as pools
from t5x_style.data.building.pool import run_in_pool
from t5x_style.errors import Fault


@pytest.fixture
def built(monkeypatch):
    """The jobs that are built; a job that is an exception fails with it."""
    done = []

    def build(job):
        if isinstance(job, Exception):
            raise job
        done.append(job)

    monkeypatch.setattr(pools, "build_part", build)
    return done


@pytest.fixture
def started(monkeypatch):
    """The pools that are started: they work in this process."""
    found = []

    class Pool:
        def __init__(self, workers, *, mp_context, initializer):
            self.workers = workers
            self.how = (mp_context.get_start_method(), initializer)
            self.end = None
            found.append(self)

        def submit(self, function, job):
            future = concurrent.futures.Future()
            try:
                future.set_result(function(job))
            except Exception as error:
                future.set_exception(error)
            return future

        def shutdown(self, *, wait, cancel_futures):
            self.end = (wait, cancel_futures)

    monkeypatch.setattr(concurrent.futures.process, "ProcessPoolExecutor", Pool, raising=False)
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Pool)
    return found


@pytest.mark.parametrize(
    ("jobs", "workers", "processes"),
    [(0, 4, None), (1, 4, None), (3, 1, None), (2, 2, 2), (3, 8, 3)],
)
def test_no_more_processes_than_jobs_and_none_for_one_worker(
    built, started, jobs, workers, processes
):
    names = [f"job {i}" for i in range(jobs)]
    assert list(run_in_pool(names, workers)) == built == names
    assert [pool.workers for pool in started] == [processes] * (processes is not None)
    for pool in started:
        assert pool.how == ("spawn", pools._start_worker)
        assert pool.end == (False, True), "a process that died would be waited for"


def test_one_worker_makes_a_part_when_it_is_asked_for(built):
    made = run_in_pool(["a", "b"], 1)
    assert (next(made), built) == ("a", ["a"])


def test_a_process_that_ends_without_a_result_is_a_fault(built, started):
    broken = concurrent.futures.process.BrokenProcessPool("it was killed.")
    made = run_in_pool(["a", broken, "b"], 2)
    assert next(made) == "a"
    with pytest.raises(Fault, match=r"it was killed\. Fewer Corpus\.workers need less memory"):
        next(made)
    (pool,) = started
    assert pool.end == (False, True)
