"""The search for a layout, with a made-up compiler: what it tries, what it skips, what it keeps."""

import dataclasses
import types

import numpy as np
import pytest

from t5x_style.accounting import Architecture, Topology
from t5x_style.compiling import search as layout_search
from t5x_style.compiling.estimates import StepEstimate
from t5x_style.compiling.memory_use import ChipMemory
from t5x_style.compiling.report import planned_report
from t5x_style.compiling.search import candidates, fastest, search, unbeaten
from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.step.spec import StepSpec

SPEC = StepSpec(
    architecture=Architecture(vocab_size=1024, layers=2, d_model=256, d_ff=512, heads=4),
    optimizer=AdamW(Schedule(peak_learning_rate=1e-3, warmup_tokens=1000)),
    plan=BatchPlan.from_settings(16, 128, train_steps=10),
)
SHAPE = SPEC.shape(16, 128)
MESH = {
    "size": 4,
    "devices": np.array([types.SimpleNamespace(device_kind="TPU v5e")] * 4),
}
TOPOLOGY = Topology(chip="v5e", slice="2x2", fsdp=4, compiler_flags={"good": "true", "bad": "true"})


@pytest.fixture
def slices():
    """The chips of a slice that is not there are described by libtpu."""
    pytest.importorskip("libtpu", reason="the TPU compiler comes with the extra 'tpu'")


@pytest.fixture
def compiler(monkeypatch, slices):
    """A compiler that takes ten minutes, and says (seconds, peak bytes) of a step by `judge`."""

    class Compiler:
        def __init__(self):
            self.seen, self.now = [], 0.0

        def judge(self, topology):
            slow = {"fsdp": 1.0}.get(topology.remat, 2.0) - 0.1 * topology.fsdp
            flags = topology.compiler_flags
            return slow + 0.5 * ("bad" in flags) - 0.25 * ("good" in flags), 1000 * topology.data

        def report(self, spec, shape, topology, mesh):
            self.now += 600
            self.seen.append(topology)
            judged = self.judge(topology)
            if judged is None:
                raise UsageError("the step needs 20 GiB of each device, which has 15.75 GiB")
            seconds, peak = judged
            report = planned_report(spec, shape, topology, types.SimpleNamespace(**MESH))
            memory = ChipMemory(0, 0, 0, 0, 0, 0, 0, peak=peak, usable=15 * 2**30)
            # At these FLOPs and this peak the causal MFU is the inverse of the seconds.
            estimate = StepEstimate("own", seconds, 0.0, {"fsdp": 0.2}, 1, 4, 1.0, 1.0, 1.0)
            return dataclasses.replace(report, memory=memory, estimates={"own": estimate}), ""

    made = Compiler()
    monkeypatch.setattr(layout_search, "compiled_report", made.report)
    monkeypatch.setattr(layout_search, "time", types.SimpleNamespace(monotonic=lambda: made.now))
    return made


def test_every_mesh_and_policy_then_fewer_flags(compiler):
    reported = []
    trials = search(SPEC, SHAPE, TOPOLOGY, 1e6, reported.append)
    assert reported == trials
    assert [trial.topology for trial in trials] == compiler.seen
    planned = [layout for layout, _ in candidates(SHAPE, TOPOLOGY)]
    assert compiler.seen[: len(planned)] == planned
    assert {layout.data * layout.fsdp * layout.tensor for layout in planned} == {4}
    assert len({(layout.mesh_shape["fsdp"], layout.remat) for layout in planned}) > 6
    best = fastest(trials)
    assert best.change == "without bad"
    assert best.topology.compiler_flags == {"good": "true"}
    # Half of what can hide is hidden.
    assert best.seconds == pytest.approx(2.0 - 0.4 - 0.25 + 0.1)
    assert best.topology.fsdp == 4
    changes = [trial.change for trial in trials if trial.change]
    assert sorted(changes) == ["without bad", "without flags", "without good"]


def test_the_time_is_kept(compiler):
    # A quarter of it is for flags: six layouts of ten minutes in 45, and what is begun is ended.
    trials = search(SPEC, SHAPE, TOPOLOGY, 60, lambda trial: None)
    assert [bool(trial.change) for trial in trials] == [False] * 5 + [True] * 2
    compiler.now = 0.0
    assert len(search(SPEC, SHAPE, TOPOLOGY, 0, lambda trial: None)) == 1


def test_what_takes_more_than_a_refused_layout_of_the_mesh_is_not_tried(compiler, monkeypatch):
    compiler.judge = lambda topology: None if topology.fsdp == 4 else (1.0, 1)
    leanest_first = sorted(candidates(SHAPE, TOPOLOGY), key=lambda candidate: candidate[1])
    monkeypatch.setattr(layout_search, "candidates", lambda *_: leanest_first)
    trials = search(SPEC, SHAPE, TOPOLOGY, 1e6, lambda trial: None)
    (refused,) = (trial for trial in trials if trial.refusal is not None)
    assert (refused.topology.fsdp, refused.topology.remat) == (4, "full")
    assert sum(layout.fsdp == 4 for layout, _ in leanest_first) > 1
    assert fastest(trials).topology.fsdp != 4


def test_none_that_fits_is_an_error(compiler):
    compiler.judge = lambda topology: None
    with pytest.raises(UsageError, match=r"none of \d+ layouts fits. .* the step needs 20"):
        search(SPEC, SHAPE, TOPOLOGY, 1e6, lambda trial: None)


def test_what_is_compiled_and_does_not_fit_is_never_the_fastest(compiler):
    compiler.judge = lambda topology: (1.0, 16 * 2**30) if topology.fsdp == 4 else (2.0, 1)
    trials = search(SPEC, SHAPE, TOPOLOGY, 1e6, lambda trial: None)
    assert fastest(trials).topology.fsdp != 4
    assert all(trial.topology.fsdp != 4 for trial in unbeaten(trials))
    compiler.judge = lambda topology: (1.0, 16 * 2**30)
    with pytest.raises(
        UsageError, match=r"fits. Refusal of the last: the step needs 16.00 GiB of each device"
    ):
        search(SPEC, SHAPE, TOPOLOGY, 1e6, lambda trial: None)


def test_the_planner_is_asked_about_the_very_topology(monkeypatch):
    asked = []

    def fitting(shape, topology, row, chips):
        asked.append((shape, topology, row.name, chips))
        return []

    monkeypatch.setattr(layout_search, "fitting_meshes", fitting)
    topology = dataclasses.replace(
        TOPOLOGY,
        kernel="flash",
        attention_block=256,
        loss_vocab_chunks=4,
        shard_optimizer_over_data=True,
    )
    shape = dataclasses.replace(SHAPE, compute_dtype="float32")
    assert not list(candidates(shape, topology))
    assert asked == [(shape, topology, "v5e", 4)]


def test_the_unbeaten_are_a_front(compiler):
    points = [(1.0, 9), (2.0, 5), (3.0, 5), (4.0, 1), (4.5, 2), (1.0, 9)]
    compiler.judge = lambda topology: points[len(compiler.seen) - 1]
    layouts = [layout for layout, _ in candidates(SHAPE, TOPOLOGY)]
    trials = [layout_search._compiled(SPEC, SHAPE, layout, "") for layout in layouts[: len(points)]]
    assert [trials.index(trial) for trial in unbeaten(trials)] == [0, 1, 3, 5]


def test_a_step_longer_than_the_position_table_is_refused():
    learned = dataclasses.replace(SPEC.architecture, positions="learned", max_length=127)
    with pytest.raises(UsageError, match=r"max_length = 127 is shorter than .* = 128"):
        dataclasses.replace(SPEC, architecture=learned)


@pytest.mark.parametrize(
    ("fields", "reported"),
    [
        (
            {"chip": "tpu7x", "slice": "2x2x1", "fsdp": 8},
            "only v4, v5e, v5p, v6e have estimates",
        ),
        ({"slice": None}, "Topology.slice = None: a v5e has no such slice"),
    ],
)
def test_what_cannot_be_searched(fields, reported, slices):
    with pytest.raises(UsageError, match=reported):
        search(SPEC, SHAPE, dataclasses.replace(TOPOLOGY, **fields), 1, lambda trial: None)
