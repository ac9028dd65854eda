"""A plan and a layout as gin files that `t5x-style train` takes."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING

from t5x_style.accounting import Architecture, Plan
from t5x_style.errors import UsageError
from t5x_style.quantities import count, scientific

if TYPE_CHECKING:
    from t5x_style.accounting import Topology

# Evaluations are cheaper than checkpoints and tell more: two for each.
EVALUATIONS_PER_CHECKPOINT = 2
# Of training lines: more of them make no curve clearer.
LINES_PER_RUN = 10_000
LEAST_LOG_PERIOD = 10


def write_plan(plan: Plan, path: str, command: str) -> None:
    """Write the gin file of a plan.

    Args:
      path: of the file; its folder must be there.
      command: what was typed, for the file's head.

    Raises:
      UsageError: the name does not end in .gin, or its folder is not there.
    """
    target = check_target(path)
    target.write_text(plan_gin(plan, path, command))


def check_target(path: str) -> pathlib.Path:
    """The path of a gin file that can be written. Raises UsageError if it cannot."""
    target = pathlib.Path(path)
    if target.suffix != ".gin":
        raise UsageError(f"--write={path}: name a gin file, as in --write={target.stem}.gin")
    if not target.parent.is_dir():
        raise UsageError(f"--write={path}: there is no folder {target.parent}")
    return target


def plan_gin(plan: Plan, path: str, command: str) -> str:
    """The text of that file.

    The sources themselves (where the text lies, the tokenizer) are the user's: a mixture file in
    front of this one, whose sources have the names that the plan was given.
    """
    recipe, arch = plan.recipe, plan.architecture
    loss = f"expected loss {plan.chosen.loss:.4f} by {plan.law.name}"
    lines = [
        f"# {count(plan.chosen.params)} parameters on {count(plan.chosen.tokens)} tokens: "
        f"{scientific(plan.flops)} FLOPs (6 N D), {loss}.",
        "# Written by",
        f"#   {command}",
        "# Train it with",
        f"#   t5x-style train --gin_file=YOUR_MIXTURE.gin --gin_file={path} --gin.MODEL_DIR=FOLDER",
        "# where YOUR_MIXTURE.gin (as gin_configs/mixtures/legal_general.gin) has the sources"
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
    """What differs from Architecture's defaults, and its sizes."""
    lines = ["Architecture.vocab_size = %VOCAB_SIZE"]
    for field in dataclasses.fields(arch):
        value = getattr(arch, field.name)
        if field.name != "vocab_size" and value != field.default:
            lines.append(f"Architecture.{field.name} = {value!r}")
    return lines


def _topology(plan: Plan) -> list[str]:
    """The fastest mesh that fits, or what the user has yet to say."""
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
      topology: what differs from Topology's defaults is written, and what a search settles (mesh,
        remat, microbatches, flags) in any case, so that it holds behind files that say otherwise.
      head: what to say of it.
    """
    lines = [f"# {line}" for line in head.splitlines()]
    settled = {*topology.mesh_shape, "remat", "compiler_flags"}
    for field in dataclasses.fields(topology):
        value = getattr(topology, field.name)
        default = {} if field.default is dataclasses.MISSING else field.default
        if field.name == "microbatches":
            # A macro, which may be set again after this file.
            lines.append(f"MICROBATCHES = {value}")
            continue
        if value == default and field.name not in settled:
            continue
        if isinstance(value, dict) and value:
            lines.append(f"Topology.{field.name} = {{")
            lines += [f"    {key!r}: {item!r}," for key, item in value.items()]
            lines.append("}")
        else:
            lines.append(f"Topology.{field.name} = {value!r}")
    return "\n".join(lines) + "\n"
