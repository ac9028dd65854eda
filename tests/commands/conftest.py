"""The toy verb beside the real ones, and gin as it was before the test."""

import importlib.util
import sys
from pathlib import Path

import gin
import pytest

from t5x_style.commands import main as main_module

TOY = "t5x_style.commands.toy"

RUN_FILE = """
MODEL_DIR = %gin.REQUIRED
LEARNING_RATE = 1e-3
TRAIN_STEPS = 20

toy.model = @ToyModel()
toy.optimizer = @toy_adamw()
toy.model_dir = %MODEL_DIR
toy.steps = %TRAIN_STEPS
ToyModel.width = 8
toy_adamw.learning_rate = %LEARNING_RATE
"""


def load_toy():
    """The toy module under the name that a verb's module has; registered with gin once."""
    if TOY not in sys.modules:
        spec = importlib.util.spec_from_file_location(TOY, Path(__file__).parent / "toy.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[TOY] = module
        spec.loader.exec_module(module)
    return sys.modules[TOY]


@pytest.fixture
def toy(monkeypatch):
    module = load_toy()
    monkeypatch.setattr(main_module, "VERBS", {"toy": "nothing", "config": "shows"})
    yield module
    gin.clear_config()


@pytest.fixture
def run_toy(toy, tmp_path, capfd):
    """Runs `t5x-style toy` on a run file's text and flags: (status, result or None, stderr)."""
    import json

    def run(*flags: str, text: str = RUN_FILE, model_dir: bool = True):
        path = tmp_path / "run.gin"
        path.write_text(text)
        given = ("--gin.MODEL_DIR=/tmp/x",) if model_dir else ()
        status = main_module.main(["toy", f"--gin_file={path}", "--json", *given, *flags])
        captured = capfd.readouterr()
        return status, json.loads(captured.out) if captured.out else None, captured.err

    return run
