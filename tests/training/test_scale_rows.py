"""Every row of `tools/bench_scale`, shrunk: on 8 devices the losses of one.

A row's own gin files and flags say how its step is laid out: the kernel, the remat policy, passes,
the loss by words, what is split over which axes. On the 8 devices all of that stays; only sizes are
changed, by more flags of the same kind. The one device has a layout that leaves nothing to get
wrong: attention by the formula, nothing computed twice, one pass.
"""

import contextlib
import functools
import os
import pathlib
import shlex
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

from t5x_style import compiling, kernels
from t5x_style.accounting import MESH_AXES
from t5x_style.accounting.recompute import KERNEL_RECOMPUTES
from t5x_style.commands.main import main
from t5x_style.kernels import flash_attention
from t5x_style.models import REMAT_POLICIES
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.model_state import fresh_state
from t5x_style.step.program import step_program
from t5x_style.step.step import NO_LIMITS

ROOT = pathlib.Path(__file__).parents[2]
DEVICES = 8
STEPS = 3
# Between them they show every choice that any row makes, but for two remat policies, which
# tests/models/test_remat.py holds against no remat. `tools/bench_scale --shrunk` sets the variable
# and tries all ten rows.
IN_THE_SUITE = ["bloomberggpt-v5e", "llama-8b-v6e", "llama-8b-131072-v5p"]
SHOWN_ELSEWHERE = {("remat", "save_attention"), ("remat", "save_dots")}
EVERY_ROW = "T5X_STYLE_EVERY_ROW"


@functools.cache
def rows() -> dict[str, list[str]]:
    """Row to its flags of `compile`."""
    output = subprocess.run(
        [ROOT / "tools" / "bench_scale", "--commands"],
        env=os.environ | {"T5X_STYLE_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    commands = dict(line.split(": t5x-style compile --json ") for line in output.splitlines())
    return {row: shlex.split(flags) for row, flags in commands.items()}


def resolved(flags):
    """What `compile` makes of flags before it asks for devices: (StepSpec, StepShape, Topology)."""
    found = []

    def capture(spec, shape, topology, mesh, **_):
        found.append((spec, shape, topology))
        return types.SimpleNamespace(memory=None, to_json=dict), ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiling, "mesh_of", lambda topology: None)
        patch.setattr(compiling, "compiled_report", capture)
        patch.setattr("t5x_style.compiling.report_text.report_text", lambda report: "")
        with contextlib.redirect_stdout(None):
            assert main(["compile", *flags]) == 0
    return found[0]


def small_mesh(topology) -> dict[str, int]:
    """8 devices over the axes that a row has: 2 along each, and what is left along the longest."""
    axes = sorted(
        (axis for axis in MESH_AXES if getattr(topology, axis) > 1),
        key=lambda axis: getattr(topology, axis),
    )
    sizes = dict.fromkeys(axes, 2)
    sizes[axes[-1]] = DEVICES // 2 ** (len(axes) - 1)
    return sizes


def gin_flags(bound) -> list[str]:
    return [f"--gin.{name}={value}" for name, value in bound.items()]


def shrinking(spec, shape, topology) -> dict[str, object]:
    """Bindings that leave a row's sizes their ratios: an eighth of the heads and of their size, so
    a 64th of what they make together, and of the other widths."""
    a, mesh = spec.architecture, small_mesh(topology)
    # The kernel's tiles are of 128 tokens, and each device of a sequence has two pieces of it.
    pieces = mesh.get("sequence", 1)
    length = 128 * (2 * pieces if pieces > 1 else 1)
    sequences = topology.microbatches * mesh.get("data", 1) * mesh.get("fsdp", 1)
    sizes = {
        "Architecture.layers": 2,
        "Architecture.d_model": a.d_model // 64,
        "Architecture.d_ff": a.d_ff // 64,
        "Architecture.heads": a.heads // 8,
        "Architecture.kv_heads": a.kv_heads // 8,
        "Architecture.head_dim": a.head_dim // 8,
        "Architecture.vocab_size": a.vocab_size // 32,
        "TASK_FEATURE_LENGTHS": {"targets": length},
        "BATCH_SIZE": sequences,
        "Topology.attention_block": 128,
        "Topology.loss_chunk_tokens": 96,
        # So that three steps learn something.
        "LEARNING_RATE": 3e-3,
        "WARMUP_TOKENS": sequences * length,
        # bfloat16 rounds each device's part of a sum.
        "COMPUTE_DTYPE": "'float32'",
        # Where real devices lie, and what only their compiler understands.
        "Topology.slice": None,
        "Topology.slices": 1,
        "Topology.compiler_flags": {},
    }
    if topology.kernel == "flash":
        sizes["Topology.kernel"] = "'interpreted'"
    return sizes | {f"Topology.{axis}": size for axis, size in mesh.items()}


# What 8 devices may not change, nor the rest of a row's layout.
ALONE = {
    **dict.fromkeys([f"Topology.{axis}" for axis in MESH_AXES], 1),
    "Topology.kernel": "'plain'",
    "Topology.remat": "'none'",
    "Topology.loss_vocab_chunks": 1,
    "Topology.shard_optimizer_over_data": False,
    "MICROBATCHES": 1,
}


def lesson(spec, shape, topology) -> dict[str, np.ndarray]:
    """Metrics [STEPS] of the steps of a run on made-up tokens."""
    mesh = make_mesh(topology)
    rng = np.random.default_rng(0)
    words = spec.architecture.vocab_size
    with in_force(topology, mesh):
        program = step_program(spec, topology, mesh)
        state = fresh_state(program.model, program.optimizer, program.state, 0)
        run = program.compile(shape.sequences, shape.sequence_length)
        learnt = []
        sums = program.place(np.zeros((3, 1), np.float32))
        limits = program.place(NO_LIMITS)
        for _ in range(STEPS):
            # Counting within a twentieth of the words: something to learn. Source 0 leads each row.
            start = rng.integers(0, words, (shape.sequences, 1))
            batch = (start + np.arange(shape.sequence_length + 2)) % (words // 20)
            batch[:, 0] = 0
            rows = jax.device_put(batch.astype(np.int32), program.batch_sharding)
            state, metrics, sums = run(state, rows, sums, limits)
            learnt.append(jax.device_get(metrics | {"sums": sums}))
    return {name: np.array([item[name] for item in learnt]) for name in learnt[0]}


_alone: dict = {}


def lesson_alone(flags) -> dict[str, np.ndarray]:
    """That of one device, once for rows of one model and shape."""
    spec, shape, topology = resolved([*flags, *gin_flags(ALONE)])
    key = (spec.architecture, shape.sequences, shape.sequence_length)
    if key not in _alone:
        _alone[key] = lesson(spec, shape, topology)
    return _alone[key]


@pytest.fixture
def interpreted(monkeypatch):
    """The TPU's kernel by Pallas' interpreter, the same tiles and sums on a CPU, by a name of its
    own: runs on a CPU refuse 'flash'."""
    monkeypatch.setitem(
        kernels.ATTENTION_KERNELS,
        "interpreted",
        functools.partial(flash_attention, interpret=True),
    )
    monkeypatch.setitem(KERNEL_RECOMPUTES, "interpreted", KERNEL_RECOMPUTES["flash"])


def choices(row) -> dict[str, object]:
    """What a row chooses of all that may change no number."""
    spec, _, topology = resolved(rows()[row])
    return {
        "kernel": topology.kernel,
        "remat": topology.remat,
        "loss by words": topology.loss_vocab_chunks > 1,
        "over data": topology.shard_optimizer_over_data,
        "axes": tuple(axis for axis in MESH_AXES if getattr(topology, axis) > 1),
        "several microbatches": topology.microbatches > 1,
        "positions": spec.architecture.positions,
        "feed-forward": spec.architecture.feed_forward,
        "shared keys": spec.architecture.kv_heads < spec.architecture.heads,
    }


def test_the_rows_of_the_suite_show_every_choice():
    of_all = {choice for row in rows() for choice in choices(row).items()}
    shown = {choice for row in IN_THE_SUITE for choice in choices(row).items()}
    assert of_all - shown == SHOWN_ELSEWHERE
    assert {policy for _, policy in SHOWN_ELSEWHERE} <= set(REMAT_POLICIES)


@pytest.mark.parametrize("row", rows() if os.environ.get(EVERY_ROW) else IN_THE_SUITE)
def test_a_row_shrunk_gives_the_losses_of_one_device(row, interpreted):
    own = rows()[row]
    small = [*own, *gin_flags(shrinking(*resolved(own)))]
    several, alone = lesson(*resolved(small)), lesson_alone(small)
    difference = np.abs(several["loss"] - alone["loss"]).max()
    print(f"{row}: losses {alone['loss']}, on {DEVICES} devices off by {difference:.1e} at most")
    assert alone["loss"][-1] < alone["loss"][0] - 0.1
    np.testing.assert_allclose(several["loss"], alone["loss"], rtol=0, atol=1e-5)
    for name, values in alone.items():
        np.testing.assert_allclose(several[name], values, rtol=1e-4, err_msg=name)
