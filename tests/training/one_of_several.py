"""One of several processes of the same runs, which it makes one after the other.

python -m tests.training.one_of_several HOSTS RUNS

HOSTS and RUNS are JSON: the fields of `Hosts`, and for each run those of `make_run`, beside
`seconds_per_batch`, which slows it down so that a test can interfere; `hangs_at`, the process and
the batch at which its reader never returns; `damages`, a checkpoint in which a bit is flipped
before, in a file that process 1 verifies; `failing_save`, the process whose saves fail; and
`noise`, the rows that are random tokens. Four virtual devices over all processes; XLA_FLAGS says
how many of them are this one's.
"""

import errno
import itertools
import json
import pathlib
import sys
import threading
import time
from collections.abc import Callable

from orbax.checkpoint._src.checkpointers import async_checkpointer as orbax_saving

from t5x_style.accounting import Topology
from t5x_style.checkpoints import manifest
from t5x_style.commands import main
from t5x_style.data import BatchReader
from t5x_style.hosts import Hosts, Watchdog, from_writer
from t5x_style.optim import AdamW, Schedule
from t5x_style.training import train
from t5x_style.training.recovery.spikes import Spikes
from tests.training.recovery.faulty import with_noise
from tests.training.runs import make_run

TOPOLOGY = Topology(data=2, fsdp=2, loss_chunk_tokens=64)
# So that a run in two parts learns what it would have learnt in one.
CONSTANT = AdamW(Schedule(peak_learning_rate=1e-2, warmup_tokens=256, shape="constant"))


def _fail(*arguments, **options):
    raise OSError(errno.EIO, "Input/output error")


def run_all(hosts: dict, runs: list[dict]) -> None:
    """Print what each run returned, a line of JSON each."""
    read = BatchReader.rows
    manifest.write_part = telling(manifest.write_part)  # type: ignore[assignment]
    limits = Watchdog(min_seconds=3.0) if any("hangs_at" in run for run in runs) else Watchdog()
    with Hosts(**hosts).join(), limits.watching():
        for run in runs:
            seconds, batches = run.pop("seconds_per_batch", 0.0), itertools.count()
            hangs_at = run.pop("hangs_at", None)
            damages = run.pop("damages", None)
            noise = range(*run.pop("noise", (0, 0)))
            run["spikes"] = Spikes(**run.pop("spikes", {}))
            if damages:
                from_writer(lambda path=damages: flip(pathlib.Path(path)))
            if run.pop("failing_save", None) == hosts.get("index", 0):
                orbax_saving._background_wait_for_commit_futures = _fail

            def slowly(reader, rows, seconds=seconds, batches=batches, at=hangs_at, noise=noise):
                time.sleep(seconds)
                if at == [hosts.get("index"), next(batches)]:
                    threading.Event().wait()
                return with_noise(read(reader, rows), rows, noise)

            BatchReader.rows = slowly  # type: ignore[method-assign]
            result = train(make_run(topology=TOPOLOGY, optimizer=CONSTANT, **run))
            # Standard error: standard output is the writer's alone.
            print(json.dumps(result), file=sys.stderr)


def telling(write_part: Callable) -> Callable:
    """`write_part`, which also says whose digests it has left."""

    def told(item: pathlib.Path, process: int, folder: str) -> None:
        write_part(item, process, folder)
        print(f"left the digests of {folder}", file=sys.stderr)

    return told


def flip(checkpoint: pathlib.Path) -> None:
    """Change a bit of the second largest file."""
    files = [file for file in checkpoint.rglob("*") if file.is_file()]
    file = sorted(files, key=lambda file: file.stat().st_size)[-2]
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


if __name__ == "__main__":
    hosts, runs = map(json.loads, sys.argv[1:])
    # Status and last line are those of the command line.
    main._run = lambda arguments: run_all(hosts, runs)
    sys.exit(main.main([]))
