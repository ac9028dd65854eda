"""Checkpoints: written whole or not at all, found, verified, and read."""

from t5x_style.checkpoints.checkpointer import Checkpointer
from t5x_style.checkpoints.find import (
    Found,
    Refused,
    checkpoint_steps,
    find_checkpoint,
    find_newest,
    listed,
    named_checkpoints,
    refuse_absent,
    restore_parameters,
    run_folder,
    set_aside,
)
from t5x_style.checkpoints.saving import Saver

__all__ = [
    "Checkpointer",
    "Found",
    "Refused",
    "Saver",
    "checkpoint_steps",
    "find_checkpoint",
    "find_newest",
    "listed",
    "named_checkpoints",
    "refuse_absent",
    "restore_parameters",
    "run_folder",
    "set_aside",
]
