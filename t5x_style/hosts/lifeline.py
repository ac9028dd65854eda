"""The line between the processes of a run: who came, what process 0 decided, who was lost.

JAX joins processes by itself, but of one that does not come it says only that time ran out, and
when one dies it aborts the others after minutes, without a word of which. So the processes first
meet here, over plain TCP at the coordinator's address, and the connections stay open as long as
the run: the kernel closes the one of a process that dies at once, and keep-alive probes find a host
that has vanished.
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
from collections.abc import Mapping
from typing import Any

from t5x_style.errors import EXIT_FAULT, Fault, UsageError

# A host that answers no probe for 10 + 4 x 5 s has vanished, and so has one that acknowledges
# nothing for as long.
KEEP_ALIVE = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 30_000,
}
# How long a process may take to end by itself once it is told that another has failed: where all
# fail of the same mistake, each says it in its own words.
GRACE_SECONDS = 3.0
RETRY_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a process stands in a run of several.

    Attributes:
      coordinator: HOST:PORT at which process 0 is met.
      processes: how many there are.
      index: which of them this is, from 0.
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


class Lifeline:
    """One process's end of the line; process 0 holds a connection to each of the others."""

    def __init__(self, place: Place, peers: Mapping[socket.socket, str], service_port: int):
        """Takes connections over that `meet` has made.

        Args:
          peers: {connection: who is at the other end}.
          service_port: of process 0's host, where JAX's own service is to listen.
        """
        self.place, self.service_port = place, service_port
        self._peers = dict(peers)
        self._buffers = dict.fromkeys(peers, b"")
        self._sending = threading.Lock()
        self._heard: queue.SimpleQueue = queue.SimpleQueue()
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

    def tell(self, value: Any) -> None:
        """Tell all other processes something that JSON can hold; for process 0."""
        self._send_all({"kind": "told", "value": value})

    def hear(self) -> Any:
        """The next that process 0 tells, waited for as long as process 0 lives."""
        return self._heard.get()

    def lost_within(self, seconds: float) -> str | None:
        """Who was lost, if anyone was or is within some seconds."""
        return self._lost if self._lost_event.wait(seconds) else None

    def close(self, failure: str | None = None) -> None:
        """Leave the line: done, or failed of something that the others are told."""
        self._closing.set()
        word: dict[str, Any] = {"kind": "left"}
        if failure is not None:
            reason = f"{self.place} ended: {failure}"
            word = {"kind": "failed", "reason": reason, "grace": GRACE_SECONDS}
        self._send_all(word)
        for connection in self._peers:
            connection.close()

    def _send_all(self, message: Mapping[str, Any], but: socket.socket | None = None) -> None:
        with self._sending:
            for connection in self._peers:
                if connection is not but:
                    _try_to_send(connection, message)

    def _watch(self, selector: selectors.BaseSelector) -> None:
        while selector.get_map() and not self._closing.is_set():
            for key, _ in selector.select(timeout=0.5):
                connection = key.data
                for message in self._read(connection):
                    if message["kind"] == "told":
                        self._heard.put(message["value"])
                        continue
                    selector.unregister(connection)
                    if message["kind"] != "left":
                        self._end(message["reason"], connection, message["grace"])
                        return

    def _read(self, connection: socket.socket) -> list[dict]:
        """The messages that are whole by now; the end of the connection is one that we write."""
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return [{"kind": "failed", "reason": f"{self._peers[connection]} was lost", "grace": 0}]
        *lines, self._buffers[connection] = (self._buffers[connection] + data).split(b"\n")
        return [json.loads(line) for line in lines]

    def _end(self, reason: str, source: socket.socket, grace: float) -> None:
        """Pass the news on and end this process, unless it is leaving by itself.

        The main thread may sit in a collective that will never come back, so it is not asked.
        """
        if self._closing.is_set():
            return
        self._send_all({"kind": "failed", "reason": reason, "grace": grace}, but=source)
        self._lost = reason
        self._lost_event.set()
        if self._closing.wait(grace):
            return
        sys.stdout.flush()
        print(f"error: {farewell(reason)}", file=sys.stderr, flush=True)
        os._exit(EXIT_FAULT)


def farewell(reason: str) -> str:
    """The last line of a process that ends because another did."""
    return f"{reason}; without it nothing goes on: start all processes again"


def meet(place: Place, timeout_seconds: float, same: str) -> Lifeline:
    """Wait until every process of the run has come.

    Args:
      timeout_seconds: how long.
      same: a text that has to be the same in all of them, such as their configuration.

    Raises:
      Fault: some did not come in time; names who came and who did not.
      UsageError: two have the same index, they do not agree on how many they are, or `same` is not
        the same.
    """
    deadline = time.monotonic() + timeout_seconds
    hello = {
        "index": place.index,
        "processes": place.processes,
        "who": str(place),
        "same": same,
    }
    if place.index == 0:
        return _gather(place, hello, deadline, timeout_seconds)
    return _report(place, hello, deadline, timeout_seconds)


def _gather(place: Place, hello: dict, deadline: float, timeout_seconds: float) -> Lifeline:
    """Process 0: let the others in until all are there."""
    port = place.address[1]
    try:
        server = socket.create_server(
            ("", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=place.processes
        )
    except OSError as error:
        raise Fault(f"{place} cannot listen at {place.coordinator}: {error}") from error
    there: dict[int, tuple[socket.socket, dict]] = {}
    came: list[socket.socket] = []
    with server:
        try:
            while len(there) < place.processes - 1:
                server.settimeout(max(0.01, deadline - time.monotonic()))
                connection, _ = server.accept()
                came.append(connection)
                other = _hello_of(connection)
                if other is None:
                    continue
                # One that died while it waited may have been started again.
                there = {i: each for i, each in there.items() if not _is_gone(each[0])}
                _refuse_stranger(hello, other, {0: hello, **{i: h for i, (_, h) in there.items()}})
                there[other["index"]] = (connection, other)
        except (TimeoutError, UsageError) as error:
            problem: Exception = error
            if isinstance(error, TimeoutError):
                names = {0: hello, **{index: other for index, (_, other) in there.items()}}
                problem = Fault(_missing(place, names, timeout_seconds))
            for connection in came:
                kind = "usage" if isinstance(problem, UsageError) else "fault"
                _try_to_send(connection, {"refused": str(problem), "kind": kind})
                connection.close()
            raise problem from None
    port = _free_port()
    for connection, _ in there.values():
        _try_to_send(connection, {"port": port})
    return Lifeline(place, {c: other["who"] for c, other in there.values()}, port)


def _report(place: Place, hello: dict, deadline: float, timeout_seconds: float) -> Lifeline:
    """Any other process: find process 0, and wait until it has all."""
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection(place.address, timeout=max(0.01, left))
            break
        except OSError as error:
            if left < RETRY_SECONDS:
                raise Fault(
                    f"{place} met nobody at {place.coordinator} within {timeout_seconds:g} s "
                    f"({error}): process 0 was not started, or is not there"
                ) from error
            time.sleep(RETRY_SECONDS)
    try:
        _try_to_send(connection, hello)
        # Process 0 may have begun to wait when this one had nearly given up.
        connection.settimeout(timeout_seconds + 10.0)
        # Byte by byte: the first words of the run may follow the answer, and are not for us.
        answer = json.loads(_receive_line(connection, at_once=1))
    except (OSError, ValueError) as error:
        raise Fault(
            f"{place} came to {place.coordinator}, and process 0 went away before all were there"
        ) from error
    if "refused" in answer:
        connection.close()
        raise (UsageError if answer["kind"] == "usage" else Fault)(answer["refused"])
    zero = f"process 0 of {place.processes} ({place.coordinator})"
    return Lifeline(place, {connection: zero}, answer["port"])


def _missing(place: Place, there: Mapping[int, dict], timeout_seconds: float) -> str:
    missing = ", ".join(str(index) for index in range(place.processes) if index not in there)
    names = "; ".join(there[index]["who"] for index in sorted(there))
    return (
        f"{len(there)} of {place.processes} processes came to {place.coordinator} within "
        f"{timeout_seconds:g} s: {missing} did not; there are {names}"
    )


def _refuse_stranger(hello: dict, other: dict, there: Mapping[int, dict]) -> None:
    """Raise a UsageError that says why a process that came is none of this run, if it is none."""
    if other["processes"] != hello["processes"]:
        raise UsageError(
            f"{other['who']} came to {hello['who']}: they do not agree on how many they are"
        )
    if other["index"] in there:
        raise UsageError(
            f"{other['who']} came, and there is one of this index: {there[other['index']]['who']}"
        )
    if other["same"] != hello["same"]:
        lines = difflib.ndiff(hello["same"].splitlines(), other["same"].splitlines())
        different = [line for line in lines if line[0] in "+-"]
        raise UsageError(
            f"{other['who']} was not started with what {hello['who']} was started with "
            "(- there, + here):" + "".join(f"\n  {line}" for line in different[:10])
        )


def _hello_of(connection: socket.socket) -> dict | None:
    """What a process that came says of itself; None if it is no process of ours, or died."""
    connection.settimeout(5.0)
    try:
        # Nothing follows a hello before it is answered.
        hello = json.loads(_receive_line(connection, at_once=1 << 16))
    except (OSError, ValueError):
        return None
    known = isinstance(hello, dict) and hello.keys() == {"index", "processes", "who", "same"}
    return hello if known else None


def _try_to_send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message; whether the other end still lives is for whoever reads from it to see."""
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
