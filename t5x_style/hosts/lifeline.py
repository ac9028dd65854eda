"""TCP connections between the processes of a run: who is present, who was lost, what was decided.

JAX joins processes by itself. It reports a missing process only as a timeout. When a process dies,
JAX aborts the others after minutes and does not name it. So the processes first meet here, over
plain TCP at the coordinator's address. The connections stay open for the whole run. The kernel
closes those of a dead process at once, and keep-alive probes find a host that has vanished.

There is no secret: while the processes meet, process 0 listens on every interface of its host. It
admits whoever sends a free index, the right number of processes and the same text. Run it on a
network that you trust.
"""

import contextlib
import dataclasses
import difflib
import json
import os
import queue
import selectors
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any

from t5x_style.errors import EXIT_FAULT, Fault, UsageError

# A host that answers no probe for 10 + 4 x 5 s has vanished. So has one that acknowledges nothing
# for as long.
KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 30_000,
}
# How long a process may take to end by itself after another has failed. Where all fail for the same
# reason, each prints its own error.
GRACE_SECONDS = 3.0
RETRY_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Place:
    """The position of a process in a run of several.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      processes: number of processes.
      index: of this process, from 0.
    """

    coordinator: str
    processes: int
    index: int

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the coordinator."""
        host, _, port = self.coordinator.rpartition(":")
        return host.strip("[]"), int(port)

    def __str__(self):
        here = f"{socket.gethostname()}, pid {os.getpid()}"
        return f"process {self.index} of {self.processes} ({here})"


@dataclasses.dataclass(frozen=True)
class _Hello:
    """The first message of a process to process 0.

    Attributes:
      index, processes: as in `Place`.
      who: the process, its host and its pid, for messages.
      common_text: see `rendezvous`.
    """

    index: int
    processes: int
    who: str
    common_text: str


class Lifeline:
    """The connections of one process: to process 0, or from process 0 to all others."""

    def __init__(self, place: Place, peers: Mapping[socket.socket, str], service_port: int):
        """Takes over the connections that `rendezvous` made.

        Args:
          peers: {connection: the process at the other end}.
          service_port: port of process 0's host for JAX's own service.
        """
        self.place, self.service_port = place, service_port
        self._peers = dict(peers)
        self._buffers = dict.fromkeys(peers, b"")
        self._sending = threading.Lock()
        self._received: queue.SimpleQueue = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lost_event = threading.Event()
        self._lost = ""
        selector = selectors.DefaultSelector()
        for connection in peers:
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in KEEP_ALIVE.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
            selector.register(connection, selectors.EVENT_READ, connection)
        watch = threading.Thread(target=self._watch, args=(selector,), name="lifeline", daemon=True)
        watch.start()

    def send(self, value: Any) -> None:
        """Send a value that JSON can hold to all other processes; for process 0."""
        self._send_all({"kind": "value", "value": value})

    def receive(self) -> Any:
        """The next value from process 0; waits as long as process 0 lives."""
        return self._received.get()

    def lost_within(self, seconds: float) -> str | None:
        """The reason, if a process was lost or is lost within some seconds; otherwise None."""
        return self._lost if self._lost_event.wait(seconds) else None

    def close(self, failure: str | None = None) -> None:
        """Close the connections; a failure is sent to the others first."""
        self._closing.set()
        message: dict[str, Any] = {"kind": "left"}
        if failure is not None:
            reason = f"{self.place} ended: {failure}"
            message = {"kind": "failed", "reason": reason, "grace": GRACE_SECONDS}
        self._send_all(message)
        for connection in self._peers:
            connection.close()

    def _send_all(self, message: Mapping[str, Any], skipped: socket.socket | None = None) -> None:
        with self._sending:
            for connection in self._peers:
                if connection is not skipped:
                    _try_to_send(connection, message)

    def _watch(self, selector: selectors.BaseSelector) -> None:
        while selector.get_map() and not self._closing.is_set():
            for key, _ in selector.select(timeout=0.5):
                connection = key.data
                for message in self._read(connection):
                    if message["kind"] == "value":
                        self._received.put(message["value"])
                        continue
                    selector.unregister(connection)
                    if message["kind"] != "left":
                        self._end_process(message["reason"], connection, message["grace"])
                        return

    def _read(self, connection: socket.socket) -> list[dict]:
        """The complete messages so far; a closed connection counts as a failure message."""
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return [{"kind": "failed", "reason": f"{self._peers[connection]} was lost", "grace": 0}]
        *lines, self._buffers[connection] = (self._buffers[connection] + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _end_process(self, reason: str, source: socket.socket, grace: float) -> None:
        """Forward the failure and end this process, unless it ends by itself.

        The main thread may wait for a collective that never completes, so this thread ends it.
        """
        if self._closing.is_set():
            return
        self._send_all({"kind": "failed", "reason": reason, "grace": grace}, skipped=source)
        self._lost = reason
        self._lost_event.set()
        if self._closing.wait(grace):
            return
        sys.stdout.flush()
        print(f"error: {peer_lost_message(reason)}", file=sys.stderr, flush=True)
        os._exit(EXIT_FAULT)


def peer_lost_message(reason: str) -> str:
    """The last line of a process that ends because another did."""
    return f"{reason}; the run cannot continue without it: start all processes again"


def rendezvous(place: Place, timeout_seconds: float, common_text: str) -> Lifeline:
    """Wait until every process of the run is connected.

    Args:
      timeout_seconds: how long to wait.
      common_text: a text that must be the same in all processes, such as their configuration.

    Raises:
      Fault: a process is missing after that time; names the missing and the present ones.
      UsageError: two processes have the same index, or their numbers of processes or common texts
        differ.
    """
    deadline = time.monotonic() + timeout_seconds
    hello = _Hello(place.index, place.processes, str(place), common_text)
    if place.index == 0:
        return _accept_all(place, hello, deadline, timeout_seconds)
    return _connect(place, hello, deadline, timeout_seconds)


def _accept_all(place: Place, hello: _Hello, deadline: float, timeout_seconds: float) -> Lifeline:
    """Process 0: accept the others until all are present."""
    port = place.address[1]
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=place.processes
        )
    except OSError as error:
        raise Fault(f"{place} cannot listen at {place.coordinator}: {error}") from error
    present: dict[socket.socket, _Hello] = {}
    accepted: list[socket.socket] = []
    with server:
        try:
            while len(present) < place.processes - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                connection, _ = server.accept()
                accepted.append(connection)
                peer = _read_hello(connection)
                if peer is None:
                    continue
                # A process that died while it waited may have been started again.
                present = {c: other for c, other in present.items() if not _is_gone(c)}
                _check_peer(peer, hello, present.values())
                present[connection] = peer
        except (TimeoutError, UsageError) as error:
            problem: Exception = error
            if isinstance(error, TimeoutError):
                problem = Fault(_missing(place, [hello, *present.values()], timeout_seconds))
            for connection in accepted:
                kind = "usage" if isinstance(problem, UsageError) else "fault"
                _try_to_send(connection, {"refused": str(problem), "kind": kind})
                connection.close()
            raise problem from None
    port = _free_port()
    for connection in present:
        _try_to_send(connection, {"port": port})
    return Lifeline(place, {connection: peer.who for connection, peer in present.items()}, port)


def _connect(place: Place, hello: _Hello, deadline: float, timeout_seconds: float) -> Lifeline:
    """Any other process: connect to process 0, and wait until all are present."""
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection(place.address, timeout=max(0.01, left))
            break
        except OSError as error:
            if left < RETRY_SECONDS:
                raise Fault(
                    f"{place} could not connect to process 0 at {place.coordinator} within "
                    f"{timeout_seconds:g} s ({error}): process 0 was not started, or is elsewhere"
                ) from error
            time.sleep(RETRY_SECONDS)
    try:
        _try_to_send(connection, dataclasses.asdict(hello))
        # Process 0 may have started to wait when this process had nearly stopped.
        connection.settimeout(timeout_seconds + 10.0)
        # Byte by byte: the answer may be followed by the run's first messages, for `Lifeline`.
        answer = json.loads(_receive_line(connection, at_once=1))
    except (OSError, ValueError) as error:
        raise Fault(
            f"{place} connected to {place.coordinator}, and process 0 ended before all were present"
        ) from error
    if "refused" in answer:
        connection.close()
        raise (UsageError if answer["kind"] == "usage" else Fault)(answer["refused"])
    zero = f"process 0 of {place.processes} ({place.coordinator})"
    return Lifeline(place, {connection: zero}, answer["port"])


def _missing(place: Place, present: Iterable[_Hello], timeout_seconds: float) -> str:
    names = {hello.index: hello.who for hello in present}
    missing = ", ".join(str(index) for index in range(place.processes) if index not in names)
    return (
        f"{len(names)} of {place.processes} processes reached {place.coordinator} within "
        f"{timeout_seconds:g} s; missing: {missing}; present: "
        + "; ".join(names[index] for index in sorted(names))
    )


def _check_peer(peer: _Hello, zero: _Hello, present: Iterable[_Hello]) -> None:
    """Refuse a process that does not belong to this run.

    Raises:
      UsageError: names the difference from process 0, or the process with the same index.
    """
    if peer.processes != zero.processes:
        raise UsageError(
            f"Hosts.processes is {peer.processes} in {peer.who}, and {zero.processes} in {zero.who}"
        )
    for other in (zero, *present):
        if other.index == peer.index:
            raise UsageError(f"{peer.who} has the same Hosts.index as {other.who}")
    if peer.common_text != zero.common_text:
        lines = difflib.ndiff(zero.common_text.splitlines(), peer.common_text.splitlines())
        different = [line for line in lines if line[0] in "+-"]
        raise UsageError(
            f"{peer.who} was started with another configuration than {zero.who} "
            f"(- process 0, + process {peer.index}):"
            + "".join(f"\n  {line}" for line in different[:10])
        )


def _read_hello(connection: socket.socket) -> _Hello | None:
    """The first message of a connection; None if it is not from a process of a run."""
    connection.settimeout(5.0)
    try:
        # Nothing follows a hello before it is answered.
        message = json.loads(_receive_line(connection, at_once=1 << 16))
    except (OSError, ValueError):
        return None
    names = {field.name for field in dataclasses.fields(_Hello)}
    known = isinstance(message, dict) and message.keys() == names
    return _Hello(**message) if known else None


def _try_to_send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message; a dead receiver is noticed by the thread that reads from it."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive_line(connection: socket.socket, at_once: int) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        if not (data := connection.recv(at_once)):
            raise ConnectionError("the other end is gone")
        line += data
    return bytes(line)


def _is_gone(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _free_port() -> int:
    with socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True) as free:
        return free.getsockname()[1]
