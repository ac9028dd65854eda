"""A plan as JSON: the result of `t5x-style plan --json`."""

import dataclasses
from typing import Any

from t5x_style.accounting import (
    CONVENTIONS,
    Plan,
    audit,
    forward_flops_per_token,
    parameters,
    training_flops_per_token,
)
from t5x_style.accounting.layouts.meshes import Candidate


def plan_json(plan: Plan) -> dict[str, Any]:
    """A plan as numbers, strings, lists and dicts alone."""
    arch, chosen, recipe = plan.architecture, plan.chosen, plan.recipe
    budget = plan.budget
    return {
        "budget": dataclasses.asdict(budget)
        | {
            "chip_hours": budget.chip_hours(budget.flops),
            "days": budget.days(budget.flops),
            "cost": budget.cost(budget.flops),
        },
        "law": plan.law.name,
        "optima": {row.law: dataclasses.asdict(row) for row in plan.optima},
        "within_data": {row.law: dataclasses.asdict(row) for row in plan.within_data},
        "recommended": dataclasses.asdict(plan.recommended),
        "cap_costs": [
            dataclasses.asdict(cost) | {"money": budget.cost(cost.flops)} for cost in plan.cap_costs
        ],
        "bloomberggpt_rule": None
        if plan.bloomberggpt is None
        else dataclasses.asdict(plan.bloomberggpt),
        "served": None if plan.served is None else dataclasses.asdict(plan.served),
        "vocabulary": plan.vocabulary,
        "architecture": dataclasses.asdict(arch),
        "parameters": parameters(arch),
        "forward_flops_per_token": forward_flops_per_token(arch, recipe.sequence_length),
        "training_flops": {
            convention: recipe.tokens
            * training_flops_per_token(arch, recipe.sequence_length, convention)
            for convention in CONVENTIONS
        },
        "chosen": dataclasses.asdict(chosen) | {"flops": plan.flops},
        "sources": {
            name: {
                "unique_tokens": plan.sources.unique_tokens[name],
                "share": share,
                "tokens": plan.sources.tokens(chosen.tokens)[name],
                "epochs": plan.sources.epochs(chosen.tokens)[name],
                "max_epochs": plan.sources.max_epochs[name],
                "effective_tokens": plan.sources.effective_tokens_of(name, chosen.tokens),
            }
            for name, share in plan.sources.shares.items()
        },
        "recipe": dataclasses.asdict(recipe),
        "meshes": None
        if plan.meshes is None
        else [_candidate(candidate) for candidate in plan.meshes],
        "remat_memory": None
        if plan.remat_memory is None
        else {
            remat: dataclasses.asdict(memory) | {"total": memory.total}
            for remat, memory in plan.remat_memory.items()
        },
        "checkpoints": {
            "bytes": plan.checkpoint_bytes,
            "period": plan.checkpoint_period,
            "number": -(-recipe.steps // plan.checkpoint_period),
        },
        "sensitivity": [dataclasses.asdict(row) for row in plan.sensitivity],
        "audit": audit(
            arch,
            recipe.sequence_length,
            recipe.tokens,
            effective_tokens=plan.sources.effective_tokens,
        ),
        "warnings": plan.warnings,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    """A mesh with its bytes per chip, its expected seconds and its MFU."""
    roof = candidate.roofline
    seconds = {
        "expected": roof.seconds,
        "hidden": roof.hidden_seconds,
        "exposed": roof.exposed_seconds,
    }
    return {
        "mesh": candidate.topology.mesh_shape,
        "remat": candidate.topology.remat,
        "microbatches": candidate.topology.microbatches,
        "bytes_per_chip": candidate.bytes_per_chip,
        "step_seconds": seconds,
        "bound": roof.bound,
        "mfu": {
            convention: {name: roof.mfu(convention, value) for name, value in seconds.items()}
            for convention in roof.model_flops
        },
    }
