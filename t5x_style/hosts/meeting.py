"""How the processes of a run meet, before they are joined: who is present, and who is missing.

JAX joins processes by itself. It reports a missing process only as a timeout, and admits whoever
comes. So the processes first meet here, over plain TCP at the coordinator's address. Process 0
names who did not come, and refuses who was started with something else.

Whoever can reach the port can send anything. So lines, time and the number of strangers are
bounded, and a stranger delays nobody. With a secret of the job, both sides prove that they know it,
and it is never sent. Without one, process 0 admits whoever sends a free index, the right number of
processes and the same text. What is said later on an admitted connection is neither signed nor
encrypted.
"""

import contextlib
import dataclasses
import difflib
import hmac
import ipaddress
import json
import os
import secrets
import selectors
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from t5x_style.errors import EXIT_USAGE, Fault, StartAgain, UsageError, exit_status

# A hello has the text that must be the same in all processes: some ten kilobytes.
LINE_BYTES = 1 << 20
# Whoever has not said a whole hello: how many at once, and for how long. The first to come leaves
# first; a process of the run tries again.
STRANGERS = 64
STRANGER_SECONDS = 10.0
RETRY_SECONDS = 0.2
SECRET_VARIABLE = "T5X_STYLE_SECRET"


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


class Met(NamedTuple):
    """What a meeting leaves behind.

    Attributes:
      peers: {connection: the process at the other end}; of process 0 to all, of others to it.
      service_port: port of process 0's host for JAX's own service.
      bind_host: the host that this service need listen on; None for every interface.
    """

    peers: dict[socket.socket, str]
    service_port: int
    bind_host: str | None


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


def rendezvous(place: Place, timeout_seconds: float, common_text: str, secret: str = "") -> Met:
    """Wait until every process of the run is connected.

    Args:
      timeout_seconds: how long to wait.
      common_text: a text that must be the same in all processes, such as their configuration.
      secret: what only the processes of this job know; empty if there is none.

    Raises:
      StartAgain: a process is missing after that time; names the missing and the present ones.
      Fault: process 0 cannot listen at its address.
      UsageError: two processes have the same index, or their numbers of processes, common texts or
        secrets differ.
    """
    deadline = time.monotonic() + timeout_seconds
    hello = _Hello(place.index, place.processes, str(place), common_text)
    if place.index:
        return _connect(place, hello, secret, deadline, timeout_seconds)
    with _Door(place, hello, secret) as door:
        return door.wait_for_all(deadline, timeout_seconds)


class _Stranger:
    """A connection to process 0 that has not yet sent a whole hello."""

    def __init__(self, connection: socket.socket, secured: bool):
        self.connection, self.came = connection, time.monotonic()
        self.nonce = secrets.token_hex(16)
        self._received = bytearray()
        connection.settimeout(0.0)
        try_to_send(connection, {"nonce": self.nonce, "secured": secured})

    def line(self) -> bytes | None:
        """The first line, once it is whole.

        Raises:
          OSError: the line will not come, or is too long.
        """
        with contextlib.suppress(BlockingIOError):
            if not (data := self.connection.recv(1 << 16)):
                raise ConnectionError("the other end is gone")
            self._received += data
        if len(self._received) > LINE_BYTES:
            raise ConnectionError("the line is too long")
        return bytes(self._received) if self._received.endswith(b"\n") else None


class _Door(contextlib.ExitStack):
    """Process 0 while the processes meet: its open ports, and who has come."""

    def __init__(self, place: Place, hello: _Hello, secret: str):
        super().__init__()
        self._place, self._hello, self._secret = place, hello, secret
        self._present: dict[socket.socket, _Hello] = {}
        self._strangers: dict[socket.socket, _Stranger] = {}  # the first to come is first
        self._refused = 0
        self._selector = self.enter_context(selectors.DefaultSelector())
        self._addresses = _addresses(place.address[0])

    def wait_for_all(self, deadline: float, timeout_seconds: float) -> Met:
        """Raises as `rendezvous`, in all processes that have come."""
        try:
            backlog = self._place.processes + STRANGERS
            servers = _servers(self._addresses, self._place.address[1], backlog)
        except OSError as error:
            where = f"{self._place} cannot listen at {self._place.coordinator}"
            raise Fault(f"{where}: {error}") from error
        for server in servers:
            self.enter_context(server)
            self._selector.register(server, selectors.EVENT_READ, server)
        try:
            while len(self._present) < self._place.processes - 1:
                if (left := deadline - time.monotonic()) <= 0:
                    raise StartAgain(self._missing(timeout_seconds))
                self._dismiss_some()
                for key, _ in self._selector.select(min(left, 1.0)):
                    if isinstance(key.data, _Stranger):
                        self._listen_to(key.data)
                    else:
                        self._greet(key.data)
        except (StartAgain, UsageError) as error:
            for connection in (*self._present, *self._strangers):
                _refuse(connection, error)
            raise
        for connection in self._strangers:
            connection.close()
        port = _free_port(self._addresses)
        for connection in self._present:
            try_to_send(connection, {"port": port})
        peers = {connection: peer.who for connection, peer in self._present.items()}
        bind_host = None if socket.has_dualstack_ipv6() else "0.0.0.0"
        if self._addresses:
            bind_host = self._place.coordinator.rpartition(":")[0]
        return Met(peers, port, bind_host)

    def _greet(self, server: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it has left again
            connection, _ = server.accept()
            stranger = _Stranger(connection, bool(self._secret))
            self._strangers[connection] = stranger
            self._selector.register(connection, selectors.EVENT_READ, stranger)

    def _forget(self, stranger: _Stranger) -> None:
        self._selector.unregister(stranger.connection)
        del self._strangers[stranger.connection]

    def _dismiss_some(self) -> None:
        """Close the connections of strangers that are silent, or too many."""
        for stranger in list(self._strangers.values()):
            silent = time.monotonic() - stranger.came > STRANGER_SECONDS
            if silent or len(self._strangers) > STRANGERS:
                self._forget(stranger)
                stranger.connection.close()

    def _listen_to(self, stranger: _Stranger) -> None:
        """Read from a stranger; admit, refuse or dismiss it once its line is whole.

        Raises:
          UsageError: it is a process of this run, and was started with something else.
        """
        connection = stranger.connection
        try:
            if (line := stranger.line()) is None:
                return
            hello, nonce, proof = _read_hello(line)
        except (OSError, ValueError):
            self._forget(stranger)
            connection.close()
            return
        self._forget(stranger)
        connection.settimeout(5.0)
        nonces = (stranger.nonce, nonce)
        if not hmac.compare_digest(proof, _proof(self._secret, nonces, dataclasses.asdict(hello))):
            refusal = UsageError(
                f"{hello.who} and {self._hello.who} have different secrets, or one has none: "
                f"{SECRET_VARIABLE} must be the same for all processes"
            )
            if not self._secret:
                self._present[connection] = hello
                raise refusal
            # Anybody can claim to be a process. The true one still gets its place.
            self._refused += 1
            _refuse(connection, refusal)
            return
        # A process that died while it waited may have been started again.
        present = {c: other for c, other in self._present.items() if not _is_gone(c)}
        self._present = {**present, connection: hello}
        _check_peer(hello, self._hello, present.values())
        try_to_send(connection, {"proof": _proof(self._secret, nonces, "admitted")})

    def _missing(self, timeout_seconds: float) -> str:
        place = self._place
        names = {hello.index: hello.who for hello in (self._hello, *self._present.values())}
        missing = ", ".join(str(index) for index in range(place.processes) if index not in names)
        refused = f"; refused for another secret: {self._refused}" if self._refused else ""
        return (
            f"{len(names)} of {place.processes} processes reached {place.coordinator} within "
            f"{timeout_seconds:g} s; missing: {missing}; present: "
            + "; ".join(names[index] for index in sorted(names))
            + refused
        )


def _connect(
    place: Place, hello: _Hello, secret: str, deadline: float, timeout_seconds: float
) -> Met:
    """Any other process: connect to process 0, and wait until all are present."""
    while True:
        left = deadline - time.monotonic()
        try:
            connection = socket.create_connection(place.address, timeout=max(0.01, left))
            answer = _introduce(connection, hello, secret)
            break
        except (OSError, ValueError) as error:
            # Nobody listens yet, or process 0 had too many strangers.
            if left < RETRY_SECONDS:
                raise StartAgain(
                    f"{place} could not connect to process 0 at {place.coordinator} within "
                    f"{timeout_seconds:g} s ({error}): process 0 was not started, or is elsewhere"
                ) from error
            time.sleep(RETRY_SECONDS)
    try:
        if "refused" not in answer:
            # Process 0 may have started to wait when this process had nearly stopped.
            connection.settimeout(timeout_seconds + 10.0)
            answer = _receive(connection)
    except (OSError, ValueError) as error:
        raise StartAgain(
            f"{place} connected to {place.coordinator}, and process 0 ended before all were present"
        ) from error
    if "refused" in answer:
        connection.close()
        raise (UsageError if answer["status"] == EXIT_USAGE else StartAgain)(answer["refused"])
    zero = f"process 0 of {place.processes} ({place.coordinator})"
    return Met({connection: zero}, answer["port"], None)


def _introduce(connection: socket.socket, hello: _Hello, secret: str) -> dict[str, Any]:
    """Say who this process is; the answer of process 0, which is a refusal or a proof.

    Raises:
      OSError, ValueError: the other end left, or is no process 0.
      UsageError: it does not know the secret.
    """
    connection.settimeout(STRANGER_SECONDS)
    greeting, own = _receive(connection), secrets.token_hex(16)
    nonces = (str(greeting.get("nonce")), own)
    values = dataclasses.asdict(hello)
    proof = _proof(secret, nonces, values)
    try_to_send(connection, {"hello": values, "nonce": own, "proof": proof})
    answer = _receive(connection)
    expected = _proof(secret, nonces, "admitted")
    if "refused" not in answer and not hmac.compare_digest(str(answer.get("proof")), expected):
        raise UsageError(
            f"{hello.who} was admitted by a process that does not know the secret of the job: "
            f"{SECRET_VARIABLE} must be the same for all processes"
        )
    return answer


def _proof(secret: str, nonces: tuple[str, str], value: Any) -> str:
    """A digest that only who knows the secret can make; empty without a secret.

    Args:
      nonces: what each end drew for this connection alone, so that no proof can be used again.
      value: what is proved to come from a process of the job.
    """
    text = json.dumps([*nonces, value], sort_keys=True)
    return hmac.new(secret.encode(), text.encode(), "sha256").hexdigest() if secret else ""


def _read_hello(line: bytes) -> tuple[_Hello, str, str]:
    """The hello in a line, its nonce and its proof.

    Raises:
      ValueError: the line is not from a process of a run.
    """
    message = decoded(line)
    hello, nonce, proof = (message.get(name) for name in ("hello", "nonce", "proof"))
    fields = dataclasses.fields(_Hello)
    if not isinstance(hello, dict) or hello.keys() != {field.name for field in fields}:
        raise ValueError("not a hello")
    kinds = [type(hello[field.name]) for field in fields]
    if kinds != [int, int, str, str] or type(nonce) is not str or type(proof) is not str:
        raise ValueError("not a hello")
    if not 0 < hello["index"] < hello["processes"] or not proof.isascii():
        raise ValueError("not a hello")
    return _Hello(**hello), nonce, proof


def _addresses(host: str) -> dict[str, int]:
    """{address: family} that process 0 need listen at; empty for all interfaces.

    Those of the coordinator's name, if all of them are of this machine. A name that is a loopback
    address here may be another one for the other hosts.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return {}
    addresses = {str(address[0]): int(family) for family, _, _, _, address in found}
    here = {address: family for address, family in addresses.items() if _is_here(address, family)}
    if host == "localhost" or _is_loopback(host):
        return here  # a kernel without IPv6 has no ::1
    return {} if here != addresses or any(map(_is_loopback, here)) else here


def _is_here(address: str, family: int) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _servers(addresses: Mapping[str, int], port: int, backlog: int) -> list[socket.socket]:
    if addresses:
        return [
            socket.create_server((address, port), family=family, backlog=backlog)
            for address, family in addresses.items()
        ]
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    return [socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=both)]


def _free_port(addresses: Mapping[str, int]) -> int:
    first, *others = _servers(addresses, 0, 1)
    for server in others:
        server.close()
    with first:
        return first.getsockname()[1]


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


def _refuse(connection: socket.socket, error: Exception) -> None:
    try_to_send(connection, {"refused": str(error), "status": exit_status(error)})
    connection.close()


def try_to_send(connection: socket.socket, message: Mapping[str, Any]) -> None:
    """Send a message; a dead receiver is noticed by whoever reads from it."""
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    """One message; byte by byte, since the run's first messages may follow, for `Lifeline`.

    Raises:
      OSError: the other end is gone, or sends too much. ValueError: it sends no message.
    """
    line = bytearray()
    while not line.endswith(b"\n"):
        if len(line) > LINE_BYTES or not (data := connection.recv(1)):
            raise ConnectionError("the other end is gone")
        line += data
    return decoded(line)


def decoded(line: bytes | bytearray) -> dict[str, Any]:
    """The message in a line.

    Raises:
      ValueError: it is none.
    """
    try:
        message = json.loads(line)
    except RecursionError:
        message = None
    if not isinstance(message, dict):
        raise ValueError("not a message")
    return message


def _is_gone(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return connection.recv(1, socket.MSG_PEEK) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
