"""The step that `compile` reports on is the one that a run compiles, to the last instruction."""

import dataclasses
import os
import pathlib
import types

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from t5x_style.accounting import Architecture, StepShape, Topology
from t5x_style.compiling import compiled_report, mesh_of
from t5x_style.compiling.hlo import Buffer, Collective, Operation, Program
from t5x_style.compiling.memory_use import ChipMemory, check_state_is_donated
from t5x_style.compiling.report import (
    CompileReport,
    Traffic,
    attention_work,
    program_accounts,
    refusal_of,
)
from t5x_style.compiling.report_text import report_text
from t5x_style.errors import Fault
from t5x_style.partitioning import make_mesh
from t5x_style.training.session import open_session
from tests.training.runs import ARCHITECTURE, EOS, make_run


def kept_steps() -> set[str]:
    """The train steps in JAX's cache, by their keys: hashes of the whole program among others."""
    folder = pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"])
    return {path.name for path in folder.glob("jit_step-*") if "atime" not in path.name}


def test_a_run_finds_the_step_that_compile_kept(tmp_path):
    # Of a shape that no other test compiles.
    architecture = dataclasses.replace(ARCHITECTURE, d_ff=208)
    topology = Topology(data=2, fsdp=4, remat="full")
    run = make_run(tmp_path, topology=topology, architecture=architecture)
    spec = dataclasses.replace(run.spec, sources=len(run.reader.names), eos_id=EOS)
    (shape,) = spec.shapes
    before = kept_steps()
    compiled, text = compiled_report(spec, shape, topology, mesh_of(topology))
    report = compiled.to_json()
    kept = kept_steps()
    assert len(kept - before) == 1
    open_session(run).close()
    assert kept_steps() == kept
    # A CPU's products are in the text as well; its chip is in no table.
    assert report["hlo_flops"] == report["hardware_flops"]
    assert report["estimates"] == {}
    assert report["fits"] is None
    # What a library multiplies is in no sum, and the report has a line about it.
    assert report["library_calls"] == {}
    called = report_text(
        dataclasses.replace(
            compiled,
            accounts=dataclasses.replace(compiled.accounts, library_calls={"__cublas$gemm": 2}),
        )
    )
    assert "NOT in these FLOPs: __cublas$gemm x 2" in called
    assert text.startswith("HloModule jit_step")
    # The numbers that only a kept program needs are in it.
    other = dataclasses.replace(spec, sources=5)
    compiled_report(other, shape, topology, mesh_of(topology))
    assert len(kept_steps() - kept) == 1


def test_a_state_that_is_not_donated_is_a_fault():
    mesh = make_mesh(Topology(fsdp=8))
    split, whole = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P())
    state = {"w": jax.ShapeDtypeStruct((64,), np.float32, sharding=split)}
    program = types.SimpleNamespace(state=state)

    def compiled(comes_out, **options):
        step = jax.jit(
            lambda state: ({"w": state["w"] + 1}, 0),
            out_shardings=({"w": comes_out}, whole),
            **options,
        )
        return step.lower(state).compile()

    check_state_is_donated(program, compiled(split, donate_argnums=0))
    with pytest.raises(Fault, match=r"the step takes w as .* and returns it as "):
        check_state_is_donated(program, compiled(whole))
    with pytest.raises(Fault, match="writes 0 bytes of its state in place, but the state has 32"):
        check_state_is_donated(program, compiled(split))


def gather(axis: str, wire_bytes: int, count: int, overlapped: bool | None) -> Collective:
    return Collective("all-gather", axis, 0, wire_bytes, (0, 1), count, overlapped, 0, "")


PROGRAM = Program(
    matmul_flops=1000,
    kernels=[],
    library_calls={},
    collectives=[
        gather("data", 30, 1, None),
        gather("fsdp", 10, 3, True),
        gather("fsdp", 10, 1, False),
        gather("tensor", 5, 1, None),
        gather("tensor", 5, 2, True),
    ],
    operations=[Operation(f"fusion.{n}", "matmul", 100 - n, 1, "") for n in range(12)],
    largest_buffers=[Buffer(100 - n, 0, "f32[1]", 1, "") for n in range(5)],
    unknown_loops=(),
)
SHAPE = StepShape(Architecture(1024, 2, 64, 128, 4, positions="alibi"), 16, 512)


def test_traffic_is_summed_by_kind_and_axis():
    accounts = program_accounts(PROGRAM, None, 3800.0, 4)
    assert accounts.traffic == [
        Traffic("all-gather", "fsdp", 2, 4, 40, 0.75),
        Traffic("all-gather", "data", 2, 1, 30, None),
        # What is known to overlap is a lower bound.
        Traffic("all-gather", "tensor", 2, 3, 15, 10 / 15),
    ]
    # Of all four devices, against the formula.
    assert accounts.hlo_flops == 4000
    assert accounts.hlo_flops_error == pytest.approx(4000 / 3800 - 1)
    assert [row.name for row in accounts.expensive] == [f"fusion.{n}" for n in range(10)]
    assert [row.bytes for row in accounts.largest_buffers] == [100, 99, 98]


def compiled(peak: int, usable: int | None, **changes) -> CompileReport:
    """The report on a step of two devices a chip."""
    report = CompileReport(
        shape=SHAPE,
        topology=Topology(data=4),
        parameters=100_000,
        devices=4,
        chips=2,
        run_tokens=10**9,
        model_flops={"6nd": 1e12, "full": 2e12, "causal": 3e12},
        hardware_flops=4000.0,
        planned_bytes_per_chip=15 * 2**30,
        memory=ChipMemory(0, 0, 0, 0, 0, 0, 0, peak=peak, usable=usable),
        accounts=program_accounts(PROGRAM, None, 4000.0, 4),
    )
    return dataclasses.replace(report, **changes)


def test_a_step_fits_up_to_the_last_byte():
    most = 16 * 2**30
    assert compiled(most, most).memory.fits is True
    assert compiled(most + 1, most).memory.fits is False
    assert compiled(most, None).memory.fits is None
    assert refusal_of(compiled(most, most)) is None
    assert refusal_of(compiled(most, None)) is None
    assert refusal_of(compiled(0, most, memory=None)) is None
    # A device has half of its chip.
    first, *advice = refusal_of(compiled(20 * 2**30, most)).splitlines()
    assert first == "the step needs 10.00 GiB of each device, which has 8.00 GiB"
    assert advice


def test_the_text_says_how_far_program_and_formula_are_apart():
    def line(hardware_flops):
        accounts = program_accounts(PROGRAM, None, hardware_flops, 4)
        text = report_text(compiled(1, None, accounts=accounts))
        (found,) = [line for line in text.splitlines() if line.startswith("matrix products")]
        return found.partition("4000 FLOPs, ")[2]

    assert line(4000.0) == "equal to the formula"
    assert line(4000 / 1.004) == "+0.400% of the formula"
    wrong = ": the program multiplies more or less than it should"
    assert line(4000 / 1.006) == "+0.600% of the formula" + wrong
    assert line(4000 / 0.994) == "-0.600% of the formula" + wrong


def test_the_tables_of_a_report():
    lines = report_text(compiled(16 * 2**30, 16 * 2**30)).splitlines()
    first = lines[: lines.index("")]
    rows = {line.split("  ")[0].strip(): " ".join(line.split()) for line in first}
    assert rows["parameters"] == "parameters 100,000"
    assert rows["mesh"] == "mesh data=4"
    assert rows["target"] == "target 4 devices"
    assert "6 N D 1e+12, full 2e+12, causal 3e+12, hardware 4000" in rows["FLOPs per step"]
    rows = {line.split("  ")[0].strip(): " ".join(line.split()) for line in lines}
    assert rows["peak"] == "peak 16.000 fits"
    assert rows["planned"] == "planned 15.000 the planner's estimate, -6% against the peak"
    assert [row for row in map(str.split, lines) if row[:1] == ["all-gather"]] == [
        ["all-gather", "fsdp", "2", "4", "0.000", "75%"],
        ["all-gather", "data", "2", "1", "0.000", "unknown"],
        ["all-gather", "tensor", "2", "3", "0.000", "67%"],
    ]
    too_large = report_text(compiled(17 * 2**30, 16 * 2**30))
    assert "does NOT fit" in too_large
    # Before it is compiled there is the first table alone.
    planned = compiled(1, None, memory=None, accounts=None)
    assert report_text(planned).splitlines() == first
    assert set(compiled(1, None).to_json()) > set(planned.to_json())
    flash = Topology(kernel="flash", attention_block=128)
    assert "attention flash in tiles of 128, remat" in report_text(
        compiled(1, None, topology=flash)
    )
    named = compiled(1, None, topology=Topology(chip="h100", slice="1x4", data=4))
    assert "h100:1x4, 2 chips, 4 devices" in report_text(named)
    assert "no time estimate: XLA prints no cycles for h100." in report_text(named)


def test_the_work_of_a_kernels_call():
    """16 x 512 tokens of 4 heads, in 2 microbatches on 4 devices; ALiBi has six more features."""
    topology = Topology(data=4, microbatches=2, kernel="flash", attention_block=128)
    work = attention_work(SHAPE, topology)
    assert (work.rows, work.block) == (16 * 512 * 4 / 8, 128)
    # Whole tiles up to the diagonal, and the keys that the mask admits.
    assert (work.keys_touched, work.keys_seen) == ((512 + 128) / 2, (512 + 1) / 2)
    assert (work.head_dim, work.features, work.causal) == (16, 22, True)
    for field in ({"window": 64}, {"attention_softcap": 30.0}):
        other = StepShape(Architecture(1024, 2, 64, 128, 4, **field), 16, 512)
        assert not attention_work(other, topology).causal
    rope = StepShape(Architecture(1024, 2, 64, 128, 4), 16, 512)
    cudnn = attention_work(rope, dataclasses.replace(topology, kernel="cudnn"))
    assert (cudnn.keys_touched, cudnn.features, cudnn.block) == ((512 + 1) / 2, 16, 0)
    assert attention_work(SHAPE, dataclasses.replace(topology, kernel="plain")) is None
