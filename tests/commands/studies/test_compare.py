"""Where two runs part, found in the files that they left."""

import contextlib
import io
import json

import pytest

from t5x_style.commands.main import main
from t5x_style.reporting import RunWriter


def run(*arguments: str) -> tuple[int, dict, str]:
    """Exit status, what --json prints, and what people read."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(["compare", *arguments, "--json"])
    return status, json.loads(out.getvalue() or "null"), err.getvalue()


@pytest.fixture
def compared(tmp_path):
    """A function from changes {step: {name: value}} of the second run to the comparison."""

    def compare(changes, *arguments, steps=6, config=("", "")):
        for name, changed, text in zip(("a", "b"), ({}, changes), config, strict=True):
            with RunWriter(tmp_path / name, resume_step=None) as writer:
                for step in range(1, steps + 1):
                    line = {"step": step, "tokens": 16 * step, "loss": 1 / step, "goodput": step}
                    if changed.get(step, {}) is not None:
                        writer.metrics({**line, **changed.get(step, {})})
                    if step == 4:
                        writer.metrics({"step": 4, "tokens": 64, "eval/law/loss": 2.0}
                                       | changed.get("evaluation", {}))  # fmt: skip
            (tmp_path / name / "config.gin").write_text(f"train.model_dir = 'runs/{name}'\n" + text)
        return run(f"--model_dirs={tmp_path / 'a'},{tmp_path / 'b'}", *arguments)

    return compare


def test_runs_that_differ_in_seconds_alone_are_the_same(compared):
    status, found, text = compared({3: {"goodput": 0.1, "seconds/step": 9.0, "mfu_full": 0.2}})
    assert status == 0
    assert (found["parted"], found["largest"], found["settings"]) == ([], None, [])
    assert "7 lines of the same steps, up to 6, are equal bit for bit" in text


def test_the_first_step_that_differs_is_named_with_every_number(compared):
    status, found, text = compared(
        {3: {"loss": 0.34, "grad_norm": 2.0}, 5: {"loss": 0.9}},
        config=("AdamW.b1 = 0.9\n", "AdamW.b1 = 0.8\n"),
    )
    assert status == 0
    assert [(one["step"], one["name"]) for one in found["parted"]] == [
        (3, "grad_norm"),
        (3, "loss"),
    ]
    assert found["parted"][0]["first"] is None
    assert found["settings"] == [{"name": "AdamW.b1", "old": "0.9", "new": "0.8"}]
    assert "the runs part at step 3; all lines of earlier steps are equal bit for bit" in text
    assert "AdamW.b1" in text


def test_the_last_bit_of_a_loss_counts_unless_a_tolerance_is_given(compared):
    changes = {2: {"loss": 0.5 + 2**-53}, 5: {"loss": 0.2 * (1 + 1e-7)}}
    _, found, text = compared(changes)
    assert found["parted"][0]["step"] == 2
    assert found["largest"]["step"] == 5
    assert "the largest difference is 1e-07, of loss at step 5" in text
    _, found, text = compared(changes, "--tolerance=1e-6")
    assert found["parted"] == []
    assert "equal to 1e-06 of themselves" in text


def test_a_source_may_have_the_name_of_a_clock(compared):
    _, found, _ = compared({2: {"loss/seconds_of_time": 1.0}})
    assert [one["name"] for one in found["parted"]] == ["loss/seconds_of_time"]


def test_evaluations_are_compared_and_missing_steps_are_named(compared):
    _, found, text = compared({"evaluation": {"eval/law/loss": 2.5}, 5: None, 6: None})
    assert [(one["step"], one["name"]) for one in found["parted"]] == [(4, "eval/law/loss")]
    assert found["only_first"] == [5, 6]
    assert "the first run alone has lines of 2 steps, from 5 to 6" in text


@pytest.mark.parametrize("names", ["a", "a,b,c"])
def test_it_needs_two_runs(names):
    status, _, text = run(f"--model_dirs={names}")
    assert status == 2
    assert "name the directories of two runs" in text
