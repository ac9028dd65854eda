"""The trials of a grid and their names."""

import gin
import hypothesis
import hypothesis.strategies as st
import pytest

from t5x_style.errors import UsageError
from t5x_style.sweeps.grid import gin_flag, gin_text, grid_trials


def test_every_combination_in_order_and_readable():
    trials = grid_trials({"LEARNING_RATE": [1e-3, 2e-3], "Architecture.d_model": [64, 96]})
    assert [trial.name for trial in trials] == [
        "LEARNING_RATE=0.001,d_model=64",
        "LEARNING_RATE=0.001,d_model=96",
        "LEARNING_RATE=0.002,d_model=64",
        "LEARNING_RATE=0.002,d_model=96",
    ]
    assert trials[1].values == {"LEARNING_RATE": 1e-3, "Architecture.d_model": 96}


def test_names_that_would_be_the_same_are_told_apart():
    names = [t.name for t in grid_trials({"a/Source.share": [1.0], "b/Source.share": [0.5]})]
    assert names == ["a-Source.share=1.0,b-Source.share=0.5"]
    paths = [t.name for t in grid_trials({"PATH": ["a/b", "a:b", "@adamw()", "x" * 300]})]
    assert len(set(paths)) == 4
    assert all(len(name) <= 120 and "/" not in name for name in paths)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
).filter(lambda value: not (isinstance(value, str) and value[:1] in "@%"))  # fmt: skip


def _has_reference(value) -> bool:
    if isinstance(value, str):
        return value[:1] in ("@", "%")
    if isinstance(value, dict):
        return any(map(_has_reference, [*value, *value.values()]))
    return isinstance(value, list) and any(map(_has_reference, value))


@hypothesis.given(values.filter(lambda value: not _has_reference(value)))
@hypothesis.settings(deadline=None, max_examples=300)
def test_what_is_written_on_a_command_line_is_read_back_by_gin(value):
    text = gin_text(value, "here")
    assert gin.config.parse_value(text) == value


@hypothesis.given(st.lists(st.text(max_size=200) | st.integers() | st.floats(), unique_by=repr))
@hypothesis.settings(deadline=None)
def test_no_two_trials_share_a_directory(points):
    hypothesis.assume(points)
    names = [trial.name for trial in grid_trials({"X": points})]
    assert len(set(names)) == len(names)
    assert all(len(name.encode()) <= 250 and "/" not in name for name in names)


def test_references_are_strings():
    assert gin_flag("train.optimizer", "@adamw()") == "--gin.train.optimizer=@adamw()"
    assert gin_flag("X", ["%A", "b"]) == "--gin.X=[%A, 'b']"
    assert gin_flag("MODEL_DIR", "/tmp/a b") == "--gin.MODEL_DIR='/tmp/a b'"


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({}, "sweep.grid is empty"),
        ({"X": []}, r"sweep.grid\['X'\] = \[\] is not a list of values"),
        ({"X": "abc"}, "is not a list of values"),
        ({"X": 3}, "is not a list of values"),
        ({"X": [1, 2, 1]}, r"sweep.grid\['X'\] has 1 twice"),
        ({"X": [len]}, "write a reference as a string, such as '@adamw"),
        ({"MODEL_DIR": ["a"]}, "sets MODEL_DIR"),
    ],
)
def test_grids_that_make_no_sense(grid, message):
    with pytest.raises(UsageError, match=message):
        grid_trials(grid)


def test_a_name_of_120_characters_is_the_longest_that_stays_readable():
    (fits,) = grid_trials({"X": ["a" * 118]})
    assert fits.name == "X=" + "a" * 118
    (cut,) = grid_trials({"X": ["a" * 119]})
    assert len(cut.name) == 120
    assert cut.name.startswith("X=" + "a" * 109 + "-")


def test_a_label_is_as_short_as_can_be_and_values_are_written_as_gin():
    grid = {"a/M.width": [None], "b/M.width": [True], "train.seed": [{"k": (1, 2.5)}]}
    (trial,) = grid_trials(grid)
    assert trial.name.startswith("a-M.width=None,b-M.width=True,seed=-k-1,-2.5-")
    assert gin_text({"k": (1, "@x()")}, "here") == "{'k': [1, @x()]}"
