"""The verb that shows configurations."""

import json

import gin
import pytest

from t5x_style.commands import main as main_module
from t5x_style.config import checks
from tests.commands.conftest import RUN_FILE


@pytest.fixture
def config(toy, capfd):
    def run(*flags):
        status = main_module.main(["config", *map(str, flags)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return run


def test_lists_every_configurable(config):
    status, out, _ = config()
    assert status == 0
    assert any(line.split(None, 1) == ["ToyModel", "A model."] for line in out.splitlines())
    assert not any(line.startswith("gin.") for line in out.splitlines())


def test_describes_one(config):
    status, out, _ = config("--name=ToyModel")
    assert status == 0
    assert "  ToyModel.layers (int, default 2)\n      how many of them.\n" in out
    status, _, err = config("--name=ToyModle")
    assert status == 2
    assert "did you mean 'ToyModel'?" in err


def test_resolves_a_run_and_what_it_prints_is_the_same_run(config, tmp_path, run_toy):
    path = tmp_path / "run.gin"
    path.write_text(RUN_FILE)
    status, out, _ = config(
        f"--gin_file={path}", "--gin.MODEL_DIR=/tmp/x", "--gin.ToyModel.layers=5"
    )
    assert status == 0
    assert f"toy.steps = 20 # {path}:9, TRAIN_STEPS at {path}:4" in " ".join(out.split())
    assert "ToyModel.layers = 5 # --gin.ToyModel.layers=5" in " ".join(out.split())
    assert "ToyModel.dropout = 0.0 # default" in " ".join(out.split())
    status, printed, err = run_toy(text=out, model_dir=False)
    assert status == 0, err
    _, direct, _ = run_toy("--gin.ToyModel.layers=5")
    assert checks.config_differences(direct["config"], printed["config"]) == []


def test_shows_mistakes_instead_of_refusing_them(config, tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(RUN_FILE + "LEARNING_RAET = 3\ntoy_adamw.b1 = %NOPE\n")
    status, out, _ = config(f"--gin_file={path}")
    assert status == 0
    assert "which nothing here reads; did you mean 'LEARNING_RATE'?" in out
    assert "no macro NOPE is defined" in out
    assert "required, and missing" in out


def test_names_what_has_no_value(config, tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(RUN_FILE.replace("ToyModel.width = 8\n", ""))
    status, out, _ = config(f"--gin_file={path}")
    assert status == 0
    assert "# ToyModel.width has no value and no default" in out.splitlines()


def test_compares_two_files_with_their_includes(config, tmp_path):
    (tmp_path / "run.gin").write_text(RUN_FILE)
    (tmp_path / "new.gin").write_text(f"include '{tmp_path}/run.gin'\nTRAIN_STEPS = 30\n")
    files = (f"--old={tmp_path}/run.gin", f"--new={tmp_path}/new.gin")
    assert config(*files)[1] == "toy.steps: 20 -> 30\n"
    _, out, _ = config(*files, "--json")
    assert json.loads(out) == {"differences": [{"name": "toy.steps", "old": "20", "new": "30"}]}
    assert config(files[0], f"--new={tmp_path}/run.gin")[1] == "no difference\n"
    assert config(files[0])[0] == 2


def test_every_configurable_of_the_framework_has_a_docstring(monkeypatch):
    main_module.load_everything()
    from t5x_style.config.graph import configurables
    from t5x_style.config.help import description

    ours = {k: v for k, v in configurables().items() if k.startswith("t5x_style.")}
    assert len(ours) > 10
    assert [name for name, found in ours.items() if not description(found.wrapped)] == []
    gin.clear_config()
