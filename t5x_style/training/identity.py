"""The identity of a run: the values that may not change between two of its starts."""

import dataclasses
from typing import Any

from t5x_style.data.blend.blend import ROW_ORDER
from t5x_style.data.rows.blend_history import asked_blend
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
        # One number, or (first row, number) of each phase.
        "sequence_length": lengths[0][1]
        if len(lengths) == 1
        else [list(phase) for phase in lengths],
        "seed": run.seed,
        "row_order": ROW_ORDER,
        "windows": run.spec.packing.windows,
    }


def refuse_another_run(
    old: dict[str, Any], new: dict[str, Any], model_dir: str, *, allow_blend_change: bool
) -> None:
    """Compare the identity of the existing run with that of the configured one.

    Args:
      allow_blend_change: whether the blend may differ, also by further sources.

    Raises:
      UsageError: continuing would corrupt the existing run; names every difference.
    """
    with_blend = {**old, "blend": new["blend"], "stores": {**new["stores"], **old["stores"]}}
    differences = [
        f"{name}: {before!r} there, {after!r} asked for"
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
        f"MODEL_DIR = {model_dir} holds another run, which this configuration would corrupt:"
        + "".join(f"\n  {difference}" for difference in differences)
        + f"\n{advice}"
    )


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
