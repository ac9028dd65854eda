"""Two configurations compared as text."""

import pytest

from t5x_style.config.checks import config_differences
from t5x_style.errors import UsageError

OLD = """
LAYERS = 2
RATE = 1e-3
Model.layers = %LAYERS
Model.width = 8
adamw.learning_rate = %RATE
train.model = @Model()
train.lengths = {'targets': %LAYERS}
import a.module.that.is.gone
"""


def test_macros_are_put_in_and_references_compared_as_written():
    new = (
        OLD.replace("LAYERS = 2", "LAYERS = 4").replace("%RATE", "0.001").replace("Model()", "M()")
    )
    assert config_differences(OLD, new) == [
        {"name": "Model.layers", "old": "2", "new": "4"},
        {"name": "train.lengths", "old": "{'targets': 2}", "new": "{'targets': 4}"},
        {"name": "train.model", "old": "@Model()", "new": "@M()"},
    ]


def test_what_only_one_side_binds():
    assert config_differences("a/M.x = 1\n", "M.y = None\n") == [
        {"name": "M.y", "old": None, "new": "None"},
        {"name": "a/M.x", "old": "1", "new": None},
    ]


def test_the_same_said_otherwise_is_no_difference():
    assert config_differences("M.x = 0.001  # why\n", "X = 1e-3\nM.x = %X\n") == []
    assert config_differences(OLD, OLD) == []


def test_what_cannot_be_compared():
    with pytest.raises(UsageError, match=r"the new one includes 'x\.gin'"):
        config_differences("", "include 'x.gin'\n")
    with pytest.raises(UsageError, match="the old configuration is not gin"):
        config_differences("M.x = (", "")
    assert config_differences("A = %B\nB = %A\nM.x = %A\n", "M.x = 1\n")[0]["new"] == "1"
