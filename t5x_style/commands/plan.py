"""`t5x-style plan`: from a budget and its data to the model to train."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import gin

from t5x_style.accounting import (
    LAWS,
    Architecture,
    allocations,
    audit,
    blend,
    bloomberggpt,
    chip_flops,
    count,
    duration,
    forward_flops_per_token,
    parameters,
    scientific,
    total_parameters,
    verdict,
)
from t5x_style.accounting import chip as chip_named
from t5x_style.commands.configuration import refuse_unconsumed
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.reporting import table

CONFIGURABLES = ("t5x_style.accounting.architecture",)

PRESETS = ("bloomberggpt",)


@gin.configurable
def plan(
    *,
    flops: float | None = None,
    chip: str | None = None,
    chips: int | None = None,
    days: float | None = None,
    mfu: float = 0.4,
    unique_tokens: Mapping[str, float] | None = None,
    shares: Mapping[str, float] | None = None,
    max_epochs: float = 4.0,
    architecture: Architecture | None = None,
    sequence_length: int = 2048,
    preset: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Turns a compute budget into a model size and a number of tokens, by each scaling law.

    The budget is either --flops (C = 6 N D) or --chip, --chips and --days. Where the data runs out
    before a law's optimum, the best choice within the data is shown under it.

    Args:
      flops: the budget in model FLOPs by 6ND.
      chip: a chip of the table (v5e, v5p, h100 ...).
      chips: how many of them.
      days: for how long; with --flops it is worked out instead.
      mfu: share of the chips' dense bfloat16 peak that the run keeps up, by 6ND.
      unique_tokens: tokens of each source once through, as {'legal': 2e9, 'general': 3e9}.
      shares: share of each source in the blend; by size if not given.
      max_epochs: passes over the scarcest source at most.
      architecture: a model to hold against the laws, as @Architecture().
      sequence_length: tokens per row, for the attention FLOPs of that model.
      preset: bloomberggpt prints the accounts of that run instead.
      dry_run: changes nothing here: a plan is all that this verb makes.
    """
    refuse_unconsumed()
    if preset is not None:
        if preset not in PRESETS:
            raise UsageError(
                f"--preset={preset}: no such preset (there is {', '.join(PRESETS)})"
                f"{did_you_mean(preset, PRESETS)}"
            )
        return _bloomberggpt()
    return _plan(
        _budget(flops, chip, chips, days, mfu),
        unique_tokens,
        shares,
        max_epochs,
        architecture,
        sequence_length,
    )


def _budget(
    flops: float | None, chip: str | None, chips: int | None, days: float | None, mfu: float
) -> dict[str, Any]:
    """The budget with whichever of FLOPs and days was left out; days is None without chips."""

    for name, value in (("flops", flops), ("chips", chips), ("days", days), ("mfu", mfu)):
        if value is not None and not value > 0:
            raise UsageError(f"--{name}={value}: must be above 0")
    if (chip is None) != (chips is None):
        raise UsageError("--chip and --chips go together: which chip, and how many of them")
    if flops is not None and days is not None:
        raise UsageError("--flops and --days are given both: one follows from the other")
    if flops is None and (chip is None or days is None):
        raise UsageError(
            "a plan needs a budget: --flops=1e21, or --chip=v5e --chips=256 --days=7 (or "
            "--preset=bloomberggpt)"
        )
    budget: dict[str, Any] = {"flops": flops, "chip": chip, "chips": chips, "days": days}
    if chip is not None and chips is not None:
        per_day = chip_flops(chip_named(chip), chips, 86400.0, mfu)
        budget |= {"mfu_6nd": mfu}
        if days is not None:
            budget["flops"] = per_day * days
        else:
            budget["days"] = budget["flops"] / per_day
    return budget


def _plan(
    budget: dict[str, Any],
    unique_tokens: Mapping[str, float] | None,
    shares: Mapping[str, float] | None,
    max_epochs: float,
    architecture: Architecture | None,
    sequence_length: int,
) -> dict[str, Any]:

    rows = allocations(budget["flops"], unique_tokens, shares, max_epochs)
    print(f"budget: {scientific(budget['flops'])} model FLOPs (6 N D)", end="")
    if budget["chip"] is not None:
        print(
            f" = {duration(budget['days'] * 86400)} on {budget['chips']:,} x {budget['chip']}"
            f" at {budget['mfu_6nd']:.1%} MFU by 6ND",
            end="",
        )
    print()
    result: dict[str, Any] = {"budget": budget}
    if unique_tokens:
        result["shares"] = blend(unique_tokens, shares)
        print(
            table(
                [
                    (source, count(unique_tokens[source]), f"{share:.2%}")
                    for source, share in result["shares"].items()
                ],
                ("source", "unique tokens", "share"),
            )
        )
    print()
    print(
        table(
            [
                (
                    row.law,
                    count(row.params),
                    count(row.tokens),
                    row.tokens / row.params,
                    None if row.loss is None else f"{row.loss:.4f}",
                    None if row.efficiency is None else f"{row.efficiency:.1%}",
                    *(f"{epochs:.2f}" for epochs in row.epochs.values()),
                    "optimum"
                    if row.scarce_source is None
                    else f"{row.scarce_source} ends at {max_epochs:g} epochs",
                )
                for row in rows
            ],
            (
                "law",
                "parameters",
                "tokens",
                "tokens/param",
                "loss",
                "efficiency",
                *(f"epochs {source}" for source in rows[0].epochs),
                "",
            ),
        )
    )
    result["allocations"] = [dataclasses.asdict(row) for row in rows]
    if architecture is not None:
        total = total_parameters(architecture)
        tokens = budget["flops"] / (6 * total)
        result["architecture"] = {"parameters": parameters(architecture), "tokens": tokens}
        print()
        result["architecture"] |= _against_the_laws(architecture, sequence_length, tokens)
    print()
    for law in LAWS.values():
        print(f"{law.name}: {law.source}")
    return result


def _against_the_laws(
    architecture: Architecture, sequence_length: int, tokens: float
) -> dict[str, Any]:
    """Prints one model's terms and verdict for a number of tokens; returns its audit."""

    terms = parameters(architecture)
    print(table([*terms.items(), ("total", sum(terms.values()))], ("term", "parameters")))
    print()
    forward = forward_flops_per_token(architecture, sequence_length)
    print(
        table(
            [
                (term, int(value))
                for term, value in (*forward.items(), ("sum", sum(forward.values())))
            ],
            (f"forward, S = {sequence_length}", "FLOPs/token"),
        )
    )
    print()
    for line in verdict(architecture, sequence_length, round(tokens)):
        print(line)
    return {"audit": audit(architecture, sequence_length, round(tokens))}


def _bloomberggpt() -> dict[str, Any]:

    accounts = bloomberggpt.accounts()
    print("BloombergGPT (Wu et al. 2023) from its shape and schedule alone")
    print()
    terms = accounts["parameters"]
    print(table([*terms.items(), ("total", accounts["total_parameters"])], ("term", "parameters")))
    print()
    print(
        f"{accounts['tokens']:,} tokens in 139,200 steps: {accounts['epochs']:.2%} of the "
        f"{count(bloomberggpt.AVAILABLE_TOKENS)} there were"
    )
    print()
    meanings = {
        "6nd": "6N: what the laws call C",
        "full": "3 x the forward matrix products: PaLM, Megatron",
        "causal": "attention below the diagonal",
        "hardware": "with what full remat recomputes in JAX",
        "8n": "6N + 2N recomputed: the paper's rate",
        "8n_full_batches": "every step at the full batch: the paper's 2.36e23",
    }
    print(
        table(
            [
                (
                    convention,
                    int(figures["per_token"]),
                    scientific(figures["total"]),
                    f"{figures['flops_per_second_per_gpu'] / 1e12:.2f}",
                    f"{figures['share_of_peak']:.1%}",
                    meanings[convention],
                )
                for convention, figures in accounts["flops"].items()
            ],
            ("convention", "FLOPs/token", "total", "TFLOP/s/GPU", "of peak", ""),
        )
    )
    print()
    budget = bloomberggpt.BUDGET_FLOPS
    rows = allocations(budget)
    print(f"planned budget: 0.75 x 1.3M GPU hours at 100 TFLOP/s = {scientific(budget)} FLOPs")
    print(
        table(
            [
                (
                    row.law,
                    f"{row.params / 1e9:.3f}B",
                    f"{row.tokens / 1e9:.3f}B",
                    row.tokens / row.params,
                    None if row.loss is None else f"{row.loss:.4f}",
                )
                for row in rows
            ],
            ("law", "parameters", "tokens", "tokens/param", "loss"),
        )
    )
    print()

    print("what was spent")
    for line in verdict(
        bloomberggpt.ARCHITECTURE,
        bloomberggpt.SEQUENCE_LENGTH,
        accounts["tokens"],
        remat=bloomberggpt.REMAT,
    ):
        print(line)
    return {
        **accounts,
        "budget": {"flops": budget},
        "allocations": [dataclasses.asdict(row) for row in rows],
    }
