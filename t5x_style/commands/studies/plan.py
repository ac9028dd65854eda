"""`t5x-style plan`: from a budget and its data to a run."""

import shlex
import sys
from collections.abc import Mapping
from typing import Any

import gin

from t5x_style.accounting import (
    Architecture,
    bloomberggpt,
    budget_of,
    laws_of_audit,
    make_plan,
    read_law,
    recommending_law,
    sources_of,
)
from t5x_style.config.checks import refuse_unconsumed
from t5x_style.config.writing import check_target, write_plan
from t5x_style.errors import UsageError, one_of
from t5x_style.files import local_path, refuse_foreign
from t5x_style.ranges import Mfu, PositiveFloat, PositiveInt
from t5x_style.reporting.figures.scaling import check_suffix, scaling_figure
from t5x_style.reporting.text.accounts import accounts_text
from t5x_style.reporting.text.plan import plan_text
from t5x_style.reporting.text.plan_json import plan_json

CONFIGURABLES = ("t5x_style.accounting.architecture",)

PRESETS = ("bloomberggpt",)


@gin.configurable
def plan(
    *,
    flops: PositiveFloat | None = None,
    chip: str | None = None,
    chips: PositiveInt | None = None,
    days: PositiveFloat | None = None,
    chip_hours: PositiveFloat | None = None,
    money: PositiveFloat | None = None,
    price_per_chip_hour: PositiveFloat | None = None,
    cpu_minutes: PositiveFloat | None = None,
    mfu: Mfu | None = None,
    unique_tokens: Mapping[str, PositiveFloat] | None = None,
    shares: Mapping[str, PositiveFloat] | str | None = None,
    domain: str | None = None,
    max_epochs: PositiveFloat | Mapping[str, PositiveFloat] = 4.0,
    past_forty_epochs: bool = False,
    served_tokens: PositiveFloat | None = None,
    law: str | None = None,
    own_law: str | None = None,
    architecture: Architecture | None = None,
    vocab_size: PositiveInt | None = None,
    style: str | None = None,
    sequence_length: PositiveInt = 2048,
    batch_sequences: PositiveInt | None = None,
    write: str | None = None,
    figure: str | None = None,
    preset: str | None = None,
    dry_run: bool = False,
) -> dict[str, Any]:
    """Turns a budget and its data into a run: model, tokens, blend, recipe, mesh, time and cost.

    The budget is one of --flops, --days (with --chip and --chips), --chip_hours (with --chip),
    --money (with --chip and --price_per_chip_hour) and --cpu_minutes. The optimum of every scaling
    law is shown. The plan follows one of them, within the limits of the data.

    Args:
      flops: the budget in model FLOPs by 6ND.
      chip: name of a chip (v5e, v5p, h100 ...), or the dotted path of your own (my_team.MY_CHIP).
      chips: number of chips.
      days: duration of the run.
      chip_hours: chips x hours, as in a grant of GPU hours.
      money: the budget for chips, in any currency.
      price_per_chip_hour: in the same currency.
      cpu_minutes: minutes on the CPU of this machine; its speed is measured first.
      mfu: share of the chips' dense bfloat16 peak that the run reaches, by 6ND. The default is 0.4;
        for a CPU, 0.25 of its measured speed.
      unique_tokens: source -> its tokens in one epoch, as {'legal': 2e9, 'general': 3e9}.
      shares: source -> its share of the blend; the shares sum to 1. The default is by size;
        'choose' finds the shares that serve the domain.
      domain: the source that the model is for.
      max_epochs: the most passes over a source, one number or {'source': number}.
      past_forty_epochs: allows more than 40 epochs.
      served_tokens: tokens that the model will read and write in service.
      law: the law to follow. The default is the own law if there is one, else besiroglu.
      own_law: a JSON file from t5x-style fit: a law of your own runs.
      architecture: a given model, as @Architecture(). By default the plan builds one.
      vocab_size: vocabulary size of a given tokenizer. By default Tao's law chooses.
      style: style of the model that the plan builds, llama (the default) or bloomberggpt.
      sequence_length: tokens per sequence.
      batch_sequences: sequences per step. By default StepLaw chooses.
      write: a gin file to write, for t5x-style train.
      figure: a picture to draw (.svg, .png or .html): N and D against FLOPs, by every law.
      preset: 'bloomberggpt' prints the accounts of that run instead.
      dry_run: write no file.
    """
    refuse_unconsumed()
    if figure is not None:
        local_path(figure, "--figure")
        check_suffix(figure)
        refuse_foreign(figure, "--figure")
    if write is not None:
        check_target(write)
    if preset is not None:
        one_of("--preset", preset, PRESETS)
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
    own = None if own_law is None else read_law(local_path(own_law, "--own_law"))
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
    return plan_json(made)


def _refuse_together(flag: str, **others: object) -> None:
    """Refuse the flags that have no effect together with `flag`."""
    for name, value in others.items():
        if value is not None:
            raise UsageError(f"--{name} has no effect together with {flag}: keep one of them")


def _bloomberggpt(figure: str | None, dry_run: bool) -> dict[str, Any]:
    """The accounts of the run, and the plan for its budget and data."""
    accounts = bloomberggpt.accounts()
    made = make_plan(
        budget_of(flops=bloomberggpt.BUDGET_FLOPS),
        sources_of(bloomberggpt.UNIQUE_TOKENS, None, 1.0),
        architecture=bloomberggpt.ARCHITECTURE,
        sequence_length=bloomberggpt.SEQUENCE_LENGTH,
    )
    print(accounts_text(accounts))
    print("\nThe plan for its budget and data, every token used at most once\n")
    print(plan_text(made))
    if figure is not None and not dry_run:
        total, tokens = accounts["total_parameters"], accounts["tokens"]
        _draw(figure, bloomberggpt.BUDGET_FLOPS, total, tokens, "BloombergGPT")
    return {**accounts, "plan": plan_json(made)}


def _draw(figure: str, flops: float, params: float, tokens: float, name: str) -> None:
    scaling_figure(figure, flops=flops, plan_params=params, plan_tokens=tokens, plan_name=name)
    print(f"\ndrawn: {figure}")
