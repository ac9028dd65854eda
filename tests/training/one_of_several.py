"""One of several processes of the same runs, which it makes one after the other.

python -m tests.training.one_of_several HOSTS RUNS

HOSTS and RUNS are JSON: the fields of `Hosts`, and for each run those of `make_run`, beside
`seconds_per_batch`, which slows it down so that a test can interfere. Four virtual devices over
all processes; XLA_FLAGS says how many of them are this one's.
"""

import json
import sys
import time

from t5x_style.accounting import Topology
from t5x_style.commands import main
from t5x_style.data import BatchReader
from t5x_style.hosts import Hosts
from t5x_style.optim import AdamW, Schedule
from t5x_style.training import train
from tests.training.runs import make_run

TOPOLOGY = Topology(data=2, fsdp=2, loss_chunk_tokens=64)
# So that a run in two parts learns what it would have learnt in one.
CONSTANT = AdamW(Schedule(peak_learning_rate=1e-2, warmup_tokens=256, shape="constant"))


def run_all(hosts: dict, runs: list[dict]) -> None:
    """Print what each run returned, a line of JSON each."""
    read = BatchReader.rows
    with Hosts(**hosts).join():
        for run in runs:
            seconds = run.pop("seconds_per_batch", 0.0)

            def slowly(reader, rows, seconds=seconds):
                time.sleep(seconds)
                return read(reader, rows)

            BatchReader.rows = slowly  # type: ignore[method-assign]
            result = train(make_run(topology=TOPOLOGY, optimizer=CONSTANT, **run))
            # Standard error: standard output is the writer's alone.
            print(json.dumps(result), file=sys.stderr)


if __name__ == "__main__":
    hosts, runs = map(json.loads, sys.argv[1:])
    # Status and last line are those of the command line.
    main._run = lambda arguments: run_all(hosts, runs)
    sys.exit(main.main([]))
