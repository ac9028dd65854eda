"""`t5x-style compile`: a run's train step, compiled for chips that need not be there."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import gin

from t5x_style.accounting import Architecture, chip, total_parameters, training_flops_per_token
from t5x_style.accounting.program import read_program
from t5x_style.commands.configuration import refuse_unconsumed
from t5x_style.commands.train import CONFIGURABLES, feature_length
from t5x_style.errors import UsageError
from t5x_style.reporting.compiled_text import compiled_text

if TYPE_CHECKING:
    from t5x_style.data import Packing
    from t5x_style.optim import AdamW
    from t5x_style.partitioning import Topology

__all__ = ["BINDINGS_OF", "CONFIGURABLES", "compile"]

# What is bound for `train` is bound for the parameters of the same name here.
BINDINGS_OF = "train"

# Which token ends a document and how many sources there are change constants of the program and
# a product of [B] by [B, sources], nothing that is counted here.
_EOS_ID, _SOURCES = 1, 1


@gin.configurable
def compile(
    *,
    architecture: Architecture,
    optimizer: AdamW,
    topology: Topology,
    task_feature_lengths: Mapping[str, int | Sequence[tuple[int, int | None]]],
    batch_size: int | Sequence[tuple[int, int | None]],
    train_tokens: int | None = None,
    train_steps: int | None = None,
    microbatches: int = 1,
    compute_dtype: str = "bfloat16",
    packing: Packing | None = None,
    z_loss: float = 0.0,
    phase: int | None = None,
    keep_hlo: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Compiles the train step of a run and reports what the compiler made of it.

    Takes the gin files, macros and flags of `train`, and neither text nor a MODEL_DIR. With
    Topology.chip and Topology.slice the step is compiled for that slice, which need not be there;
    without a slice, for the devices of this process.

    Args:
      architecture: the model, @Architecture().
      optimizer: @AdamW().
      topology: mesh, slice, kernel, remat and flags, @Topology().
      task_feature_lengths: {'targets': tokens per sequence}, or phases.
      batch_size: sequences per step, or phases.
      train_tokens: length of the run in tokens.
      train_steps: length of the run in steps; one of the two is given.
      microbatches: passes per step.
      compute_dtype: bfloat16 or float32.
      packing: how documents share a row, @Packing().
      z_loss: coefficient of log(Z)^2.
      phase: which phase of the batch size and sequence length, from 1; the last if not given.
      keep_hlo: file to write the compiled program to, as text.
      dry_run: check that the mesh fits the slice and the model, and compile nothing.
    """
    refuse_unconsumed()
    from t5x_style.data import Packing
    from t5x_style.optim import BatchPlan
    from t5x_style.partitioning import check_divisible, check_sharded, described_devices
    from t5x_style.training.compiled import (
        bytes_per_chip,
        check_state_goes_round,
        text_accounts,
    )
    from t5x_style.training.programs import step_program

    plan = BatchPlan.of(
        batch_size,
        feature_length(task_feature_lengths),
        train_tokens=train_tokens,
        train_steps=train_steps,
    )
    if phase is not None and not 1 <= phase <= len(plan.phases):
        raise UsageError(f"--phase={phase}: the run has the phases 1 to {len(plan.phases)}: {plan}")
    sequences, length, _ = plan.phases[-1 if phase is None else phase - 1]
    if sequences % microbatches:
        raise UsageError(
            f"BATCH_SIZE = {sequences} is not a multiple of MICROBATCHES = {microbatches}"
        )
    check_divisible(architecture, topology, sequences // microbatches, length)
    of_chip = None if topology.chip is None else chip(topology.chip)
    mesh = topology.mesh(None if topology.slice is None else described_devices(topology))
    tokens = sequences * length
    report: dict[str, Any] = {
        "parameters": total_parameters(architecture),
        "chip": topology.chip,
        "slice": topology.slice,
        "slices": topology.slices,
        "devices": mesh.size,
        "chips": mesh.size // (1 if of_chip is None else of_chip.devices_per_chip),
        "mesh": topology.mesh_shape,
        "kernel": topology.kernel,
        "remat": topology.remat,
        "microbatches": microbatches,
        "compute_dtype": compute_dtype,
        "sequences": sequences,
        "sequence_length": length,
        "tokens": tokens,
        "run_tokens": plan.tokens,
        "model_flops": {
            convention: tokens * training_flops_per_token(architecture, length, convention)
            for convention in ("6nd", "full", "causal")
        },
        "hardware_flops": tokens
        * training_flops_per_token(
            architecture,
            length,
            "hardware",
            topology.remat,
            topology.kernel,
            loss_vocab_chunks=topology.loss_vocab_chunks,
        ),
    }
    with topology.in_force(mesh):
        program = step_program(
            architecture,
            topology,
            mesh,
            optimizer,
            plan,
            compute_dtype=compute_dtype,
            packing=packing or Packing(),
            microbatches=microbatches,
            z_loss=z_loss,
            sources=_SOURCES,
            eos_id=_EOS_ID,
        )
        report["unsharded"] = check_sharded(program.model.abstract, topology)
        if dry_run:
            print(compiled_text(report))
            return report
        started = time.perf_counter()
        compiled = program.compile(sequences, length)
    report["compile_seconds"] = time.perf_counter() - started
    check_state_goes_round(program, compiled)
    sizes = bytes_per_chip(program, compiled, program.batch(sequences, length), of_chip)
    report["bytes_per_chip"] = sizes
    report["fits"] = sizes["peak"] <= sizes["usable"] if "usable" in sizes else None
    text = compiled.as_text()
    if keep_hlo is not None:
        pathlib.Path(keep_hlo).write_text(text)
    read = read_program(text, topology.mesh_shape, topology.chip)
    report |= text_accounts(read, report["hardware_flops"], mesh.size)
    print(compiled_text(report))
    return report
