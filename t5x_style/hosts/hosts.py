"""Several processes as one run: found from the environment, joined, and ended together.

Each process drives the devices of its host; all run the same program. Process 0 alone writes. It
also makes every decision that depends on files or a clock, and sends it to the others
(`from_writer`).
"""

import atexit
import contextlib
import dataclasses
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gin
import jax
import numpy as np
from jax._src import clusters, distributed
from jax._src.lib import _jax
from jax.experimental import multihost_utils

from t5x_style.errors import Fault, NothingToSave, Preempted, UsageError, exit_status
from t5x_style.hosts.lifeline import Lifeline
from t5x_style.hosts.meeting import SECRET_VARIABLE, Met, Place, rendezvous
from t5x_style.ranges import NonNegativeInt, PositiveFloat, PositiveInt, check_ranges
from t5x_style.signals import heard, requests_kept

# Characters of a secret.
LEAST_SECRET = 16
# Environment variables that launchers set for a process that is one of several.
COUNT_VARIABLES = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "MEGASCALE_NUM_SLICES")
LIST_VARIABLES = ("TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES")

# Under which JAX's service keeps the name of a signal for all processes.
SIGNAL_KEY = "t5x_style/signal"

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
      silent_seconds: how long a process may give no sign of life, because it is stopped, before all
        others end.
    """

    coordinator: str | None = None
    processes: PositiveInt | None = None
    index: NonNegativeInt | None = None
    timeout_seconds: PositiveFloat = 300.0
    silent_seconds: PositiveFloat = 60.0

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
    def join(self, common_text: str = "") -> Iterator[None]:
        """Join the other processes for the duration of the block.

        Only the writer prints to standard output. If another process fails or dies, this one ends
        with a Fault. If its main thread waits for a collective, another thread ends the process,
        with the same status and last line.

        Args:
          common_text: a text that must be the same in all processes, such as their configuration.

        Raises:
          UsageError, Fault: as `meeting.rendezvous`.
        """
        global _lifeline
        place = self.place()
        if place is None:
            yield
            return
        met = rendezvous(place, self.timeout_seconds, common_text, _secret(os.environ))
        line = _lifeline = Lifeline(place, met.peers, self.silent_seconds)
        failure: BaseException | None = None
        try:
            with lost_processes_named(), contextlib.ExitStack() as stack:
                self._start_jax(place, met)
                if place.index:
                    nowhere = stack.enter_context(open(os.devnull, "w"))
                    stack.enter_context(contextlib.redirect_stdout(nowhere))
                yield
                jax.distributed.shutdown()
        except BaseException as error:
            if isinstance(error, Preempted) and not isinstance(error, NothingToSave):
                jax.distributed.shutdown()  # all are at the same step
                raise
            failure = error
            _skip_wait_at_exit(exit_status(failure))
            raise
        finally:
            _lifeline = None
            line.close(failure)

    def _start_jax(self, place: Place, met: Met) -> None:
        # `preemption_requested` starts it: it takes SIGTERM from whoever had it.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            f"{place.coordinator.rpartition(':')[0]}:{met.service_port}",
            place.processes,
            place.index,
            initialization_timeout=int(self.timeout_seconds) + 1,
            # JAX aborts with a stack of C++. The lifeline is to end the process before that.
            heartbeat_timeout_seconds=int(10 * self.silent_seconds) + 60,
            coordinator_bind_address=met.bind_host and f"{met.bind_host}:{met.service_port}",
        )


@contextlib.contextmanager
def lost_processes_named() -> Iterator[None]:
    """In the block, the reason of the lifeline is raised in place of a broken collective.

    The lifeline has it a moment later, and writes its event. So this goes around what a run does
    while its log is open.
    """
    try:
        yield
    except (UsageError, Fault, Preempted):
        raise
    except Exception as error:
        lost = None if _lifeline is None else _lifeline.lost_within(2.0)
        if lost is None:
            raise
        raise lost from error


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


def from_all(own: Callable[[int, int], Any]) -> list[Any]:
    """The results of `own` in every process, in order of their index.

    All processes must call this, in the same order. If one ends instead, all do: see `Hosts.join`.

    Args:
      own: called with the index of this process and the number of processes; returns a value that
        JSON can hold.
    """
    if _lifeline is None:
        return [own(0, 1)]
    place = _lifeline.place
    text = np.frombuffer(json.dumps(own(place.index, place.processes)).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text))).reshape(-1)
    padded = np.pad(text, (0, lengths.max() - len(text)))
    texts = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


@contextlib.contextmanager
def preemption_requested() -> Iterator[Callable[[], str | None]]:
    """A function: the name of the signal that asked this process or any other to save and leave.

    It returns None until then. All processes must call it equally often. The same call answers in
    all of them, one that none of them had made when the signal was received. Later calls answer the
    same.
    """
    with contextlib.ExitStack() as stack:
        if _lifeline is None:
            yield stack.enter_context(requests_kept())
            return
        stack.enter_context(heard())
        client: Any = distributed.global_state.client
        # A manager of our own, which Orbax does not find: it would ask it with numbers of steps
        # between our numbers of calls. A call with a lower number than the last may miss a request.
        # It takes SIGTERM from the handler of `heard`.
        manager = _jax.create_preemption_sync_manager()
        manager.initialize(client)
        stack.callback(manager.shutdown)
        calls = itertools.count(1)
        found: list[str] = []

        def pass_on(name: str) -> None:
            client.key_value_set(SIGNAL_KEY, name, allow_overwrite=True)
            os.kill(os.getpid(), signal.SIGTERM)

        def requested() -> str | None:
            if not found and manager.reached_sync_point(next(calls)):
                found.append(_signal_name(client))
            return found[0] if found else None

        stack.enter_context(requests_kept(pass_on))
        yield requested


def _signal_name(client: Any) -> str:
    """The signal that a process passed on as SIGTERM, or SIGTERM itself."""
    try:
        return client.key_value_try_get(SIGNAL_KEY)
    except jax.errors.JaxRuntimeError:
        return signal.SIGTERM.name


def _secret(environment: Mapping[str, str]) -> str:
    """The secret of the job; empty if there is none.

    Raises:
      UsageError: it is so short that it can be guessed.
    """
    secret = environment.get(SECRET_VARIABLE, "")
    if 0 < len(secret) < LEAST_SECRET:
        raise UsageError(
            f"{SECRET_VARIABLE} in the environment has {len(secret)} characters: take "
            f"{LEAST_SECRET} or more, such as those of `openssl rand -hex 16`"
        )
    return secret


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


def _skip_wait_at_exit(status: int) -> None:
    """At the interpreter's exit, end with `status` before JAX's own shutdown.

    JAX would wait minutes for the missing processes, and then abort.
    """

    def leave():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave)
