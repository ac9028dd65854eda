"""One of several processes that read the same run's batches: leaves the rows its devices hold.

python -m tests.training.batches_of_process OUTPUT.npz PROCESS PROCESSES PORT

Four virtual devices over all processes; XLA_FLAGS says how many of them are this one's.
"""

import sys

import jax
import numpy as np
from jax.sharding import Mesh

from t5x_style.accounting import MESH_AXES
from t5x_style.data import BatchPlan
from t5x_style.partitioning import batch_sharding
from t5x_style.step.batches import abstract_batch, global_batch
from t5x_style.step.step import packed_batch
from tests.training.runs import make_run

STEPS = 9
# A new life of the run begins at each of these steps.
STARTS = (0, 1, 3, 7)
# By data, fsdp, tensor and sequence.
MESHES = {"data=2 x fsdp=2": (2, 2, 1, 1), "fsdp=2 x tensor=2": (1, 2, 2, 1)}
PLAN = BatchPlan.from_settings([(8, 512), (16, None)], [(8, 256), (16, None)], train_steps=STEPS)


def held(devices: list[jax.Device]) -> dict[str, np.ndarray]:
    """What these devices hold, by mesh, step and first row; and how many rows were read for it."""
    found = {}
    for name, shape in MESHES.items():
        mesh = Mesh(np.array(devices).reshape(shape), MESH_AXES)
        found |= {f"{name}/{key}": value for key, value in held_on(mesh).items()}
    return found


def held_on(mesh: Mesh) -> dict[str, np.ndarray]:
    """The same of one mesh."""
    reader, rows_read = None, 0

    def read(rows: np.ndarray) -> np.ndarray:
        nonlocal rows_read
        rows_read += len(rows)
        return packed_batch(reader.rows(rows))

    found = {}
    for step in range(STEPS):
        if step in STARTS:
            reader = make_run("no-such-run", plan=PLAN).reader
        like = abstract_batch(*PLAN.shape(step), batch_sharding(mesh))
        with jax.transfer_guard("disallow"):
            batch = global_batch(read, PLAN.rows_before(step), like)
        for shard in batch.addressable_shards:
            found[f"{step}/{shard.index[0].start or 0}"] = jax.device_get(shard.data)
    return found | {"rows_read": np.array(rows_read)}


if __name__ == "__main__":
    output, process, processes, port = sys.argv[1:]
    jax.distributed.initialize(f"localhost:{port}", int(processes), int(process))
    np.savez(output, **held(jax.devices()))
