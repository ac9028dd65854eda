"""A plan and a layout as gin files that `t5x-style train` takes."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from t5x_style.accounting import Architecture, Plan
from t5x_style.errors import UsageError
from t5x_style.files import MARK, local_path, refuse_foreign, write_whole
from t5x_style.quantities import count, scientific

if TYPE_CHECKING:
    from t5x_style.accounting import Topology

# An evaluation costs less than a checkpoint and shows more.
EVALUATIONS_PER_CHECKPOINT = 2
# More training lines do not make a curve clearer.
LINES_PER_RUN = 10_000
LEAST_LOG_PERIOD = 10


def write_plan(plan: Plan, path: str, command: str) -> None:
    """Write the gin file of a plan.

    Args:
      path: of the file; its folder must exist.
      command: the command line of the plan, for the first lines of the file.

    Raises:
      UsageError: see check_target.
    """
    write_whole(check_target(path), plan_gin(plan, path, command))


def check_target(path: str) -> pathlib.Path:
    """The path of a gin file to write.

    Raises:
      UsageError: it does not end in .gin, its folder does not exist, it has a scheme such as
        gs://, or somebody else's file has its name.
    """
    target = local_path(path, "--write")
    if target.suffix != ".gin":
        raise UsageError(f"--write={path}: name a gin file, as in --write={target.stem}.gin")
    if not target.parent.is_dir():
        raise UsageError(f"--write={path}: no folder {target.parent}")
    refuse_foreign(path, "--write")
    return target


def plan_gin(plan: Plan, path: str, command: str) -> str:
    """The text of the gin file of a plan.

    It does not define the sources and the tokenizer. A mixture file of the user does, and is read
    before this one; the names of its sources are those of the plan.
    """
    recipe, arch = plan.recipe, plan.architecture
    loss = f"expected loss {plan.chosen.loss:.4f} by {plan.law.name}"
    lines = [
        f"# {count(plan.chosen.params)} parameters on {count(plan.chosen.tokens)} tokens: "
        f"{scientific(plan.flops)} FLOPs (6 N D), {loss}.",
        f"# This file was {MARK}, by",
        f"#   {command}",
        "# Train it with",
        f"#   t5x-style train --gin_file=YOUR_MIXTURE.gin --gin_file={path} --gin.MODEL_DIR=FOLDER",
        "# where YOUR_MIXTURE.gin (like gin_configs/mixtures/legal_general.gin) has the sources"
        + (f" {', '.join(plan.sources.shares)}." if plan.sources.shares else "."),
        "include 'gin_configs/runs/pretrain.gin'",
        "include 'gin_configs/optimizers/adamw.gin'",
        "",
        f"TASK_FEATURE_LENGTHS = {{'targets': {recipe.sequence_length}}}",
        f"BATCH_SIZE = {recipe.batch_sequences}",
        f"TRAIN_TOKENS = {recipe.tokens}",
        f"LEARNING_RATE = {recipe.learning_rate!r}",
        f"WARMUP_TOKENS = {recipe.warmup_tokens}",
        f"LOG_PERIOD = {max(LEAST_LOG_PERIOD, recipe.steps // LINES_PER_RUN)}",
        f"EVAL_PERIOD = {max(1, plan.checkpoint_period // EVALUATIONS_PER_CHECKPOINT)}",
        f"CHECKPOINT_PERIOD = {plan.checkpoint_period}",
        f"Schedule.final_fraction = {recipe.final_fraction!r}",
    ]
    if plan.budget.form == "cpu_minutes":
        lines.append("COMPUTE_DTYPE = 'float32'  # faster than bfloat16 on a CPU")
    if plan.sources.shares:
        shares = {name: float(share) for name, share in plan.sources.shares.items()}
        caps = max(plan.sources.max_epochs.values())
        lines += [
            "",
            f"Corpus.mixtures = {{'planned': {shares!r}}}",
            "MIXTURE_OR_TASK_NAME = 'planned'",
            f"train.max_epochs = {float(caps)!r}",
        ]
    lines += ["", f"VOCAB_SIZE = {arch.vocab_size}", *_architecture(arch), "", *_topology(plan)]
    return "\n".join(lines) + "\n"


def _architecture(arch: Architecture) -> list[str]:
    """The fields that differ from Architecture's defaults, its sizes among them."""
    lines = ["Architecture.vocab_size = %VOCAB_SIZE"]
    for field in dataclasses.fields(arch):
        value = getattr(arch, field.name)
        if field.name != "vocab_size" and value != field.default:
            lines.append(f"Architecture.{field.name} = {value!r}")
    return lines


def _topology(plan: Plan) -> list[str]:
    """The fastest mesh that fits, or a comment on what is missing."""
    if plan.budget.form == "cpu_minutes":
        return ["include 'gin_configs/topologies/cpu.gin'"]
    if not plan.meshes:
        return ["# The plan does not know its chips: give a file of topologies/ as well."]
    best = plan.meshes[0].topology
    return [
        *(f"Topology.{axis} = {size}" for axis, size in best.mesh_shape.items()),
        f"Topology.chip = {best.chip!r}",
        f"Topology.kernel = {best.kernel!r}",
        f"Topology.remat = {best.remat!r}",
        f"Topology.loss_chunk_tokens = {best.loss_chunk_tokens}",
        f"MICROBATCHES = {best.microbatches}",
    ]


def layout_gin(topology: Topology, head: str) -> str:
    """The text of a file of gin_configs/topologies/, for `train` and `compile`.

    Args:
      topology: the fields that differ from Topology's defaults are written. Those that a search
        chooses (mesh, remat, microbatches, flags) are always written, so that they win over
        earlier files.
      head: the comment at the top.
    """
    lines = [f"# This file was {MARK}.", *(f"# {line}" for line in head.splitlines())]
    chosen = {*topology.mesh_shape, "remat", "compiler_flags"}
    for field in dataclasses.fields(topology):
        value = getattr(topology, field.name)
        default = {} if field.default is dataclasses.MISSING else field.default
        if field.name == "microbatches":
            # A macro, which may be set again after this file.
            lines.append(f"MICROBATCHES = {value}")
            continue
        if value == default and field.name not in chosen:
            continue
        if isinstance(value, dict) and value:
            lines.append(f"Topology.{field.name} = {{")
            lines += [f"    {key!r}: {item!r}," for key, item in value.items()]
            lines.append("}")
        else:
            lines.append(f"Topology.{field.name} = {value!r}")
    return "\n".join(lines) + "\n"
