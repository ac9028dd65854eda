"""GPUs that are not there. What compiles for them is skipped where XLA's GPU compiler is not.

`tools/check_gpu` makes an environment that has it, and runs this file.
"""

import pytest

from t5x_style.accounting import CHIPS, Topology, chip_of_device_kind
from t5x_style.compiling import CompileReport, compiled_report, described_devices, mesh_of
from t5x_style.compiling.report_text import report_text
from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.step.spec import StepSpec
from tests.training.runs import ARCHITECTURE

LENGTH, SEQUENCES = 128, 16


@pytest.fixture
def compiler():
    pytest.importorskip("jax_cuda13_plugin", reason="tools/check_gpu has XLA's GPU compiler")


def test_a_missing_compiler_is_named(monkeypatch):
    def missing(**_):
        raise NotImplementedError("topology not implemented for cuda")

    monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", missing)
    with pytest.raises(UsageError, match=r"tools/setup gpu\. The bytes, FLOPs and traffic"):
        described_devices(Topology(chip="h200", slice="1x8"))


def test_the_nodes_of_gpus_are_named_in_the_slice():
    with pytest.raises(UsageError, match=r"Topology\.slices = 2: .* as in '2x8'"):
        described_devices(Topology(chip="h200", slice="1x8", data=2, slices=2))


@pytest.mark.parametrize("chip", ["h100", "h200"])
def test_jax_takes_three_quarters_of_what_the_card_has(chip):
    # Vendors print round gigabytes, cards report some 6 % more.
    assert CHIPS[chip].usable_bytes == pytest.approx(0.75 * CHIPS[chip].hbm_bytes, rel=0.08)


@pytest.mark.parametrize("chip", ["h100", "h200"])
def test_two_nodes(chip, compiler):
    devices = described_devices(Topology(chip=chip, slice="2x4"))
    assert [device.process_index for device in devices] == [0] * 4 + [1] * 4
    assert chip_of_device_kind(devices[0].device_kind) == CHIPS[chip]


SPEC = StepSpec(
    architecture=ARCHITECTURE,
    optimizer=AdamW(Schedule(peak_learning_rate=1e-2, warmup_tokens=256)),
    plan=BatchPlan.from_settings(SEQUENCES, LENGTH, train_steps=10),
)


def report_of(topology: Topology) -> CompileReport:
    shape = SPEC.shape(SEQUENCES, LENGTH)
    return compiled_report(SPEC, shape, topology, mesh_of(topology))[0]


def test_a_step_for_eight_of_them(compiler):
    """Bytes, products and collectives are in XLA's program for GPUs, too; cycles are not."""
    topology = Topology(
        chip="h100", slice="1x8", data=2, fsdp=4, kernel="blockwise", remat="save_attention"
    )
    compiled = report_of(topology)
    report = compiled.to_json()
    assert report["hlo_flops"] == report["hardware_flops"]
    sizes = report["bytes_per_chip"]
    parameters = report["parameters"] * 4
    assert parameters / 4 < sizes["parameters"] < parameters / 3
    assert sizes["usable"] == CHIPS["h100"].usable_bytes
    assert report["fits"]
    kinds = {(entry["kind"], entry["axis"]) for entry in report["traffic"]}
    assert ("all-gather", "fsdp") in kinds
    assert report["estimates"] == {}
    text = report_text(compiled)
    assert "no time estimate: XLA prints no cycles for h100" in text
    assert "most expensive" not in text


@pytest.mark.parametrize("remat", ["none", "full", "save_attention", "save_dots"])
def test_a_step_with_attention_by_cudnn(remat, compiler):
    """It goes forward once more wherever anything is made again, which the account knows."""
    topology = Topology(chip="h100", slice="1x8", fsdp=8, kernel="cudnn", remat=remat)
    compiled = report_of(topology)
    report = compiled.to_json()
    forward, backward = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"
    layers = ARCHITECTURE.layers
    forwards = 1 if remat == "none" else 2
    assert report["kernel_calls"] == {forward: forwards * layers, backward: layers}
    assert report["library_calls"] == {}
    assert report["hlo_flops"] == pytest.approx(report["hardware_flops"], rel=1e-12)


def test_cudnn_is_for_gpus():
    topology = Topology(kernel="cudnn")
    with pytest.raises(UsageError, match="runs on NVIDIA GPUs alone, but the mesh has 'cpu'"):
        report_of(topology)
