"""`train`: what is refused before any work. The whole way is in tests/test_end_to_end.py."""

import json

import pytest

from t5x_style.commands.main import main

QUICKSTART = "--gin_file=gin_configs/runs/quickstart.gin"


def test_a_law_of_ones_own_is_read_before_any_work(tmp_path, capsys):
    (tmp_path / "mine.json").write_text(json.dumps({"name": "mine"}))
    for given, message in (("mne.json", "did you mean 'mine.json'"), ("mine.json", "irreducible")):
        status = main(
            [
                "train",
                QUICKSTART,
                f"--gin.MODEL_DIR={tmp_path / 'run'}",
                f"--gin.CACHE_DIR={tmp_path / 'stores'}",
                f"--own_law={tmp_path / given}",
            ]
        )
        assert status == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gin.EarlyStopping.patience_tokens=1000"], "EarlyStopping"),
        (["--gin.EARLY_STOPPING=@EarlyStopping()"], "patience_tokens"),
        (
            [
                "--gin.EARLY_STOPPING=@EarlyStopping()",
                "--gin.EarlyStopping.patience_tokens=1000",
                "--gin.EarlyStopping.mode=stopp",
            ],
            "did you mean 'stop'",
        ),
        (
            [
                "--gin.EARLY_STOPPING=@EarlyStopping()",
                "--gin.EarlyStopping.patience_tokens=1000",
                "--gin.EarlyStopping.sources=legal",
            ],
            "write ['legal']",
        ),
    ],
)
def test_rules_of_early_stopping_that_are_none(flags, message, tmp_path, capsys):
    status = main(["train", QUICKSTART, f"--gin.MODEL_DIR={tmp_path / 'run'}", *flags])
    assert status == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--gin.MODEL_DIR=gs://b/run", "MODEL_DIR = 'gs://b/run': gs:// is not a file system"),
        (
            "--gin.INITIAL_CHECKPOINT_PATH=gs://b/run",
            "INITIAL_CHECKPOINT_PATH = 'gs://b/run': gs://",
        ),
        ("--gin.AT_CAP='renormalize'", "did you mean 'renormalise'"),
        ("--gin.train.max_epochs={'legal': 'four'}", "'legal': 'four' that"),
        ("--gin.TASK_FEATURE_LENGTHS={'targets': [(64, 1e6), (128, None)]}", "whole number"),
        ("--gin.TASK_FEATURE_LENGTHS={'targets': [(64, 1000), (128, 1000)]}", "ends with"),
        ("--gin.BATCH_SIZE=[(4, 9_000_000), (16, None)]", "ends before the phase of 16 sequences"),
    ],
)
def test_paths_phases_and_caps_are_checked_before_any_work(flag, message, tmp_path, capsys):
    folders = [f"--gin.MODEL_DIR={tmp_path / 'run'}", f"--gin.CACHE_DIR={tmp_path / 'stores'}"]
    assert main(["train", QUICKSTART, *folders, flag]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
