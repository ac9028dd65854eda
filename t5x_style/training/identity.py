"""The identity of a run: the values that may not change between two of its starts."""

import dataclasses
from typing import Any

from t5x_style.data.blend.blend import ROW_ORDER
from t5x_style.data.rows.blend_history import asked_blend
from t5x_style.data.stores.token_store import TOKENS_FILE
from t5x_style.errors import UsageError
from t5x_style.training.run import Run, renormalised_caps


def identity(run: Run) -> dict[str, Any]:
    """The model and the rows of a run, in JSON types. If one differs, it is another run."""
    lengths = run.row_plan.lengths
    caps = renormalised_caps(run.stores, run.max_epochs, run.at_cap)
    return {
        "architecture": dataclasses.asdict(run.spec.architecture),
        "tokenizer": run.stores.tokenizer.hash,
        "blend": asked_blend(run.stores, caps),
        "stores": {name: store.meta["fingerprint"] for name, store in run.stores.train.items()},
        "tokens": {
            name: store.meta["checksums"][TOKENS_FILE] for name, store in run.stores.train.items()
        },
        # One number, or (first row, number) of each phase.
        "sequence_length": lengths[0][1]
        if len(lengths) == 1
        else [list(phase) for phase in lengths],
        "seed": run.seed,
        "row_order": ROW_ORDER,
        "windows": run.spec.packing.windows,
    }


def refuse_another_run(old: dict[str, Any], new: dict[str, Any], run: Run) -> None:
    """Compare the identity of the existing run with that of the configured one.

    Args:
      old, new: of the existing run and of `run`.
      run: may allow another blend, also with further sources.

    Raises:
      UsageError: continuing would corrupt the existing run; names every difference, and the
        settings that were changed since the last start.
    """
    allow_blend_change = run.allow_blend_change
    if "tokens" not in old:
        # A run of an older version: its stores are known by what they were made from.
        new = {name: value for name, value in new.items() if name != "tokens"}
    of_sources = {name: {**new[name], **old[name]} for name in {"stores", "tokens"} & new.keys()}
    with_blend = {**old, "blend": new["blend"], **of_sources}
    differences = [
        _difference(name, before, after)
        for name, before, after in _flat_differences(with_blend if allow_blend_change else old, new)
    ]
    if not differences:
        return
    advice = "name another MODEL_DIR, or start from its weights with INITIAL_CHECKPOINT_PATH"
    if old.get("row_order") != new.get("row_order"):
        advice += (
            ";\nthe run was started by a version of t5x_style with another order of rows: "
            "this version would continue it with other rows"
        )
    if not allow_blend_change and with_blend == new:
        advice += (
            ";\ntrain.allow_blend_change = True continues from the newest checkpoint with the new "
            "blend; the rows before it stay the same"
        )
    raise UsageError(
        f"MODEL_DIR = {run.model_dir} holds another run, which this configuration would corrupt:"
        + "".join(f"\n  {difference}" for difference in differences)
        + f"\n{_settings_changed(run)}\n{advice}"
    )


def _difference(name: str, before: Any, after: Any) -> str:
    """A line about a value that differs. A digest tells a reader nothing."""
    if name.startswith("stores."):
        if before is None or after is None:
            return f"{name}: only {'asked for' if before is None else 'there'}"
        return f"{name}: its text, vocabulary, seed or cleaning is another than there"
    if name.startswith("tokens."):
        if before is None or after is None:
            return f"{name}: only {'asked for' if before is None else 'there'}"
        return f"{name}: the ids in its store are others than there"
    if name == "tokenizer":
        return "tokenizer: the vocabulary is another than there"
    return f"{name}: {before!r} there, {after!r} asked for"


def _settings_changed(run: Run) -> str:
    """The settings that differ from those of the last start, as text."""
    if not run.config_changes:
        return (
            "no setting differs from the last start: a file that the sources or the vocabulary "
            "name has another content, or t5x_style is of another version"
        )
    listed = "".join(
        f"\n  {change['name']}: {change['old']} there, {change['new']} now"
        for change in run.config_changes
    )
    return f"settings that differ from the last start:{listed}"


def _flat_differences(old: Any, new: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for key in sorted(old.keys() | new.keys())
            for difference in _flat_differences(
                old.get(key), new.get(key), f"{name}.{key}" if name else key
            )
        ]
    return [] if old == new else [(name, old, new)]
