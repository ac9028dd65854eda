"""Several processes as one run: found from the environment, joined, and ended together.

Each process drives the devices of its host; all run the same program. Process 0 alone writes. It
also makes every decision that depends on files or a clock, and sends it to the others
(`from_writer`).
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
from t5x_style.hosts.lifeline import Lifeline, Place, peer_lost_message, rendezvous
from t5x_style.ranges import NonNegativeInt, PositiveFloat, PositiveInt, check_ranges

# Environment variables that launchers set for a process that is one of several.
COUNT_VARIABLES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
LIST_VARIABLES = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")

# A process is in one run at a time, as `jax.distributed` is.
_lifeline: Lifeline | None = None


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Hosts:
    """The number of processes of a run, and the index of this one.

    On Cloud TPU slices, on GKE, under Slurm's srun and under mpirun nothing needs to be given: JAX
    reads their environment. Elsewhere the first three are given. Only `index` differs between the
    processes.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      processes: number of processes; 1 means one process, whatever the environment contains.
      index: of this process, from 0.
      timeout_seconds: how long to wait until all processes are present.
    """

    coordinator: str | None = None
    processes: PositiveInt | None = None
    index: NonNegativeInt | None = None
    timeout_seconds: PositiveFloat = 300.0

    def __post_init__(self):
        check_ranges(self)
        given = {"coordinator": self.coordinator, "index": self.index}
        if self.processes is None or self.processes == 1:
            for name, value in given.items():
                if value is not None:
                    raise UsageError(f"Hosts.{name} = {value!r} needs Hosts.processes, 2 or more")
            return
        if self.coordinator is None or self.index is None:
            missing = next(name for name, value in given.items() if value is None)
            raise UsageError(f"Hosts.processes = {self.processes} needs Hosts.{missing}")
        if self.index >= self.processes:
            raise UsageError(
                f"Hosts.index = {self.index} is not one of 0 to {self.processes - 1} "
                f"(Hosts.processes = {self.processes})"
            )
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or int(port) > 65535:
            raise UsageError(
                f"Hosts.coordinator = {self.coordinator!r} is not of the form HOST:PORT"
            )

    def place(self) -> Place | None:
        """The position of this process; None if it is the only one.

        Raises:
          UsageError: the environment names several processes, and not the index of this one.
        """
        if self.processes == 1:
            return None
        if self.coordinator is not None and self.processes is not None and self.index is not None:
            return Place(self.coordinator, self.processes, self.index)
        # The values that jax.distributed.initialize() itself would find. It does not return them,
        # and the rendezvous needs them first.
        coordinator, processes, index, _ = clusters.ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(self.timeout_seconds)
        )
        if coordinator is None or processes is None or index is None:
            _refuse_several(os.environ)
            return None
        return None if processes == 1 else Place(coordinator, processes, index)

    @contextlib.contextmanager
    def join(self, common_text: str = "", *, handles_sigterm: bool = True) -> Iterator[None]:
        """Join the other processes for the duration of the block.

        Only the writer prints to standard output. If another process fails or dies, this one ends
        with a Fault. If its main thread waits for a collective, another thread ends the process,
        with the same status and last line.

        Args:
          common_text: a text that must be the same in all processes, such as their configuration.
          handles_sigterm: whether the block asks `preemption_requested`. If it does not, SIGTERM
            ends this process at once, and with it the others.

        Raises:
          UsageError, Fault: as `lifeline.rendezvous`.
        """
        global _lifeline
        place = self.place()
        if place is None:
            yield
            return
        line = _lifeline = rendezvous(place, self.timeout_seconds, common_text)
        failure: str | None = None
        try:
            jax.config.update("jax_enable_preemption_service", handles_sigterm)
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
            _skip_wait_at_exit(error)
            own = isinstance(error, UsageError | Fault)
            # The lifeline gives the reason for a broken collective a moment later.
            if not own and (lost := line.lost_within(2.0)) is not None:
                failure = lost
                raise Fault(peer_lost_message(lost)) from error
            failure = str(error) if own else f"{type(error).__name__}: {error}".rstrip(": ")
            raise
        finally:
            _lifeline = None
            line.close(failure)


def is_writer() -> bool:
    """Whether this process writes the files of the run: process 0 does."""
    return _lifeline is None or _lifeline.place.index == 0


def from_writer(decide: Callable[[], Any]) -> Any:
    """The result of `decide()`, which only process 0 calls, in every process.

    All processes must call this, in the same order.

    Args:
      decide: returns a value that JSON can hold. Its UsageError or Fault is raised everywhere.
    """
    if _lifeline is None:
        return decide()
    if _lifeline.place.index == 0:
        try:
            value = decide()
        except (UsageError, Fault) as error:
            _lifeline.send({"usage": isinstance(error, UsageError), "error": str(error)})
            raise
        _lifeline.send({"value": value})
        return value
    decision = _lifeline.receive()
    if "error" in decision:
        raise (UsageError if decision["usage"] else Fault)(decision["error"])
    return decision["value"]


@contextlib.contextmanager
def preemption_requested() -> Iterator[Callable[[int], bool]]:
    """A function of the step: whether this process or any other received SIGTERM.

    All processes must call it once at every step. It is true in all of them at the same step, which
    none of them had passed when the signal was received.
    """
    if _lifeline is not None:
        # JAX has handled the signal since `join`; a handler of ours would replace its own.
        yield multihost_utils.reached_preemption_sync_point
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: received.append(number))
    try:
        yield lambda step: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


def _refuse_several(environment: Mapping[str, str]) -> None:
    """Refuse to run alone where the environment names several processes.

    Raises:
      UsageError: it names several, and JAX could not read their number and this index from it.
    """
    for name, value in environment.items():
        if (
            (name in COUNT_VARIABLES and value not in ("", "1"))
            or (name in LIST_VARIABLES and "," in value)
            or name == "JAX_COORDINATOR_ADDRESS"
        ):
            raise UsageError(
                f"{name} = {value} in the environment names several processes, but not the index "
                "of this one: start it by srun, by mpirun or on the hosts of the slice, or give "
                "Hosts.coordinator, Hosts.processes and Hosts.index; to run alone, give "
                "Hosts.processes = 1"
            )


def _skip_wait_at_exit(error: BaseException) -> None:
    """At the interpreter's exit, end with the status of `error` before JAX's own shutdown.

    JAX would wait minutes for the missing processes, and then abort.
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
