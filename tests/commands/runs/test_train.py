"""`train`: what is refused before any work. The whole way is in tests/test_end_to_end.py."""

import json

import pytest

from t5x_style import data
from t5x_style.commands.main import main
from t5x_style.commands.runs import train
from t5x_style.hosts import Watchdog
from t5x_style.hosts.watchdog import activity_of_several

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


@pytest.mark.parametrize("content", [b"train.steps = (1,", b"\xff\xfe\x00\x00", b"\x00" * 64])
def test_a_damaged_config_of_the_start_before_stops_no_run(content, tmp_path, capsys):
    """It is written again; only what has changed since then is not known."""
    (tmp_path / "config.gin").write_bytes(content)
    assert train._changes(str(tmp_path), "train.steps = 1\n") == []
    assert f"{tmp_path / 'config.gin'} is damaged" in capsys.readouterr().err
    (tmp_path / "config.gin").write_text("train.steps = 2\n")
    (change,) = train._changes(str(tmp_path), "train.steps = 1\n")
    assert (change["old"], change["new"]) == ("2", "1")


def test_while_stores_are_built_a_run_has_no_limit(monkeypatch):
    limits = []

    def look(*_, **__):
        limits.append(activity_of_several().limit)

    monkeypatch.setattr(data, "ensure_stores", look)
    with Watchdog(first_seconds=7.0).watching():
        train.shared_stores(None, build=True)
        look()
    assert limits == [float("inf"), 7.0]
