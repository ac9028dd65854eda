"""Several processes as one run: found from the environment, joined, and left together.

Each process drives the devices of its host; all run the same program. What a process decides from
files or from a clock, process 0 decides and tells the others (`from_writer`), and it alone writes.
"""

import atexit
import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin
import jax
from jax._src import clusters
from jax.experimental import multihost_utils

from t5x_style.errors import (
    EXIT_FAULT,
    EXIT_INTERRUPTED,
    EXIT_USAGE,
    Fault,
    Preempted,
    UsageError,
)
from t5x_style.hosts.lifeline import Lifeline, Place, farewell, meet

# What launchers leave in the environment of a process that is one of several.
NAMES_OF_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
NAMES_OF_LISTS = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")

# A process is in one run of several at a time, as it is in one `jax.distributed`.
_line: Lifeline | None = None


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Hosts:
    """Which process of how many this is.

    Nothing needs to be given on Cloud TPU slices, on GKE, under Slurm's srun and under mpirun:
    JAX reads their environment. Elsewhere the first three are given, and alike in all processes
    but for `index`.

    Attributes:
      coordinator: HOST:PORT at which process 0 is met.
      processes: how many there are; 1 alone means one, whatever the environment says.
      index: which of them this is, from 0.
      timeout_seconds: how long to wait until all have come.
    """

    coordinator: str | None = None
    processes: int | None = None
    index: int | None = None
    timeout_seconds: float = 300.0

    def __post_init__(self):
        if self.timeout_seconds <= 0:
            raise UsageError(f"Hosts.timeout_seconds = {self.timeout_seconds}: must be above 0")
        if self.processes is not None and self.processes < 1:
            raise UsageError(f"Hosts.processes = {self.processes}: must be 1 or more")
        given = {"coordinator": self.coordinator, "index": self.index}
        if self.processes in (None, 1):
            for name, value in given.items():
                if value is not None:
                    raise UsageError(
                        f"Hosts.{name} = {value!r} says nothing without Hosts.processes, 2 or more"
                    )
            return
        for name, value in given.items():
            if value is None:
                raise UsageError(f"Hosts.processes = {self.processes}: Hosts.{name} is needed, too")
        if not 0 <= self.index < self.processes:
            raise UsageError(
                f"Hosts.index = {self.index} is none of 0 to {self.processes - 1} "
                f"(Hosts.processes = {self.processes})"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise UsageError(
                f"Hosts.coordinator = {self.coordinator!r} is not of the form HOST:PORT"
            )

    def place(self) -> Place | None:
        """Where this process stands; None if it is the only one.

        Raises:
          UsageError: the environment names several, and not where this one stands.
        """
        if self.processes == 1:
            return None
        if self.processes is not None:
            return Place(self.coordinator, self.processes, self.index)
        # What jax.distributed.initialize() itself would find. Asked for before it, because it has
        # no way to ask, and a run has to know whom it waits for.
        coordinator, processes, index, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(self.timeout_seconds)
        )
        if processes is None:
            _refuse_several(os.environ)
        return None if processes in (None, 1) else Place(coordinator, processes, index)

    @contextlib.contextmanager
    def joined(self, same: str = "", *, listens: bool = True) -> Iterator[None]:
        """Be one of the processes of a run, from here to the end of the block.

        In a process that is not the writer, standard output leads nowhere. If another process
        fails or dies, this one ends: by a Fault, or where its main thread waits for what will not
        come, by itself with the same status and last line.

        Args:
          same: a text that has to be the same in all processes, such as their configuration.
          listens: whether SIGTERM is answered by `preemption_requested`. A command that never asks
            ends at once by the signal, and with it the other processes.

        Raises:
          UsageError, Fault: as `lifeline.meet`.
        """
        global _line
        place = self.place()
        if place is None:
            yield
            return
        line = _line = meet(place, self.timeout_seconds, same)
        failure: str | None = None
        try:
            jax.config.update("jax_enable_preemption_service", listens)
            jax.distributed.initialize(
                f"{place.coordinator.rpartition(':')[0]}:{line.service_port}",
                place.processes,
                place.index,
                initialization_timeout=int(self.timeout_seconds) + 1,
            )
            with contextlib.ExitStack() as stack:
                if place.index:
                    nowhere = stack.enter_context(open(os.devnull, "w"))
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
                yield
            jax.distributed.shutdown()
        except Preempted:
            jax.distributed.shutdown()  # all are at the same step
            raise
        except BaseException as error:
            _never_wait_at_exit(error)
            own = isinstance(error, UsageError | Fault)
            # A collective that breaks off says less than the line does, a moment later.
            if not own and (lost := line.lost_within(2.0)) is not None:
                failure = lost
                raise Fault(farewell(lost)) from error
            failure = str(error) if own else f"{type(error).__name__}: {error}".rstrip(": ")
            raise
        finally:
            _line = None
            line.close(failure)


def is_writer() -> bool:
    """Whether this process writes what the run leaves: process 0 does."""
    return _line is None or _line.place.index == 0


def from_writer(decide: Callable[[], Any]) -> Any:
    """What `decide()` gives in process 0, which alone calls it, in every process.

    All processes have to come here, in the same order.

    Args:
      decide: gives what JSON can hold. A UsageError or Fault that it raises is raised everywhere.
    """
    if _line is None:
        return decide()
    if _line.place.index == 0:
        try:
            value = decide()
        except (UsageError, Fault) as error:
            _line.tell({"usage": isinstance(error, UsageError), "error": str(error)})
            raise
        _line.tell({"value": value})
        return value
    told = _line.hear()
    if "error" in told:
        raise (UsageError if told["usage"] else Fault)(told["error"])
    return told["value"]


@contextlib.contextmanager
def preemption_requested() -> Iterator[Callable[[int], bool]]:
    """A function of the step that says whether SIGTERM came, to this process or to any other.

    It is to be asked once at every step, by all processes, and is true in all of them at the same
    step: one that none of them had passed when the signal came.
    """
    if _line is not None:
        # JAX has listened since the processes met; a handler of ours would take its place.
        yield multihost_utils.reached_preemption_sync_point
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield lambda step: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_several(environment: Mapping[str, str]) -> None:
    """Refuse to be a single process where the environment names several.

    Raises:
      UsageError: it does, in a way that JAX makes no whole of.
    """
    for name, value in environment.items():
        if (
            (name in NAMES_OF_COUNTS and value not in ("", "1"))
            or (name in NAMES_OF_LISTS and "," in value)
            or name == "JAX_COORDINATOR_ADDRESS"
        ):
            raise UsageError(
                f"{name} = {value} in the environment names several processes, and not which of "
                "them this is: start it by srun, by mpirun or on the hosts of the slice, or give "
                "Hosts.coordinator, Hosts.processes and Hosts.index; Hosts.processes = 1 if it is "
                "meant to be alone"
            )


def _never_wait_at_exit(error: BaseException) -> None:
    """End at the interpreter's end with the status of `error`, before JAX bids all processes
    farewell: it would wait minutes for those that do not come, and then abort.
    """
    status = EXIT_FAULT
    if isinstance(error, UsageError):
        status = EXIT_USAGE
    elif isinstance(error, KeyboardInterrupt):
        status = EXIT_INTERRUPTED

    def leave():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
