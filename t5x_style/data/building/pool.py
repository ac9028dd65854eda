"""Parts made by a pool of processes on this machine."""

import concurrent.futures.process
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator

from t5x_style.data.building.parts import Job, build_part
from t5x_style.errors import Fault


def run_in_pool(jobs: list[Job], workers: int) -> Iterator[Job]:
    """Makes the parts, `workers` at a time, and yields the jobs in order once they are done.

    With one worker this process does the work.

    Raises:
      Fault: a process ended without a result. The parts that others finished are kept.
    """
    workers = min(workers, len(jobs))
    if workers <= 1:
        for job in jobs:
            build_part(job)
            yield job
        return
    # Spawned, not forked: this process may hold TensorFlow's threads.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        for job, made in [(job, pool.submit(build_part, job)) for job in jobs]:
            made.result()
            yield job
    except concurrent.futures.process.BrokenProcessPool as error:
        raise Fault(
            f"a process that tokenises ended without a result: {error} Fewer Corpus.workers need "
            f"less memory. The parts that were finished are kept"
        ) from None
    finally:
        # Not waited for: Python before 3.11.6 waits for ever if a process of the pool died while it
        # was handed work (python/cpython#94777).
        pool.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and ends us
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent():
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
