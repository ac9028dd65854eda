"""The index of a process among several, and the decisions that process 0 sends to them."""

import concurrent.futures
import os
import re
import signal
import time
import types

import jax
import pytest
from jax._src.clusters import cloud_tpu_cluster

from t5x_style.errors import EXIT_AGAIN, EXIT_PREEMPTED, Preempted, StartAgain, UsageError
from t5x_style.hosts import Hosts, from_writer, hosts, is_writer, preemption_requested
from t5x_style.hosts.meeting import Met, Place
from tests import warm
from tests.hosts.test_lifeline import lifelines
from tests.hosts.test_meeting import assert_met, free_port, meet_all

NAMES = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "JAX_COORDINATOR", "KUBERNETES_")


@pytest.fixture
def environment(monkeypatch):
    """An environment that names no processes, to be set."""
    for name in list(os.environ):
        if name.startswith(NAMES):
            monkeypatch.delenv(name)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_alone_where_nothing_names_more(environment):
    assert Hosts().place() is None
    assert Hosts(processes=1).place() is None


def test_by_hand():
    assert Hosts("[::1]:80", processes=4, index=3).place() == Place("[::1]:80", 4, 3)
    assert Place("[::1]:80", 4, 3).address == ("::1", 80)


def test_the_last_index_and_the_last_port_are_allowed():
    place = Hosts("a:65535", processes=2, index=1).place()
    assert (place, place.address) == (Place("a:65535", 2, 1), ("a", 65535))
    assert Hosts().timeout_seconds == 300


def test_a_request_to_leave_is_seen_until_the_run_ends():
    before = signal.getsignal(signal.SIGTERM)
    with preemption_requested() as leave:
        assert leave() is None
        signal.raise_signal(signal.SIGTERM)
        assert leave() == "SIGTERM"
        assert leave() == "SIGTERM"
    assert signal.getsignal(signal.SIGTERM) == before


SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def test_under_srun(environment):
    environment(**SLURM)
    assert Hosts().place() == Place("node007:61441", 4, 2)
    assert Hosts(processes=1).place() is None


def test_the_second_slice_of_two_on_gke(environment, monkeypatch):
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    environment(
        TPU_WORKER_HOSTNAMES="a,b,c",
        TPU_WORKER_ID="2",
        TPU_SKIP_MDS_QUERY="1",
        MEGASCALE_COORDINATOR_ADDRESS="localhost",
        MEGASCALE_NUM_SLICES="2",
        MEGASCALE_SLICE_ID="1",
    )
    assert Hosts().place() == Place("localhost:8482", 6, 5)


@pytest.mark.parametrize("names_one", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_alone_where_the_environment_names_one(environment, names_one):
    environment(**{names_one: "1"}, TPU_WORKER_HOSTNAMES="a")
    assert Hosts().place() is None


@pytest.mark.parametrize(
    "named",
    [
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "a,b"},
        {"MEGASCALE_NUM_SLICES": "2"},
        {"JAX_COORDINATOR_ADDRESS": "a:80"},
    ],
    ids=lambda named: next(iter(named)),
)
def test_never_alone_where_the_environment_names_several(environment, named):
    environment(**named)
    name, value = next(iter(named.items()))
    with pytest.raises(UsageError, match=rf"^{name} = {value} .* names several processes"):
        Hosts().place()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"index": 1}, "Hosts.index = 1 needs Hosts.processes, 2 or more"),
        ({"processes": 2, "index": 0}, "Hosts.processes = 2 needs Hosts.coordinator"),
        ({"processes": 2, "index": 2, "coordinator": "a:1"}, "index = 2 is not one of 0 to 1"),
        ({"processes": 2, "index": 0, "coordinator": "a"}, "'a' is not of the form HOST:PORT"),
        (
            {"processes": 2, "index": -1, "coordinator": "a:1"},
            "index = -1: must be 0 or more",
        ),
        ({"processes": 2, "index": 0, "coordinator": ":80"}, "':80' is not of the form HOST:PORT"),
        ({"processes": 2, "index": 0, "coordinator": "a:65536"}, "'a:65536' is not of the form"),
        ({"processes": 1, "index": 0}, "Hosts.index = 0 needs Hosts.processes, 2 or more"),
        ({"processes": 2, "coordinator": "a:1"}, "Hosts.processes = 2 needs Hosts.index"),
        ({"processes": 0}, "Hosts.processes = 0: must be 1 or more"),
        ({"timeout_seconds": 0}, "Hosts.timeout_seconds = 0: must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        Hosts(**fields)


def test_a_secret_that_can_be_guessed_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("T5X_STYLE_SECRET", "fifteen letters")
    alone = Hosts("localhost:1", processes=2, index=1, timeout_seconds=0.5)
    with pytest.raises(UsageError, match="has 15 characters: take 16 or more") as error:
        alone.join().__enter__()
    assert "fifteen" not in str(error.value)


def test_the_processes_take_the_secret_from_the_environment(monkeypatch):
    monkeypatch.setenv("T5X_STYLE_SECRET", "sixteen letters!")
    coordinator = f"localhost:{free_port()}"
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        zero = pool.submit(meet_all, coordinator, [0], count=2, secrets={0: "another, as long"})
        with pytest.raises(UsageError, match="have different secrets"):
            Hosts(coordinator, processes=2, index=1, timeout_seconds=9.0).join().__enter__()
        one = meet_all(coordinator, [1], count=2, secrets={1: "another, as long"})
        assert_met([*one, *zero.result()])


def test_a_process_that_does_not_come():
    alone = Hosts(f"localhost:{free_port()}", processes=2, index=0, timeout_seconds=0.5)
    with (
        pytest.raises(StartAgain, match=r"1 of 2 processes reached .* missing: 1;"),
        alone.join(),
    ):
        pass
    assert is_writer()


def test_a_preemption_leaves_the_processes_in_order_and_goes_on(monkeypatch):
    """The command ends with the status of a preemption: a scheduler starts it again."""
    calls, closed = [], []
    line = types.SimpleNamespace(
        place=Place("localhost:1", 2, 0),
        close=lambda failure: closed.append(failure),
    )
    monkeypatch.setattr(hosts, "rendezvous", lambda *_: Met({}, 1, None))
    monkeypatch.setattr(hosts, "Lifeline", lambda *_: line)
    for name in ("initialize", "shutdown"):
        monkeypatch.setattr(
            jax.distributed, name, lambda *_, called=name, **__: calls.append(called)
        )
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    with (
        pytest.raises(Preempted, match=r"^saved$"),
        Hosts("localhost:1", processes=2, index=0).join(),
    ):
        raise Preempted("saved")
    assert calls == ["initialize", "shutdown"]
    assert closed == [None]
    assert is_writer()


NEVER_ASKS = """
import sys, time
from t5x_style.hosts import Hosts
hosts = Hosts(coordinator=sys.argv[1], processes=2, index=int(sys.argv[2]))
with hosts.join():
    print("joined", file=sys.stderr, flush=True)
    time.sleep(60)
"""


def test_sigterm_ends_what_never_asks_for_it():
    coordinator = f"localhost:{free_port()}"
    processes = [warm.start(["-c", NEVER_ASKS, coordinator, index]) for index in range(2)]
    for process in processes:
        while "joined" not in process.output_so_far()[1]:
            assert process.poll() is None, "ended before it had joined"
            time.sleep(0.02)
    processes[1].send_signal(signal.SIGTERM)
    processes[1].communicate(timeout=60)
    assert processes[1].returncode == -signal.SIGTERM
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == EXIT_AGAIN == 75
    assert "process 1 of 2" in errors.splitlines()[-1]


FAILS = """
import sys
from t5x_style.commands import main
from t5x_style.errors import Fault, StartAgain, UsageError
from t5x_style.hosts import Hosts
coordinator, index, error = sys.argv[1:]

def run(arguments):
    with Hosts(coordinator=coordinator, processes=2, index=int(index)).join():
        if index == "1":
            raise eval(error)("the reason")
        import jax.numpy as jnp
        from jax.experimental import multihost_utils
        multihost_utils.broadcast_one_to_all(jnp.zeros(1))

main._run = run
sys.exit(main.main([]))
"""


@pytest.mark.parametrize(
    ("error", "status"), [("Fault", 1), ("UsageError", 2), ("StartAgain", 75), ("OSError", 1)]
)
def test_all_processes_end_with_the_status_of_the_one_that_failed(error, status):
    coordinator = f"localhost:{free_port()}"
    processes = [warm.start(["-c", FAILS, coordinator, index, error]) for index in range(2)]
    endings = [process.communicate(timeout=60)[1].splitlines() for process in processes]
    assert [process.returncode for process in processes] == [status, status], endings
    last = endings[0][-1]
    assert "process 1 of 2" in last
    assert last.endswith("start all processes again") == (status == 75)


LEAVES_EARLY = """
import sys, time
from t5x_style.commands import main
from t5x_style.hosts import Hosts
def work(arguments):
    with Hosts(coordinator=sys.argv[1], processes=2, index=int(sys.argv[2])).join():
        print("joined", file=sys.stderr, flush=True)
        time.sleep(60)
main._run = work
sys.exit(main.main(["train"]))
"""


def test_a_signal_before_the_steps_ends_all_and_the_others_may_start_again():
    """Nothing is to be saved, so nobody waits for the compiler of another."""
    coordinator = f"localhost:{free_port()}"
    processes = [warm.start(["-c", LEAVES_EARLY, coordinator, index]) for index in range(2)]
    for process in processes:
        while "joined" not in process.output_so_far()[1]:
            assert process.poll() is None, "ended before it had joined"
            time.sleep(0.02)
    processes[1].send_signal(signal.SIGHUP)
    _, errors = processes[1].communicate(timeout=60)
    said = "signal SIGHUP before the first step: nothing to save, start again"
    assert processes[1].returncode == EXIT_PREEMPTED
    assert errors.splitlines()[-1] == f"preempted: {said}"
    _, errors = processes[0].communicate(timeout=60)
    assert processes[0].returncode == EXIT_AGAIN
    assert errors.splitlines()[-1].startswith("error: process 1 of 2 (")
    assert f") ended: {said}; " in errors.splitlines()[-1]


def test_process_0_decides_for_all_and_is_the_only_one_asked(monkeypatch):
    zero, one = lifelines(f"localhost:{free_port()}", [0, 1])

    def refuse():
        raise UsageError("another run")

    def at(line, decide):
        monkeypatch.setattr(hosts, "_lifeline", line)
        return is_writer(), from_writer(decide)

    try:
        assert at(zero, lambda: [7, {"loss": 0.5}]) == (True, [7, {"loss": 0.5}])
        assert at(one, pytest.fail) == (False, [7, {"loss": 0.5}])
        for line in (zero, one):
            with pytest.raises(UsageError, match=r"^another run$"):
                at(line, refuse if line is zero else pytest.fail)
    finally:
        zero.close()
        one.close()
