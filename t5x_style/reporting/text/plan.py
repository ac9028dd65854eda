"""A plan as text: a section for each decision."""

import textwrap
from collections.abc import Mapping

from t5x_style.accounting import (
    Allocation,
    Plan,
    forward_flops_per_token,
    parameters,
    total_parameters,
)
from t5x_style.accounting.laws.data_constrained import C4_LAW
from t5x_style.accounting.layouts.memory import Memory
from t5x_style.accounting.layouts.meshes import Candidate
from t5x_style.accounting.planner.budget import THIS_CPU
from t5x_style.quantities import SECONDS_PER_DAY, byte_count, count, duration, scientific
from t5x_style.reporting.text.tables import table

MOST_MESHES = 6
LINE_WIDTH = 120


def plan_text(plan: Plan) -> str:
    """The whole plan, a table for each decision."""
    sections = [
        _budget(plan),
        _allocations(plan),
        _costs_of_caps(plan),
        _served(plan),
        _model(plan),
        _blend(plan),
        _recipe(plan),
        _chips(plan),
        _sensitivity(plan),
        _notes(plan),
    ]
    return "\n\n".join(section for section in sections if section)


def _budget(plan: Plan) -> str:
    budget = plan.budget
    text = f"budget: {scientific(budget.flops)} model FLOPs (6 N D)"
    hours = budget.chip_hours(budget.flops)
    if hours is not None:
        assert budget.peak_flops is not None
        peak = f"{budget.peak_flops / 1e12:.4g} TFLOP/s" + (
            " measured in float32" if budget.form == "cpu_minutes" else " peak in bfloat16"
        )
        text += f" = {hours:,.4g} chip hours of {budget.chip} ({peak})"
        text += f" at {budget.mfu:.1%} MFU by 6ND"
    days, cost = budget.days(budget.flops), budget.cost(budget.flops)
    if days is not None:
        text += f", {duration(days * SECONDS_PER_DAY)} on {budget.chips:,}"
    if cost is not None:
        text += f", costing {cost:,.0f}"
    return text


def _allocations(plan: Plan) -> str:
    rows = [_allocation_row(plan, row.law, row, "optimum") for row in plan.optima]
    rows += [_allocation_row(plan, row.law, row, _ends(row)) for row in plan.within_data]
    rows.append(_allocation_row(plan, "recommended", plan.recommended, f"by {plan.law.name}"))
    if plan.bloomberggpt is not None:
        why = "BloombergGPT's rule: every token once, 30 % of the budget in reserve"
        rows.append(_allocation_row(plan, "one epoch", plan.bloomberggpt, why))
    rows.append(_allocation_row(plan, "this plan", plan.chosen, "the model below, in whole steps"))
    headers = (
        "law",
        "parameters",
        "10 to 90 %",
        "tokens",
        "10 to 90 %",
        "effective tokens",
        "tokens/param",
        "of budget",
        "loss",
        "efficiency",
        "",
    )
    return table(rows, headers)


def _allocation_row(plan: Plan, name: str, row: Allocation, note: str) -> tuple[object, ...]:
    params, tokens = ("", "") if row.interval is None else map(_range, row.interval)
    return (
        name,
        count(row.params),
        params,
        count(row.tokens),
        tokens,
        count(row.effective_tokens),
        f"{row.tokens / row.params:.1f}",
        f"{6 * row.params * row.tokens / plan.budget.flops:.0%}",
        None if row.loss is None else f"{row.loss:.4f}",
        None if row.efficiency is None else f"{row.efficiency:.1%}",
        note,
    )


def _range(ends: tuple[float, float]) -> str:
    return f"{count(ends[0])} to {count(ends[1])}"


def _ends(row: Allocation) -> str:
    if row.scarce_source is not None:
        return f"within the data: limited by {row.scarce_source}"
    return "within the data"


def _costs_of_caps(plan: Plan) -> str:
    if not plan.cap_costs or plan.cap_costs[-1].loss < 1e-6:
        return ""
    rows = []
    for cost in plan.cap_costs:
        money = plan.budget.cost(cost.flops)
        rows.append(
            (
                cost.source or "all together",
                f"+{cost.loss:.4f}",
                f"{cost.efficiency:.1%}",
                scientific(cost.flops),
                None if money is None else f"{money:,.0f}",
            )
        )
    headers = ("cost of each data limit", "loss", "efficiency", "FLOPs", "money")
    return table(rows, headers)


def _served(plan: Plan) -> str:
    served = plan.served
    if served is None:
        return ""
    text = f"with {count(served.served_tokens)} tokens to be served: "
    if served.saving <= 0:
        return text + "no smaller model reaches this plan's loss for less within the data"
    return text + (
        f"{count(served.allocation.params)} parameters on {count(served.allocation.tokens)} tokens "
        f"reach this plan's loss with {served.saving:.1%} fewer FLOPs over training and "
        f"inference; the training takes {served.training_flops / plan.budget.flops:.2f} times the "
        "budget (Sardana et al. 2024)"
    )


def _model(plan: Plan) -> str:
    arch = plan.architecture
    terms = parameters(arch)
    total = total_parameters(arch)
    forward = forward_flops_per_token(arch, plan.recipe.sequence_length)
    text = (
        f"model: L {arch.layers}, D {arch.d_model}, F {arch.d_ff}, heads "
        f"{arch.heads}/{arch.kv_heads} x {arch.head_dim}, V {arch.vocab_size:,}, "
        f"{arch.positions}, {arch.norm} norm, {arch.feed_forward}: {total:,} parameters "
        f"({total / plan.recommended.params - 1:+.1%} of the recommended)"
    )
    if plan.vocabulary:
        sizes = ", ".join(f"{name} {size:,}" for name, size in plan.vocabulary.items())
        text += f"\nvocabulary by Tao et al. 2024: {sizes}"
    params = table([*terms.items(), ("total", total)], ("term", "parameters"))
    flops = table(
        [(term, int(value)) for term, value in (*forward.items(), ("sum", sum(forward.values())))],
        (f"forward, S = {plan.recipe.sequence_length}", "FLOPs/token"),
    )
    return f"{text}\n{_side_by_side(params, flops)}"


def _side_by_side(left: str, right: str) -> str:
    """Two tables next to each other."""
    lefts, rights = left.splitlines(), right.splitlines()
    width = max(map(len, lefts)) + 4
    height = max(len(lefts), len(rights))
    lefts += [""] * (height - len(lefts))
    rights += [""] * (height - len(rights))
    return "\n".join(f"{a.ljust(width)}{b}".rstrip() for a, b in zip(lefts, rights, strict=True))


def _blend(plan: Plan) -> str:
    sources, total = plan.sources, plan.chosen.tokens
    if not sources.shares:
        return ""
    epochs, tokens = sources.epochs(total), sources.tokens(total)
    rows = [
        (
            name,
            count(sources.unique_tokens[name]),
            f"{share:.2%}",
            count(tokens[name]),
            f"{epochs[name]:.2f}",
            f"{sources.max_epochs[name]:g}",
            count(sources.effective_tokens_of(name, total)),
        )
        for name, share in sources.shares.items()
    ]
    rows.append(
        ("total", count(sum(sources.unique_tokens.values())), f"{sum(sources.shares.values()):.2%}",
         count(total), "", "", count(sources.effective_tokens(total)))
    )  # fmt: skip
    headers = (
        "source",
        "unique tokens",
        "share",
        "tokens",
        "epochs",
        "max epochs",
        "effective tokens",
    )
    return table(rows, headers)


def _recipe(plan: Plan) -> str:
    recipe = plan.recipe
    batch = recipe.batch_sequences * recipe.sequence_length
    number = -(-recipe.steps // plan.checkpoint_period)
    rows = [
        (
            "batch",
            f"{recipe.batch_sequences:,} x {recipe.sequence_length:,} = {count(batch)} tokens",
            recipe.rules["batch"],
        ),
        ("steps", f"{recipe.steps:,}", f"{recipe.tokens:,} tokens in whole steps"),
        ("learning rate", f"{recipe.learning_rate:g}", recipe.rules["learning rate"]),
        ("warm-up", f"{count(recipe.warmup_tokens)} tokens", recipe.rules["warm-up"]),
        ("horizon", f"{count(recipe.tokens)} tokens", recipe.rules["horizon"]),
        (
            "checkpoints",
            f"{number} of {byte_count(plan.checkpoint_bytes)}",
            f"one every {plan.checkpoint_period:,} steps: float32 parameters and two moments",
        ),
    ]
    width = max(len(value) for _, value, _ in rows)
    return "\n".join(
        textwrap.fill(
            f"{name:15}{value:{width}}  {rule}", LINE_WIDTH, subsequent_indent=" " * (17 + width)
        )
        for name, value, rule in rows
    )


def _chips(plan: Plan) -> str:
    if plan.meshes is None or plan.remat_memory is None:
        if plan.budget.chip in (None, THIS_CPU):
            return ""
        return f"meshes: --chips lists those of {plan.budget.chip} that hold this model"
    assert plan.budget.chips is not None
    rows = []
    for layout in plan.meshes[:MOST_MESHES]:
        roof = layout.roofline
        seconds = layout.step_seconds * plan.recipe.steps
        cost = None
        if plan.budget.price_per_chip_hour is not None:
            chip_hours = seconds / 3600 * plan.budget.chips
            cost = f"{chip_hours * plan.budget.price_per_chip_hour:,.0f}"
        rows.append(
            (
                layout.topology.mesh_text,
                layout.topology.remat,
                str(layout.topology.microbatches),
                byte_count(layout.bytes_per_chip["total"]),
                duration(layout.step_seconds),
                f"{roof.mfu('6nd'):.0%}",
                f"{roof.mfu('6nd', roof.hidden_seconds):.0%}"
                f" / {roof.mfu('6nd', roof.exposed_seconds):.0%}",
                roof.bound,
                duration(seconds),
                cost,
            )
        )
    headers = (
        "mesh",
        "remat",
        "microbatches",
        "per chip",
        "step",
        "MFU by 6ND",
        "hidden / exposed",
        "bound by",
        "run",
        "cost",
    )
    return f"{table(rows, headers)}\n\n{_memory(plan.meshes[0], plan.remat_memory)}"


def _memory(best: Candidate, remat_memory: Mapping[str, Memory]) -> str:
    rows = [
        (
            remat,
            *(
                byte_count(part * best.devices_per_chip)
                for part in (
                    memory.parameters,
                    memory.optimizer,
                    memory.gradients,
                    memory.activations,
                    memory.total,
                )
            ),
        )
        for remat, memory in remat_memory.items()
    ]
    topology = best.topology
    name = f"bytes per chip, {topology.mesh_text}, {topology.microbatches} microbatches"
    return table(rows, (name, "parameters", "optimizer", "gradients", "activations", "peak"))


def _sensitivity(plan: Plan) -> str:
    rows = []
    for row in plan.sensitivity:
        what = row.what if row.factor == 1 else f"{row.what} {row.factor - 1:+.0%}"
        rows.append(
            (
                what,
                scientific(row.flops),
                count(row.params),
                count(row.tokens),
                f"{row.loss:.4f}",
                f"{row.efficiency:.1%}",
                None if row.days is None else duration(row.days * SECONDS_PER_DAY),
                None if row.cost is None else f"{row.cost:,.0f}",
            )
        )
    headers = ("if", "FLOPs", "parameters", "tokens", "loss", "efficiency", "time", "cost")
    return table(rows, headers)


def _notes(plan: Plan) -> str:
    lines = [f"warning: {warning}" for warning in plan.warnings]
    laws = [*plan.laws.values(), *([C4_LAW] if plan.sources.shares else [])]
    lines += [f"{law.name}: {law.source}" for law in laws]
    lines.append(
        "losses are nats per token of a law's own text and vocabulary: compare them with each "
        "other, not with the loss of a run"
    )
    return "\n".join(lines)
