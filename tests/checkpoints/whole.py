"""Small whole checkpoints for the tests, made without Orbax."""

import json
import pathlib

from t5x_style.checkpoints import manifest


def write_checkpoint(
    model_dir: pathlib.Path, step: int, identity: dict | None = None, *, with_manifest: bool = True
) -> pathlib.Path:
    """A checkpoint of 16 tokens a step, as this version or an older one writes it."""
    folder = model_dir / f"checkpoint_{step}"
    run = {"tokens": 16 * step} | ({"has_manifest": True} if with_manifest else {})
    content = {
        "state/_METADATA": b'{"a": 1}',
        "state/manifest.ocdbt": b"\x01\x02\x03",
        "state/ocdbt.process_0/d/x": bytes(range(40)) + step.to_bytes(4),
        "run/metadata": json.dumps(run).encode(),
        "_CHECKPOINT_METADATA": b'{"item_handlers": {}}',
    }
    for name, written in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(written)
    if with_manifest:
        facts = {"step": step, "tokens": 16 * step, "identity": identity or {"seed": 7}}
        manifest.write(folder, facts)
    return folder
