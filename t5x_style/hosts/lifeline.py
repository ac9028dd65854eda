"""The open connections between the processes of a run: who was lost, and what was decided.

JAX aborts the others after minutes when a process dies, and does not name it. So the connections
over which the processes met stay open for the whole run. The kernel closes those of a dead process
at once, and keep-alive probes find a host that has vanished. A process that is stopped keeps its
connections, but sends no beat. A beat says what the main thread does, since that may hang while
another thread beats.
"""

import contextlib
import dataclasses
import queue
import select
import selectors
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any

from t5x_style.errors import (
    EXIT_AGAIN,
    EXIT_FAULT,
    EXIT_USAGE,
    Fault,
    NothingToSave,
    StartAgain,
    UsageError,
    exit_status,
)
from t5x_style.hosts.meeting import LINE_BYTES, Place, decoded, try_to_send
from t5x_style.hosts.watchdog import (
    Activity,
    activity_of_several,
    end_process,
    hang_reason,
    tell_hang,
    write_event,
)

# Of a decision of process 0: all evaluations so far are the longest.
MESSAGE_BYTES = 1 << 26
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


class _Peer:
    """The process at the other end of a connection.

    Attributes:
      who: the process, its host and its pid.
      buffer: the beginning of its next message.
      heard: time of the clock at which it last sent anything.
      activity: what its main thread did then, if it is watched.
      left: whether it has ended in order.
    """

    def __init__(self, who: str):
        self.who, self.buffer, self.heard = who, b"", 0.0
        self.activity: Activity | None = None
        self.left = False


class Lifeline:
    """The connections of one process: to process 0, or from process 0 to all others."""

    def __init__(self, place: Place, peers: Mapping[socket.socket, str], silent_seconds: float):
        """Takes over the connections that `rendezvous` made.

        Args:
          peers: {connection: the process at the other end}.
          silent_seconds: how long a process may give no sign of life.
        """
        self.place, self._silent_seconds = place, silent_seconds
        self._peers = {connection: _Peer(who) for connection, who in peers.items()}
        self._sending = threading.Lock()
        self._received: queue.SimpleQueue = queue.SimpleQueue()
        self._closing = threading.Event()
        self._lost_event = threading.Event()
        self._lost: Exception | None = None
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

    def lost_within(self, seconds: float) -> Exception | None:
        """The error with which this process ends, if another is lost by then; otherwise None."""
        return self._lost if self._lost_event.wait(seconds) else None

    def close(self, failure: BaseException | None = None) -> None:
        """Close the connections; a failure is sent to the others first."""
        self._closing.set()
        message: dict[str, Any] = {"kind": "left"}
        if failure is not None:
            own = isinstance(failure, UsageError | Fault | NothingToSave)
            text = str(failure) if own else f"{type(failure).__name__}: {failure}".rstrip(": ")
            reason = f"{self.place} ended: {text}"
            event = getattr(failure, "event", None)
            message = _failed(reason, exit_status(failure), grace=GRACE_SECONDS, event=event)
        self._send_all(message)
        if failure is not None and self.place.index == 0:
            # JAX aborts the others when process 0 is gone; they end within the grace.
            self._wait_for_ends(GRACE_SECONDS + 1.0)
        for connection in self._peers:
            connection.close()

    def _send_all(self, message: Mapping[str, Any]) -> None:
        with self._sending:
            for connection in self._peers:
                try_to_send(connection, message)

    def _send_now(self, message: Mapping[str, Any], seconds: float = 0.0) -> None:
        """Send to all who can take it; the main thread may wait in `_send_all` for who cannot.

        Args:
          seconds: how long to wait for the main thread.
        """
        if not self._sending.acquire(timeout=seconds):
            return
        try:
            poll = select.poll()
            connections = {connection.fileno(): connection for connection in self._peers}
            connections.pop(-1, None)  # closed
            for number in connections:
                poll.register(number, select.POLLOUT)
            for number, _ in poll.poll(0):
                try_to_send(connections[number], message)
        finally:
            self._sending.release()

    def _watch(self, selector: selectors.BaseSelector) -> None:
        """What this process's own thread does until the end: read, give signs of life, compare."""
        pause = self._silent_seconds / 60
        clock, next_beat, last = 0.0, 0.0, time.monotonic()
        while selector.get_map() and not self._closing.is_set():
            for key, _ in selector.select(timeout=pause):
                connection = key.data
                self._peers[connection].heard = clock
                for message in self._read(connection):
                    if message["kind"] == "left":
                        selector.unregister(connection)
                        self._peers[connection].left = True
                    elif message["kind"] == "failed":
                        self._end_process(message)
                        return
            # The time in which this process was stopped is no silence of the others.
            now = time.monotonic()
            clock += min(now - last, 5 * pause)
            last = now
            if clock >= next_beat:
                next_beat = clock + 5 * pause
                own = activity_of_several()
                values = None if own is None else dataclasses.asdict(own)
                self._send_now({"kind": "beat", "activity": values})
                failure = self._silence(clock) or self._hang(own)
                if failure is not None:
                    self._end_process(failure)
                    return

    def _silence(self, clock: float) -> dict[str, Any] | None:
        """The failure to send if a process gives no sign of life."""
        for peer in self._peers.values():
            if not peer.left and clock - peer.heard > self._silent_seconds:
                last = f"; it was {peer.activity}" if peer.activity else ""
                reason = f"{peer.who} gave no sign of life for {self._silent_seconds:g} s{last}"
                return _failed(reason, EXIT_AGAIN, hang=True)
        return None

    def _hang(self, own: Activity | None) -> dict[str, Any] | None:
        """The failure to send if every main thread is too long in its phase; for process 0."""
        found = {str(self.place): own}
        found |= {peer.who: peer.activity for peer in self._peers.values() if not peer.left}
        hanging = {who: activity for who, activity in found.items() if activity and activity.hangs}
        if self.place.index or len(hanging) < len(found):
            return None
        return _failed(hang_reason(hanging), EXIT_AGAIN, hang=True)

    def _read(self, connection: socket.socket) -> list[dict]:
        """What is to be done by the complete messages so far; a closed connection is a failure."""
        peer = self._peers[connection]
        try:
            data = connection.recv(1 << 20)
        except OSError:
            data = b""
        if not data:
            return [_failed(f"{peer.who} was lost", EXIT_AGAIN, event="lost")]
        *lines, peer.buffer = (peer.buffer + data).split(b"\n")
        messages = []
        try:
            if len(peer.buffer) > (MESSAGE_BYTES if self.place.index else LINE_BYTES):
                raise ValueError("no end")
            for message in map(decoded, lines):
                if message["kind"] == "beat":
                    peer.activity = _activity(message["activity"])
                elif message["kind"] == "value" and self.place.index:
                    self._received.put(message["value"])
                elif message["kind"] == "left":
                    messages.append(message)
                else:
                    messages.append(
                        {
                            "kind": "failed",
                            "reason": str(message["reason"]),
                            "status": int(message["status"]),
                            "grace": float(message["grace"]),
                            "hang": bool(message["hang"]),
                            "event": message["event"],
                            "found_here": False,
                        }
                    )
        except (ValueError, KeyError, TypeError):
            reason = f"{peer.who} sent what is no message of a run"
            messages.append(_failed(reason, EXIT_AGAIN, event="lost"))
        return messages

    def _end_process(self, message: Mapping[str, Any]) -> None:
        """Forward the failure and end this process, unless it ends by itself.

        The main thread may wait for a collective that never completes, so this thread ends it.
        """
        if self._closing.is_set():
            return
        kind = {EXIT_FAULT: Fault, EXIT_USAGE: UsageError}.get(message["status"], StartAgain)
        error = self._lost = kind(message["reason"])
        # Process 1 writes what it found itself: that process 0 is silent, or was lost.
        found_here = message["found_here"] and self.place.index <= 1
        if message["hang"]:
            # First of all: the main thread goes on, somehow, when the others are gone.
            tell_hang(error, write=found_here)
        elif message["event"] and (found_here or self.place.index == 0):
            write_event(message["event"], message["reason"])
        self._send_now(message, seconds=1.0)
        self._lost_event.set()
        if self._closing.wait(message["grace"]):
            return
        if message["hang"] and self.place.index == 0:
            # JAX aborts the others when process 0 is gone.
            self._wait_for_ends(GRACE_SECONDS)
        end_process(error)

    def _wait_for_ends(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for connection in self._peers:
            with contextlib.suppress(OSError):
                connection.settimeout(max(0.01, deadline - time.monotonic()))
                while connection.recv(1 << 20):
                    pass


def _activity(values: Mapping[str, Any] | None) -> Activity | None:
    """The activity in a beat.

    Raises:
      KeyError, TypeError, ValueError: it is none.
    """
    if values is None:
        return None
    seconds, limit = float(values["seconds"]), float(values["limit"])
    return Activity(str(values["phase"]), int(values["step"]), seconds, limit)


def _failed(
    reason: str, status: int, *, grace: float = 0.0, hang: bool = False, event: str | None = None
) -> dict[str, Any]:
    """The message that ends all processes, with one status and one last line.

    Args:
      grace: seconds in which the others may end by themselves.
      hang: whether to dump stacks first.
      event: its kind; None if there is none to write.
    """
    if not hang:
        reason += "; the run cannot continue without it"
    if status not in (EXIT_FAULT, EXIT_USAGE):
        reason += ": start all processes again"
    return {
        "kind": "failed",
        "reason": reason,
        "status": status,
        "grace": grace,
        "hang": hang,
        "event": event,
        "found_here": True,
    }
