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

from t5x_style.accounting import Topology
from t5x_style.compiling import compiled_report, mesh_of
from t5x_style.compiling.memory_use import check_state_is_donated
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
