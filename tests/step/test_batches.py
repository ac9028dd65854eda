"""The same global batches for any number of processes, any mesh and any number of resumes."""

import hashlib
import itertools
import os
import pathlib
import socket

import jax
import numpy as np
import pytest

from tests import warm
from tests.training.batches_of_process import MESHES, PLAN, STEPS, held
from tests.training.runs import make_run


def start(folder: pathlib.Path, processes: int) -> list[warm.Child]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={4 // processes}"
    return [
        warm.start(
            [
                *("-m", "tests.training.batches_of_process"),
                *(folder / f"{process}.npz", process, processes, port),
            ],
            env={**os.environ, "XLA_FLAGS": flags},
        )
        for process in range(processes)
    ]


@pytest.fixture(scope="module")
def held_by(tmp_path_factory) -> dict[int, list[dict[str, np.ndarray]]]:
    """{processes: what each of them holds}; this process alone, and two and four together."""
    found = {1: [held(jax.devices()[:4])]}
    folder_of = {number: tmp_path_factory.mktemp(f"of_{number}") for number in (2, 4)}
    started = [start(folder, number) for number, folder in folder_of.items()]
    for process in itertools.chain(*started):
        _, errors = process.communicate(timeout=1200)
        assert process.returncode == 0, errors
    for number, folder in folder_of.items():
        found[number] = [dict(np.load(folder / f"{process}.npz")) for process in range(number)]
    return found


def reassembled(parts: list[dict[str, np.ndarray]], mesh: str) -> list[np.ndarray]:
    """The global batch of each step from the pieces that the processes hold."""
    batches = []
    for step in range(STEPS):
        pieces: dict[int, np.ndarray] = {}
        for part in parts:
            for key, rows in part.items():
                prefix = f"{mesh}/{step}/"
                if key.startswith(prefix):
                    first = int(key.removeprefix(prefix))
                    np.testing.assert_array_equal(rows, pieces.setdefault(first, rows))
        assert (
            sorted(pieces)
            == np.cumsum([0, *(len(pieces[k]) for k in sorted(pieces))])[:-1].tolist()
        )
        batches.append(np.concatenate([pieces[first] for first in sorted(pieces)]))
    return batches


def sha256(batches: list[np.ndarray]) -> str:
    return hashlib.sha256(b"".join(batch.tobytes() for batch in batches)).hexdigest()


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_global_batch_is_that_of_one_reader(held_by, processes, mesh):
    batches = reassembled(held_by[processes], mesh)
    reader = make_run("no-such-run", plan=PLAN).reader
    plain = []
    for step in range(STEPS):
        rows = reader.rows(np.arange(PLAN.rows_before(step), PLAN.rows_before(step + 1)))
        plain.append(np.column_stack([rows.source, rows.tokens]))
    assert [len(batch) for batch in batches] == [8] * 6 + [16] * 3
    assert sha256(batches) == sha256(plain)


@pytest.mark.parametrize(("mesh", "pieces"), [("data=2 x fsdp=2", 4), ("fsdp=2 x tensor=2", 2)])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_process_reads_its_own_rows_alone(held_by, processes, mesh, pieces):
    read = [int(part[f"{mesh}/rows_read"]) for part in held_by[processes]]
    assert read == [PLAN.rows // min(processes, pieces)] * processes
