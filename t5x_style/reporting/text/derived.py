"""The values that a run derives before step 0, and the tokens of its sources, as tables."""

import itertools
from collections.abc import Mapping
from typing import Any

from t5x_style.accounting import SourceAccount
from t5x_style.quantities import count
from t5x_style.reporting.run.derived_run import DerivedRun
from t5x_style.reporting.text.tables import dtypes_text


def derived_rows(derived: DerivedRun) -> list[tuple[str, str, str]]:
    """plan.json as a table: (quantity, value, where the value comes from)."""
    horizon, flops, topology = derived.horizon, derived.flops_per_token, derived.topology
    arch, tokens = derived.architecture, derived.horizon.tokens
    batches = ", then ".join(
        f"{phase.sequences:,} x {phase.steps:,} steps" for phase in horizon.phases
    )
    lengths = ", then ".join(
        f"{length:,} for {count(sum(phase.tokens for phase in phases))} tokens"
        for length, phases in itertools.groupby(
            horizon.phases, key=lambda phase: phase.sequence_length
        )
    )
    rows = [
        (
            "parameters",
            f"{derived.parameters['total']:,}",
            f"{derived.parameters['non_embedding']:,} without embeddings; L {arch.layers}, "
            f"D {arch.d_model}, F {arch.d_ff}, heads {arch.heads}/{arch.kv_heads} x "
            f"{arch.head_dim}, V {arch.vocab_size:,}",
        ),
        ("tokens", f"{tokens:,}", f"{horizon.tokens_per_param:.1f} per parameter"),
        ("steps", f"{horizon.steps:,}", f"sequences per step: {batches}"),
        ("sequence length", f"{horizon.sequence_length:,}", f"TASK_FEATURE_LENGTHS: {lengths}"),
        (
            "FLOPs, 6 N D",
            f"{flops['model_flops_6nd'] * tokens:.4g}",
            f"full {flops['model_flops_full'] * tokens:.4g}, causal "
            f"{flops['model_flops_causal'] * tokens:.4g}, hardware "
            f"{flops['hardware_flops'] * tokens:.4g} (remat {topology.remat})",
        ),
        _learning_rate_row(derived.optimizer),
        (
            "mesh",
            topology.mesh_text,
            f"compute in {dtypes_text(derived.compute_dtype, arch.matmul_dtype)}, attention "
            f"{topology.kernel}",
        ),
    ]
    rule = derived.early_stopping
    if rule is not None:
        watched = ", ".join(f"{name} {weight:.1%}" for name, weight in rule["weights"].items())
        rows.append(
            (
                "early stopping",
                rule["mode"],
                f"when {rule['measure'].replace('_', ' ')} of {watched} has not fallen by more "
                f"than {rule['min_delta']:g} in {count(rule['patience_tokens'])} tokens",
            )
        )
    for name, law in derived.laws.items():
        if law.optimal_params is None or law.optimal_tokens is None:
            continue
        efficiency = law.compute_efficiency
        rows.append(
            (
                f"optimum, {name}",
                f"N {count(law.optimal_params)}",
                f"D {count(law.optimal_tokens)} for the same 6 N D"
                + ("" if efficiency is None else f"; compute efficiency {efficiency:.3f}"),
            )
        )
    return rows


def _learning_rate_row(optimizer: dict[str, Any]) -> tuple[str, str, str]:
    """Of AdamW's own schedule the peak and the shape; otherwise the fields of what was bound."""
    schedule = optimizer.get("schedule", optimizer)
    if not {"peak_learning_rate", "shape", "warmup_tokens", "final_fraction"} <= schedule.keys():
        return "learning rate", "", ", ".join(f"{key} {value}" for key, value in schedule.items())
    return (
        "learning rate",
        f"{schedule['peak_learning_rate']:g}",
        f"{schedule['shape']}, warm-up {count(schedule['warmup_tokens'])} tokens, to "
        f"{schedule['final_fraction']:g} of the peak",
    )


def source_rows(derived: DerivedRun) -> list[tuple[str, ...]]:
    """The planned tokens of each source in plan.json, under SOURCE_HEADERS."""
    rows = []
    for name, source in derived.sources.items():
        first, last = f"{source.first_share:.2%}", f"{source.last_share:.2%}"
        share = first if first == last else f"{first} to {last}"
        rows.append((name, share, *_account_cells(source.account)))
    return rows


_ACCOUNT_HEADERS = ("unique tokens", "epochs", "effective tokens")
SOURCE_HEADERS = ("source", "share planned", "tokens planned", *_ACCOUNT_HEADERS)


def achieved_rows(accounts: Mapping[str, SourceAccount]) -> list[tuple[str, ...]]:
    """The tokens of each source so far (see `Run.accounts`), under ACHIEVED_HEADERS."""
    return [
        (name, f"{account.share:.2%}", *_account_cells(account))
        for name, account in accounts.items()
    ]


ACHIEVED_HEADERS = ("source", "share so far", "tokens so far", *_ACCOUNT_HEADERS)


def _account_cells(account: SourceAccount) -> tuple[str, ...]:
    return (
        f"{account.tokens:,}",
        f"{account.unique_tokens:,}",
        f"{account.epochs:.2f}",
        f"{account.effective_tokens:,.0f}",
    )
