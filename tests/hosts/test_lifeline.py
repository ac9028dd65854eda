"""The connections of processes that have met, here threads of one process with a lifeline each."""

import contextlib
import json
import queue
import socket

import pytest

from t5x_style.data.stores.token_store import StoreChanged
from t5x_style.errors import Fault, StartAgain
from t5x_style.hosts import lifeline
from t5x_style.hosts.lifeline import Lifeline
from t5x_style.hosts.meeting import Place
from tests.hosts.test_meeting import free_port, meet_all


def lifelines(coordinator: str, processes: list[int]) -> list[Lifeline]:
    met = meet_all(coordinator, processes)
    return [
        Lifeline(Place(coordinator, len(processes), index), peers, 60.0)
        for index, (peers, *_) in zip(processes, met, strict=True)
    ]


@pytest.fixture
def coordinator() -> str:
    return f"localhost:{free_port()}"


def test_all_receive_the_values_of_process_0_in_order(coordinator):
    lines = lifelines(coordinator, [2, 0, 1])
    try:
        # More than one packet holds, and right after the meeting.
        values = [{"value": list(range(200_000))}, None, "ß"]
        for value in values:
            lines[1].send(value)
        for line in (lines[0], lines[2]):
            assert [line.receive() for _ in values] == values
    finally:
        for line in lines:
            line.close()
    # Whoever leaves is not lost.
    assert [line.lost_within(0.2) for line in lines] == [None] * 3


def test_all_receive_the_failure_of_one_process(coordinator):
    lines = lifelines(coordinator, [0, 1, 2])
    lines[1].close(Fault("the disk is full"))
    errors = [lines[index].lost_within(2.0) for index in (0, 2)]
    # Within their grace: they end by themselves, and the watch does not end the process.
    for index in (0, 2):
        lines[index].close()
    assert [type(error) for error in errors] == [Fault, Fault]
    assert str(errors[0]) == str(errors[1])
    assert str(errors[0]).startswith("process 1 of 3 (")
    assert ") ended: the disk is full; the run cannot continue without it" in str(errors[0])


@pytest.mark.parametrize(
    "words",
    [
        b"no message\n",
        b"7\n",
        b'{"kind": "hello"}\n',
        b'{"kind": "failed", "reason": "mine"}\n',
        b'{"kind": "beat", "activity": {"phase": "step"}}\n',
        b'{"kind": "beat", "activity": {"phase": "", "step": "a", "seconds": 1, "limit": 1}}\n',
        b'{"kind": "failed", "reason": "", "status": "one", "grace": 0, "hang": false}\n',
        b'{"kind": "value", "value": "for process 0, which decides"}\n',
        b"[" * 200_000 + b"\n",
        b"x" * 3_000_000,  # and no end
    ],
    ids=lambda words: str(words[:20]),
)
def test_a_connection_that_sends_no_message_of_a_run_is_a_lost_process(monkeypatch, words):
    ended: queue.SimpleQueue = queue.SimpleQueue()
    monkeypatch.setattr(lifeline, "end_process", lambda error, **_: ended.put(error))
    with socket.create_server(("localhost", 0)) as server:
        here = socket.create_connection(server.getsockname(), timeout=1.0)
        there, _ = server.accept()
    line = Lifeline(Place("localhost:1", 2, 0), {here: "process 1"}, 60.0)
    with there:
        with contextlib.suppress(OSError):
            there.sendall(words)
        error = ended.get(timeout=20)
        assert type(error) is StartAgain
        assert str(error).startswith("process 1 sent what is no message of a run")
    line.close()


@pytest.mark.parametrize(
    ("failure", "kinds"),
    [
        (StoreChanged("law-train/tokens.bin has changed"), ["store_changed"]),
        (StartAgain("no room", event="save_failed"), ["save_failed"]),
        (Fault("the disk is full"), []),
        (OSError("the disk is full"), []),
    ],
)
def test_process_0_writes_the_event_of_the_failure_of_another(
    monkeypatch, coordinator, failure, kinds
):
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(lifeline, "write_event", lambda *event: written.append(event))
    lines = lifelines(coordinator, [0, 1, 2])
    lines[1].close(failure)
    errors = [lines[index].lost_within(2.0) for index in (0, 2)]
    for index in (0, 2):
        lines[index].close()
    assert [kind for kind, _ in written] == kinds  # once, by one of two
    assert {reason for _, reason in written} <= set(map(str, errors))


LOST = json.dumps(
    {"kind": "failed", "reason": "process 2 was lost", "status": 75, "grace": 0.0}
    | {"hang": False, "event": "lost"}
)


@pytest.mark.parametrize(
    ("index", "heard", "writes"),
    [
        (0, b"", True),
        (1, b"", True),  # process 0 was lost, which would have written
        (2, b"", False),
        (0, LOST.encode() + b"\n", True),  # found by another process
        (1, LOST.encode() + b"\n", False),  # process 0 has written it
    ],
)
def test_one_process_writes_the_event_of_a_lost_one(monkeypatch, index, heard, writes):
    ended: queue.SimpleQueue = queue.SimpleQueue()
    written: list[tuple[str, str]] = []
    monkeypatch.setattr(lifeline, "end_process", lambda error, **_: ended.put(error))
    monkeypatch.setattr(lifeline, "write_event", lambda *event: written.append(event))
    with socket.create_server(("localhost", 0)) as server:
        here = socket.create_connection(server.getsockname(), timeout=1.0)
        there, _ = server.accept()
    line = Lifeline(Place("localhost:1", 3, index), {here: "process 9"}, 60.0)
    there.sendall(heard)
    there.close()
    error = ended.get(timeout=20)
    line.close()
    assert type(error) is StartAgain
    assert ("process 2 was lost" if heard else "process 9 was lost") in str(error)
    assert written == ([("lost", str(error))] if writes else [])


def test_a_host_that_vanishes_is_noticed_after_half_a_minute():
    """Its connections stay open: probes after 10 s and 4 x 5 s find it, or 30 s of silence."""
    with socket.create_server(("localhost", 0)) as server:
        here = socket.create_connection(server.getsockname(), timeout=1.0)
        there, _ = server.accept()
    line = Lifeline(Place("localhost:1", 2, 0), {here: "process 1"}, 60.0)
    try:
        assert here.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert here.gettimeout() is None
        times = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT")
        found = [here.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in times]
        assert found == [10, 5, 4, 30_000]
    finally:
        line.close()
        there.close()


def test_a_process_that_ends_gives_the_others_three_seconds_for_their_own_error(coordinator):
    zero, one = lifelines(coordinator, [0, 1])
    zero.close()
    sent = []
    one._send_all = sent.append
    one.close(Fault("the disk is full"))
    assert [(message["kind"], message["grace"]) for message in sent] == [("failed", 3.0)]
