"""`train`: what is refused before any work. The whole way is in tests/test_end_to_end.py."""

import json

import pytest

from t5x_style.commands.main import main

QUICKSTART = "--gin_file=gin_configs/runs/quickstart.gin"


def test_a_law_of_ones_own_is_read_before_any_work(tmp_path, capsys):
    (tmp_path / "mine.json").write_text(json.dumps({"name": "mine"}))
    for given, told in (("mne.json", "did you mean 'mine.json'"), ("mine.json", "irreducible")):
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
        assert told in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.json"]


@pytest.mark.parametrize(
    ("flags", "told"),
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
def test_rules_of_early_stopping_that_are_none(flags, told, tmp_path, capsys):
    status = main(["train", QUICKSTART, f"--gin.MODEL_DIR={tmp_path / 'run'}", *flags])
    assert status == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
