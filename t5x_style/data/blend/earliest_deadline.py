"""Earliest deadline first: unit jobs with windows, one a slot."""

import heapq

import numpy as np


def earliest_deadline_first(
    release: np.ndarray, deadline: np.ndarray, source: np.ndarray, first: int, slots: int
) -> np.ndarray:
    """Gives each slot to the released job whose window closes first.

    Where any schedule meets all windows this one does (Horn 1974). Of equal deadlines the lower
    source goes first. A slot for which nothing is released takes the job that is released next:
    windows that come of floating-point numbers may open a slot late.

    Args:
      release: int64 [jobs], the first slot that a job may lie in.
      deadline: int64 [jobs], the slot before which it must lie; later for each job of a source.
      source: int32 [jobs], whose job it is.
      first: number of the first slot.
      slots: how many there are; no more than jobs.

    Returns:
      int32 [slots]: the source of each.
    """
    order = np.lexsort((source, deadline, release))
    jobs = list(
        zip(release[order].tolist(), deadline[order].tolist(), source[order].tolist(), strict=True)
    )
    given = np.empty(slots, np.int32)
    ready: list[tuple[int, int]] = []
    next_job = 0
    for slot in range(slots):
        now = first + slot
        while next_job < len(jobs) and jobs[next_job][0] <= now:
            heapq.heappush(ready, jobs[next_job][1:])
            next_job += 1
        if not ready:
            heapq.heappush(ready, jobs[next_job][1:])
            next_job += 1
        given[slot] = heapq.heappop(ready)[1]
    return given
