"""`t5x-style plan`: from a budget and its data to a run that a team could sign."""

import dataclasses
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import gin

from t5x_style.accounting import (
    CONVENTIONS,
    Architecture,
    Plan,
    audit,
    bloomberggpt,
    budget_of,
    forward_flops_per_token,
    laws_of_audit,
    make_plan,
    parameters,
    read_law,
    recommending_law,
    sources_of,
    training_flops_per_token,
)
from t5x_style.accounting.layouts.meshes import Candidate
from t5x_style.config.checks import refuse_unconsumed
from t5x_style.config.writing import check_target, write_plan
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.reporting.figures.scaling import check_suffix, scaling_figure
from t5x_style.reporting.text.accounts import accounts_text
from t5x_style.reporting.text.plan import plan_text

CONFIGURABLES = ("t5x_style.accounting.architecture",)

PRESETS = ("bloomberggpt",)


@gin.configurable
def plan(
    *,
    flops: float | None = None,
    chip: str | None = None,
    chips: int | None = None,
    days: float | None = None,
    chip_hours: float | None = None,
    money: float | None = None,
    price_per_chip_hour: float | None = None,
    cpu_minutes: float | None = None,
    mfu: float | None = None,
    unique_tokens: Mapping[str, float] | None = None,
    shares: Mapping[str, float] | str | None = None,
    domain: str | None = None,
    max_epochs: float | Mapping[str, float] = 4.0,
    past_forty_epochs: bool = False,
    served_tokens: float | None = None,
    law: str | None = None,
    own_law: str | None = None,
    architecture: Architecture | None = None,
    vocab_size: int | None = None,
    style: str | None = None,
    sequence_length: int = 2048,
    batch_sequences: int | None = None,
    write: str | None = None,
    figure: str | None = None,
    preset: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Turns a budget and its data into a run: model, tokens, blend, recipe, mesh, time and cost.

    The budget is one of --flops, --days (with --chip and --chips), --chip_hours (with --chip),
    --money (with --chip and --price_per_chip_hour) and --cpu_minutes. Every scaling law says what
    it would do with it; one of them is followed, within what the data allows.

    Args:
      flops: the budget in model FLOPs by 6ND.
      chip: a chip of the table (v5e, v5p, h100 ...).
      chips: how many of them.
      days: for how long.
      chip_hours: chips x hours, as GPU hours are granted.
      money: what may be spent on chips, in any currency.
      price_per_chip_hour: in the same currency.
      cpu_minutes: this machine's CPU for so long; its speed is measured now.
      mfu: share of the chips' dense bfloat16 peak that the run keeps up, by 6ND; 0.4 unless
        given, and 0.25 of the measured speed of a CPU.
      unique_tokens: tokens of each source once through, as {'legal': 2e9, 'general': 3e9}.
      shares: share of each source in the blend, summing to 1; by size if not given; 'choose' to
        have them chosen for the domain.
      domain: the source that the model is for.
      max_epochs: passes over a source at most, one number or {'source': number}.
      past_forty_epochs: a cap of more than 40 is meant.
      served_tokens: tokens that the model will read and write in service.
      law: the law to follow; besiroglu, or the own law if one is given.
      own_law: JSON that t5x-style fit wrote: a law of the user's own runs.
      architecture: a model that is settled, as @Architecture(); otherwise one is built.
      vocab_size: of the tokenizer that there is; otherwise Tao's law chooses.
      style: of the model that is built, llama (the default) or bloomberggpt.
      sequence_length: tokens per sequence.
      batch_sequences: sequences per step; otherwise by StepLaw.
      write: gin file to write, for t5x-style train.
      figure: picture to draw (.svg, .png or .html): N and D against FLOPs, by each law.
      preset: bloomberggpt prints the accounts of that run instead.
      dry_run: write no file.
    """
    refuse_unconsumed()
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(
                f"--preset={preset}: no such preset (there is {', '.join(PRESETS)})"
                f"{did_you_mean(preset, PRESETS)}"
            )
        _refuse_together(
            f"--preset={preset}",
            flops=flops,
            chip=chip,
            cpu_minutes=cpu_minutes,
            unique_tokens=unique_tokens,
            architecture=architecture,
            write=write,
        )
        return _bloomberggpt(figure, dry_run)
    if architecture is not None:
        _refuse_together("--architecture", vocab_size=vocab_size, style=style)
    own = None if own_law is None else read_law(own_law)
    followed = recommending_law(law, own)
    budget = budget_of(
        flops=flops,
        chip_name=chip,
        chips=chips,
        days=days,
        chip_hours=chip_hours,
        money=money,
        price_per_chip_hour=price_per_chip_hour,
        cpu_minutes=cpu_minutes,
        mfu=mfu,
    )
    sources = sources_of(
        unique_tokens,
        shares,
        max_epochs,
        domain=domain,
        wanted_tokens=followed.optimal(budget.flops)[1],
        past_forty_epochs=past_forty_epochs,
    )
    if write is not None:
        check_target(write)
    if figure is not None:
        check_suffix(figure)
    made = make_plan(
        budget,
        sources,
        law=followed,
        laws=laws_of_audit(own),
        domain=domain,
        served_tokens=served_tokens,
        architecture=architecture,
        vocab_size=vocab_size,
        style=style or "llama",
        sequence_length=sequence_length,
        batch_sequences=batch_sequences,
    )
    print(plan_text(made))
    if write is not None and not dry_run:
        write_plan(made, write, shlex.join(["t5x-style", *sys.argv[1:]]))
        print(f"\nwritten: {write}")
    if figure is not None and not dry_run:
        _draw(figure, budget.flops, made.chosen.params, made.chosen.tokens, "this plan")
    return plan_dict(made)


def _refuse_together(flag: str, **others: object) -> None:
    """Refuse what `flag` leaves without a meaning."""
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"--{name} says nothing beside {flag}: keep one of them")


def plan_dict(made: Plan) -> dict[str, Any]:
    """A plan as JSON holds it."""
    arch, chosen, recipe = made.architecture, made.chosen, made.recipe
    budget = made.budget
    return {
        "budget": dataclasses.asdict(budget)
        | {
            "chip_hours": budget.chip_hours(budget.flops),
            "days": budget.days(budget.flops),
            "cost": budget.cost(budget.flops),
        },
        "law": made.law.name,
        "optima": {row.law: dataclasses.asdict(row) for row in made.optima},
        "within_data": {row.law: dataclasses.asdict(row) for row in made.within_data},
        "recommended": dataclasses.asdict(made.recommended),
        "cap_costs": [
            dataclasses.asdict(cost) | {"money": budget.cost(cost.flops)} for cost in made.cap_costs
        ],
        "bloomberggpt_rule": None
        if made.bloomberggpt is None
        else dataclasses.asdict(made.bloomberggpt),
        "served": None if made.served is None else dataclasses.asdict(made.served),
        "vocabulary": made.vocabulary,
        "architecture": dataclasses.asdict(arch),
        "parameters": parameters(arch),
        "forward_flops_per_token": forward_flops_per_token(arch, recipe.sequence_length),
        "training_flops": {
            convention: recipe.tokens
            * training_flops_per_token(arch, recipe.sequence_length, convention)
            for convention in CONVENTIONS
        },
        "chosen": dataclasses.asdict(chosen) | {"flops": made.flops},
        "sources": {
            name: {
                "unique_tokens": made.sources.unique_tokens[name],
                "share": share,
                "tokens": made.sources.tokens(chosen.tokens)[name],
                "epochs": made.sources.epochs(chosen.tokens)[name],
                "max_epochs": made.sources.max_epochs[name],
                "effective_tokens": made.sources.effective_tokens_of(name, chosen.tokens),
            }
            for name, share in made.sources.shares.items()
        },
        "recipe": dataclasses.asdict(recipe),
        "meshes": None
        if made.meshes is None
        else [_layout(candidate) for candidate in made.meshes],
        "remat_memory": None
        if made.remat_memory is None
        else {
            remat: dataclasses.asdict(memory) | {"total": memory.total}
            for remat, memory in made.remat_memory.items()
        },
        "checkpoints": {
            "bytes": made.checkpoint_bytes,
            "period": made.checkpoint_period,
            "number": -(-recipe.steps // made.checkpoint_period),
        },
        "sensitivity": [dataclasses.asdict(row) for row in made.sensitivity],
        "audit": audit(
            arch,
            recipe.sequence_length,
            recipe.tokens,
            effective_tokens=made.sources.effective_tokens,
        ),
        "warnings": made.warnings,
    }


def _layout(candidate: Candidate) -> dict[str, Any]:
    """A mesh, what it holds and how fast it is expected to be."""
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


def _bloomberggpt(figure: str | None, dry_run: bool) -> dict[str, Any]:
    """The accounts of the run, and what this planner makes of its budget and data."""
    if figure is not None:
        check_suffix(figure)
    accounts = bloomberggpt.accounts()
    made = make_plan(
        budget_of(flops=bloomberggpt.BUDGET_FLOPS),
        sources_of(bloomberggpt.UNIQUE_TOKENS, None, 1.0),
        architecture=bloomberggpt.ARCHITECTURE,
        sequence_length=bloomberggpt.SEQUENCE_LENGTH,
    )
    print(accounts_text(accounts))
    print("\nWhat this planner makes of its budget and data, every token at most once\n")
    print(plan_text(made))
    if figure is not None and not dry_run:
        total, tokens = accounts["total_parameters"], accounts["tokens"]
        _draw(figure, bloomberggpt.BUDGET_FLOPS, total, tokens, "BloombergGPT")
    return {**accounts, "plan": plan_dict(made)}


def _draw(figure: str, flops: float, params: float, tokens: float, name: str) -> None:
    scaling_figure(figure, flops=flops, plan_params=params, plan_tokens=tokens, plan_name=name)
    print(f"\ndrawn: {figure}")
