"""The meeting of processes, here threads of one process; and whoever else comes to the port."""

import concurrent.futures
import contextlib
import errno
import json
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from t5x_style.errors import Fault, StartAgain, UsageError
from t5x_style.hosts import meeting
from t5x_style.hosts.meeting import Place, rendezvous

SECRET = "the secret of the job"


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def meet_all(coordinator: str, processes: list[int], **options) -> list:
    """What `rendezvous` returned in each process, or the error that it raised."""
    options = {"count": len(processes), "seconds": 20.0, "same": {}, "secrets": {}, **options}

    def come(index: int):
        place = Place(coordinator, options["count"], index)
        text, secret = options["same"].get(index, "alike"), options["secrets"].get(index, "")
        try:
            return rendezvous(place, options["seconds"], text, secret)
        except (Fault, UsageError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(come, processes))


@pytest.fixture
def coordinator() -> str:
    return f"localhost:{free_port()}"


def test_who_is_missing_is_named_to_all_that_came(coordinator):
    errors = meet_all(coordinator, [0, 2], count=4, seconds=1.0)
    for error in errors:
        assert type(error) is StartAgain
        assert str(error).startswith(
            f"2 of 4 processes reached {coordinator} within 1 s; missing: 1, 3; present: "
            "process 0 of 4 ("
        )
        assert socket.gethostname() in str(error)


def test_nobody_at_the_coordinators_address(coordinator):
    (error,) = meet_all(coordinator, [1], count=2, seconds=0.5)
    assert type(error) is StartAgain
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


def hello(index: object, processes: object = 3, nonce: object = "", proof: object = "") -> bytes:
    """What a process says first that was started alike, and knows no secret."""
    fields = {"index": index, "processes": processes, "who": "the first one"}
    message = {"hello": {**fields, "common_text": "alike"}, "nonce": nonce, "proof": proof}
    return json.dumps(message).encode() + b"\n"


def connect(coordinator: str) -> socket.socket:
    host, port = coordinator.rsplit(":", 1)
    deadline = time.monotonic() + 20.0
    while True:
        assert time.monotonic() < deadline, "nobody listens"
        try:
            return socket.create_connection((host, int(port)), timeout=10)
        except OSError:
            continue


@contextlib.contextmanager
def process_0(coordinator: str, **options) -> Iterator[Callable[..., list]]:
    """Process 0 of three waits in the block; the value brings the others, and gives all results."""
    options = {"count": 3, "seconds": 4.0, **options}
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        zero = pool.submit(meet_all, coordinator, [0], **options)
        yield lambda **own: [*meet_all(coordinator, [1, 2], **options | own), *zero.result()]


def assert_met(results: list) -> None:
    assert [error for error in results if isinstance(error, Exception)] == []
    for peers, *_ in results:
        for connection in peers:
            connection.close()


def test_strangers_and_the_dead_do_not_count(coordinator):
    """A port scanner, and a process that died while it waited and was started again."""
    with process_0(coordinator) as bring_others:
        for words in (b"GET / HTTP/1.0\r\n\r\n\n", b"{}\n", b"", hello(1)):
            stranger = connect(coordinator)
            stranger.sendall(words)
            stranger.close()
        assert_met(bring_others())


@pytest.mark.parametrize(
    "words",
    [
        hello(3),
        hello(-1),
        hello(0),
        hello("1"),
        hello([1]),
        hello(1, processes=None),
        hello(1, nonce=7),
        hello(1, proof="\u00df"),
        b"[" * 200_000 + b"\n",
        b"\xff\xfe\n",
        b"7\n",
    ],
)
def test_a_hello_that_makes_no_sense_is_a_strangers(coordinator, words):
    with process_0(coordinator) as bring_others, connect(coordinator) as stranger:
        stranger.sendall(words)
        assert_met(bring_others())


def test_silent_strangers_delay_nobody(coordinator):
    """Nor do they keep their places, when they are too many."""
    with process_0(coordinator) as bring_others, contextlib.ExitStack() as strangers:
        silent = [strangers.enter_context(connect(coordinator)) for _ in range(100)]
        assert_met(bring_others())
        for stranger in silent:
            stranger.settimeout(10)
            assert b"nonce" in stranger.recv(1000)
            assert stranger.recv(1000) == b""


def test_a_line_without_an_end_is_not_kept(coordinator):
    with process_0(coordinator) as bring_others, connect(coordinator) as stranger:
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 64 << 20:
                sent += stranger.send(b"x" * 65536)
        assert sent < 64 << 20
        assert_met(bring_others())


def test_a_process_of_the_job_is_known_by_its_secret(coordinator):
    """A stranger with the right index is refused, and the true one gets its place."""
    with process_0(coordinator, secrets=dict.fromkeys(range(3), SECRET)) as bring_others:
        for proof in ("", "00" * 32):
            with connect(coordinator) as stranger, stranger.makefile() as answers:
                assert json.loads(answers.readline())["secured"] is True
                stranger.sendall(hello(1, nonce="ab", proof=proof))
                answer = json.loads(answers.readline())
                assert answer["status"] == 2
                assert "have different secrets" in answer["refused"]
        assert_met(bring_others())


def test_a_proof_is_good_for_one_connection(coordinator):
    """What a stranger has overheard does not admit it."""
    port = free_port()
    with (
        socket.create_server(("localhost", port)) as false_zero,
        process_0(coordinator, secrets=dict.fromkeys(range(3), SECRET)) as bring_others,
    ):
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            secrets = {1: SECRET}
            true_one = pool.submit(meet_all, f"localhost:{port}", [1], count=3, secrets=secrets)
            overheard, _ = false_zero.accept()
            with overheard, overheard.makefile("rb") as said:
                overheard.sendall(b'{"nonce": "00", "secured": true}\n')
                words = said.readline()
                # It does not know the secret, and cannot admit.
                overheard.sendall(b'{"proof": "00"}\n')
            (error,) = true_one.result()
        assert type(error) is UsageError
        assert "does not know the secret" in str(error)
        assert SECRET.encode() not in words
        with connect(coordinator) as stranger, stranger.makefile() as answers:
            answers.readline()
            stranger.sendall(words)
            assert "have different secrets" in json.loads(answers.readline())["refused"]
        assert_met(bring_others())


@pytest.mark.parametrize("knowing", [[0, 2], [1]])
def test_who_was_started_without_the_secret_is_told_so(coordinator, knowing):
    secrets = dict.fromkeys(knowing, SECRET)
    zero, one = meet_all(coordinator, [0, 1], count=3, seconds=1.0, secrets=secrets)
    assert type(one) is UsageError
    assert "have different secrets, or one has none: T5X_STYLE_SECRET must be" in str(one)
    if 0 in knowing:
        assert "missing: 1, 2" in str(zero)
        assert str(zero).endswith("; refused for another secret: 1")
    else:
        assert str(zero) == str(one)
    assert SECRET not in f"{zero} {one}"


def test_only_the_coordinators_address_is_listened_at():
    coordinator = f"127.0.0.1:{free_port()}"
    with process_0(coordinator) as bring_others:
        connect(coordinator).close()
        # Another address of this machine.
        with pytest.raises(ConnectionRefusedError):
            connect_once("127.0.0.2", coordinator)
        assert_met(bring_others())


def connect_once(host: str, coordinator: str) -> None:
    socket.create_connection((host, int(coordinator.rpartition(":")[2])), timeout=10).close()


@pytest.mark.parametrize(
    ("host", "addresses", "listened_at"),
    [
        ("host-a", ["127.0.0.3", "127.0.0.4"], []),  # another address for the other hosts
        ("host-a", ["192.0.2.1"], []),  # of a gateway
        ("host-a", [], []),  # known to the others alone
        ("localhost", ["127.0.0.1", "192.0.2.1"], ["127.0.0.1"]),
        ("127.0.0.3", ["127.0.0.3"], ["127.0.0.3"]),
    ],
)
def test_a_name_that_others_may_know_otherwise_is_listened_at_everywhere(
    monkeypatch, host, addresses, listened_at
):
    def found(name, *_, **__):
        if not addresses:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, 0)) for one in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    assert list(meeting._addresses(host)) == listened_at


@pytest.mark.parametrize("everywhere", [False, True])
def test_a_kernel_without_ipv6_is_enough(monkeypatch, everywhere):
    class OnlyIPv4(socket.socket):
        def __init__(self, family=-1, *rest, **options):
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
            super().__init__(family, *rest, **options)

    coordinator = f"localhost:{free_port()}"
    monkeypatch.setattr(socket, "socket", OnlyIPv4)
    if everywhere:
        monkeypatch.setattr(meeting, "_addresses", lambda _: {})
    assert_met(meet_all(coordinator, [0, 1]))
