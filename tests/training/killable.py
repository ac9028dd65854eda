"""A run in a process of its own, slowed down so that a test can kill it at a chosen moment.

python tests/training/killable.py MODEL_DIR STEPS SECONDS_PER_BATCH [AXIS=SIZE]
"""

import sys
import time

from t5x_style.accounting import Topology
from t5x_style.data import BatchReader
from t5x_style.reporting import process_began
from t5x_style.training import train
from tests.training.runs import make_run

if __name__ == "__main__":
    model_dir, steps, seconds, *mesh = sys.argv[1:]
    read = BatchReader.rows

    def slowly(reader, indices):
        time.sleep(float(seconds))
        return read(reader, indices)

    BatchReader.rows = slowly  # type: ignore[method-assign]
    axes = {axis: int(size) for axis, size in (size_of_axis.split("=") for size_of_axis in mesh)}
    topology = Topology(loss_chunk_tokens=64, **axes)
    run = make_run(model_dir, steps=int(steps), topology=topology, eval_period=20)
    train(run, process_began())
