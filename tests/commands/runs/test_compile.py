"""`compile`: the train step for slices that are not there, by XLA's own TPU compiler."""

import dataclasses
import json
import types

import numpy as np
import pytest

from t5x_style.accounting import (
    CHIPS,
    Architecture,
    Topology,
    total_parameters,
    training_flops_per_token,
)
from t5x_style.commands.main import main
from t5x_style.compiling.estimates import StepEstimate
from t5x_style.compiling.memory_use import ChipMemory
from t5x_style.compiling.report import planned_report
from t5x_style.step import program

TOY = """
include 'gin_configs/runs/pretrain.gin'
include 'gin_configs/optimizers/adamw.gin'
Architecture.vocab_size = 1024
Architecture.layers = 2
Architecture.d_model = 256
Architecture.d_ff = 512
Architecture.heads = 4
TASK_FEATURE_LENGTHS = {'targets': 128}
BATCH_SIZE = 16
TRAIN_STEPS = 100
LEARNING_RATE = 1e-3
WARMUP_TOKENS = 1000
Topology.fsdp = 2
Topology.data = 2
Topology.kernel = 'plain'
Topology.remat = 'full'
"""
ARCHITECTURE = Architecture(vocab_size=1024, layers=2, d_model=256, d_ff=512, heads=4)


@pytest.fixture
def compiled(tmp_path, capsys):
    """Runs the verb on the toy: (exit status, what --json printed or None, standard error)."""
    path = tmp_path / "toy.gin"
    path.write_text(TOY)

    def run(*flags):
        status = main(["compile", f"--gin_file={path}", "--json", *flags])
        output = capsys.readouterr()
        return status, json.loads(output.out) if status == 0 else None, output.err

    return run


def flags_of(chip, shape, **topology):
    bound = {"chip": chip, "slice": shape, **topology}
    return [f"--gin.Topology.{name}={value}" for name, value in bound.items()]


@pytest.mark.parametrize(
    ("chip", "shape", "data"),
    [("v4", "2x2x1", 2), ("v5e", "2x2", 2), ("v5p", "2x2x1", 2), ("v6e", "2x2", 2),
     ("tpu7x", "2x2x1", 4)],
)  # fmt: skip
def test_a_step_for_each_chip(chip, shape, data, compiled):
    status, report, _ = compiled(*flags_of(chip, shape, data=data), "--dollars_per_chip_hour=2.5")
    assert status == 0
    assert (report["chips"], report["devices"]) == (4, 2 * data)
    assert report["parameters"] == total_parameters(ARCHITECTURE)
    sizes = report["bytes_per_chip"]
    # Matrices over fsdp = 2, norms whole: a little more than half of 4 bytes a parameter.
    on_device = sizes["parameters"] / (2 * data / 4)
    assert 2 * report["parameters"] < on_device < 2.05 * report["parameters"]
    assert report["fits"]
    assert sizes["peak"] < sizes["usable"]
    assert report["unsharded"] < 0.02
    # The compiler neither adds a product nor drops one: equal to the last digit.
    tokens = 16 * 128
    assert report["hardware_flops"] == tokens * training_flops_per_token(
        ARCHITECTURE, 128, "hardware", Topology(remat="full")
    )
    assert report["hlo_flops"] == report["hardware_flops"]
    assert report["unknown_loops"] == []
    # So small a step is mostly the compiler's own buffers.
    assert 0.5 < report["planned_bytes_per_chip"] / sizes["peak"] < 2
    # Of a chip whose clock is not known, nothing is estimated.
    assert sorted(report["estimates"]) == ([] if chip == "tpu7x" else ["flat", "own"])
    for estimate in report["estimates"].values():
        assert 0 < estimate["mfu_exposed"] < estimate["mfu_hidden"] < estimate["hfu_hidden"] < 1
        # Hardware FLOPs are those of the text: no kernel runs here.
        assert estimate["hfu_hidden"] / estimate["mfu_hidden"] == pytest.approx(
            report["hardware_flops"] / report["model_flops"]["causal"]
        )
        days = 100 * estimate["seconds_hidden"] / 86400
        assert estimate["days_hidden"] == pytest.approx(days)
        assert estimate["dollars_hidden"] == pytest.approx(days * 24 * 4 * 2.5)
    gathers = [row for row in report["traffic"] if row["kind"] == "all-gather"]
    assert {row["axis"] for row in gathers} == {"fsdp"}


@pytest.mark.parametrize(
    ("chip", "shape", "remat", "forward"),
    [
        ("v5e", "2x2", "full", 2),
        ("v5p", "2x2x1", "save_attention", 1),
        ("v5e", "2x2", "offload", 1),
    ],
)
def test_a_step_with_flash_kernels(chip, shape, remat, forward, compiled):
    """Two layers, each forward as often as the policy says, and back in two passes; with their
    products the program has as many FLOPs as the formula, to the last digit."""
    status, report, _ = compiled(
        *flags_of(chip, shape, kernel="'flash'", attention_block=128, remat=repr(remat)),
        "--gin.TASK_FEATURE_LENGTHS={'targets': 256}",
    )
    assert status == 0
    calls = report["kernel_calls"]
    assert {name.split("_")[2]: count for name, count in calls.items()} == {
        "fwd": 2 * forward,
        "dq": 2,
        "dkv": 2,
    }
    assert report["hlo_flops"] == report["hardware_flops"]
    assert report["hardware_flops"] == 16 * 256 * training_flops_per_token(
        ARCHITECTURE,
        256,
        "hardware",
        Topology(remat=remat, kernel="flash", attention_block=128),
    )


def test_what_is_for_train_alone_may_stand_there(compiled):
    status, report, _ = compiled("--gin.MODEL_DIR=nowhere", "--gin.LOG_PERIOD=7", "--dry_run")
    assert status == 2  # eight devices of this process, and a mesh of four
    status, report, _ = compiled(
        "--gin.MODEL_DIR=nowhere", "--gin.LOG_PERIOD=7", "--gin.Topology.data=4", "--dry_run"
    )
    assert status == 0
    assert report["devices"] == 8
    assert "bytes_per_chip" not in report


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.BATCHSIZE=4"], "did you mean 'BATCH_SIZE'"),
        (["--phase=2"], "--phase=2: the run has phases 1 to 1"),
        (flags_of("v5e", "4x4"), "whose product is 16"),
        ([*flags_of("v5e", "2x2", fsdp=1, data=4), "--gin.MICROBATCHES=8"], "the batch = 2"),
        (flags_of("v5e", "2x3"), "a v5e has no such slice"),
    ],
)
def test_refusals(flags, message, compiled):
    status, _, output = compiled(*flags)
    assert status == 2
    assert message in output


@pytest.mark.parametrize("keep", [False, True])
def test_programs_are_kept_where_it_is_asked(compiled, monkeypatch, keep):
    kept = []
    monkeypatch.setattr(program, "keep_programs_in", kept.append)
    flags = ["--keep_program=programs"] if keep else []
    status, _, errors = compiled("--gin.Topology.data=4", "--dry_run", *flags)
    assert status == 0, errors
    assert kept == (["programs"] if keep else [])


def test_a_flag_that_xla_does_not_have(compiled):
    flags = "--gin.Topology.compiler_flags={'xla_tpu_no_such': '1'}"
    status, _, output = compiled(*flags_of("v5e", "2x2"), flags)
    assert status == 2
    assert "this XLA has no option 'xla_tpu_no_such'" in output


def test_a_peak_above_what_a_chip_has_is_an_error_though_the_compiler_said_nothing(
    compiled, monkeypatch
):
    lean = dataclasses.replace(CHIPS["v5e"], usable_bytes=2**20)
    monkeypatch.setitem(CHIPS, "v5e", lean)
    status, _, output = compiled(*flags_of("v5e", "2x2"))
    assert status == 2
    assert "which has 0.00 GiB" in output
    assert "would save" in output
    assert "does NOT fit" in output  # the report is printed before


def test_what_would_make_it_fit(compiled):
    status, _, output = compiled(*flags_of("v5e", "2x2", data=1, fsdp=4), "--gin.BATCH_SIZE=131072")
    assert status == 2
    assert "which has 15.75 GiB" in output
    assert "would fit, by the planner's estimate: MICROBATCHES = " in output


@pytest.fixture
def made_up_search(monkeypatch):
    """A search of 7 minutes that finds two layouts, the second one slower."""
    from t5x_style.compiling import search as module

    def search(spec, shape, topology, minutes, report):
        assert minutes == 7
        devices = np.array([types.SimpleNamespace(device_kind="TPU v5e")] * 4)
        mesh = types.SimpleNamespace(size=4, devices=devices)
        trials = []
        for remat, seconds in (("save_dots", 1.0), ("full", 2.0)):
            layout = dataclasses.replace(topology, data=1, fsdp=4, remat=remat)
            memory = ChipMemory(0, 0, 0, 0, 0, 0, 0, peak=1000, usable=15 * 2**30)
            estimate = StepEstimate(module.ASSUMPTIONS, seconds, 0.0, {}, 1, 4, 1.0, 1.0, 1.0)
            planned = planned_report(spec, shape, layout, mesh)
            estimates = {module.ASSUMPTIONS: estimate}
            found = dataclasses.replace(planned, memory=memory, estimates=estimates)
            trials.append(module.Trial(layout, "", found))
            report(trials[-1])
        return trials

    monkeypatch.setattr(module, "search", search)


def test_a_search_prints_its_trials_and_the_fastest_as_a_gin_file(compiled, made_up_search):
    status, result, _ = compiled("--search", "--search_minutes=7")
    assert status == 0
    assert [trial["unbeaten"] for trial in result["trials"]] == [True, False]
    assert "Topology.fsdp = 4\n" in result["gin"]
    assert "Topology.remat = 'save_dots'\n" in result["gin"]
    assert [trial["seconds"] for trial in result["trials"]] == [1.0, 2.0]
    assert result["fastest"]["remat"] == "save_dots"


def test_a_search_writes_the_fastest_where_it_is_asked_to(compiled, made_up_search, tmp_path):
    path = tmp_path / "fast.gin"
    _, result, output = compiled("--search", "--search_minutes=7", f"--write={path}")
    assert path.read_text() == result["gin"]
    assert f"written: {path}" in output
    status, _, output = compiled("--search", "--search_minutes=7", "--write=fast.txt")
    assert (status, "--write=fast.txt: name a gin file" in output) == (2, True)
