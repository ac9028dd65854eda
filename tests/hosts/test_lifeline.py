"""The rendezvous of processes, here threads of one process with a lifeline each."""

import concurrent.futures
import json
import socket

import pytest

from t5x_style.errors import Fault, UsageError
from t5x_style.hosts.lifeline import Lifeline, Place, rendezvous


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def meet_all(coordinator: str, processes: list[int], **options) -> list:
    """The lifeline of each process, or the error that `rendezvous` raised in it."""
    options = {"count": len(processes), "seconds": 20.0, "same": {}, **options}

    def come(index: int):
        place = Place(coordinator, options["count"], index)
        try:
            return rendezvous(place, options["seconds"], options["same"].get(index, "alike"))
        except (Fault, UsageError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(come, processes))


@pytest.fixture
def coordinator() -> str:
    return f"localhost:{free_port()}"


def test_all_receive_the_values_of_process_0_in_order(coordinator):
    lines = meet_all(coordinator, [2, 0, 1])
    try:
        assert len({line.service_port for line in lines}) == 1
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
    lines = meet_all(coordinator, [0, 1, 2])
    lines[1].close("the disk is full")
    reasons = [lines[index].lost_within(2.0) for index in (0, 2)]
    # Within their grace: they end by themselves, and the watch does not end the process.
    for index in (0, 2):
        lines[index].close()
    assert reasons[0] == reasons[1]
    assert reasons[0].startswith("process 1 of 3 (")
    assert reasons[0].endswith(") ended: the disk is full")


def test_a_host_that_vanishes_is_noticed_after_half_a_minute():
    """Its connections stay open: probes after 10 s and 4 x 5 s find it, or 30 s of silence."""
    with socket.create_server(("localhost", 0)) as server:
        here = socket.create_connection(server.getsockname(), timeout=1.0)
        there, _ = server.accept()
    line = Lifeline(Place("localhost:1", 2, 0), {here: "process 1"}, 0)
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
    zero, one = meet_all(coordinator, [0, 1])
    zero.close()
    sent = []
    one._send_all = sent.append
    one.close("the disk is full")
    assert [(message["kind"], message["grace"]) for message in sent] == [("failed", 3.0)]


def test_who_is_missing_is_named_to_all_that_came(coordinator):
    errors = meet_all(coordinator, [0, 2], count=4, seconds=1.0)
    for error in errors:
        assert type(error) is Fault
        assert str(error).startswith(
            f"2 of 4 processes reached {coordinator} within 1 s; missing: 1, 3; present: "
            "process 0 of 4 ("
        )
        assert socket.gethostname() in str(error)


def test_nobody_at_the_coordinators_address(coordinator):
    (error,) = meet_all(coordinator, [1], count=2, seconds=0.5)
    assert type(error) is Fault
    assert f"could not connect to process 0 at {coordinator} within 0.5 s" in str(error)


def test_a_port_that_is_taken(coordinator):
    with socket.create_server(("", int(coordinator.split(":")[1]))):
        (error,) = meet_all(coordinator, [0], count=2)
    assert type(error) is Fault
    assert "cannot listen" in str(error)


def test_two_of_one_index_are_refused(coordinator):
    errors = meet_all(coordinator, [0, 1, 1], count=3)
    assert all(type(error) is UsageError for error in errors)
    assert "has the same Hosts.index as process 1 of 3 (" in str(errors[0])


def test_processes_that_were_started_with_something_else_are_refused(coordinator):
    same = {0: "a = 1\nb = 2", 1: "a = 1\nb = 3"}
    errors = meet_all(coordinator, [0, 1], same=same)
    for error in errors:
        assert type(error) is UsageError
        assert str(error).endswith("\n  - b = 2\n  + b = 3")


def test_strangers_and_the_dead_do_not_count(coordinator):
    """A port scanner, and a process that died while it waited and was started again."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        zero = pool.submit(meet_all, coordinator, [0], count=3)
        hello = {"index": 1, "processes": 3, "who": "the first one", "common_text": "alike"}
        request = b"GET / HTTP/1.0\r\n\r\n\n"
        for words in (request, b"{}\n", b"", json.dumps(hello).encode() + b"\n"):
            stranger = connect(coordinator)
            stranger.sendall(words)
            stranger.close()
        lines = [*meet_all(coordinator, [1, 2], count=3), *zero.result()]
    assert not [line for line in lines if isinstance(line, Exception)]
    for line in lines:
        line.close()


def connect(coordinator: str) -> socket.socket:
    host, port = coordinator.split(":")
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=10)
        except OSError:
            continue
