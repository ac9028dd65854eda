import dataclasses
import json

import pytest

from t5x_style.accounting.laws import ParametricLaw
from t5x_style.errors import Fault, UsageError
from t5x_style.reporting import RunWriter, read_run


def test_what_a_run_left_is_read(made_up_run, tmp_path):
    run = read_run(made_up_run(tmp_path / "run", steps=100))
    assert [line["step"] for line in run.training] == list(range(10, 101, 10))
    assert [line["step"] for line in run.evaluations] == [0, 100]
    assert [event["event"] for event in run.events] == ["started", "saved", "finished"]
    assert run.plan["steps"] == 100
    assert "train.steps" in run.config


def test_a_run_that_only_began_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    run = read_run(tmp_path)
    assert (run.training, run.evaluations, run.events, run.plan, run.config) == ([], [], [], {}, "")


def test_wrong_directories_are_refused(made_up_run, tmp_path):
    made_up_run(tmp_path / "quickstart", steps=10)
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        read_run(tmp_path / "quickstrt")
    with pytest.raises(UsageError, match=r"holds no metrics\.jsonl"):
        read_run(tmp_path)


def test_a_broken_plan_is_a_fault(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=10)
    (model_dir / "plan.json").write_text("{")
    with pytest.raises(Fault, match=r"plan\.json"):
        read_run(model_dir)


def test_the_law_of_ones_own_is_read_from_the_plan(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=10)
    assert read_run(model_dir).own_law is None
    law = ParametricLaw("mine", 1.5, 40.0, 60.0, 0.3, 0.3, "made up", (1e12, 1e15))
    for own_law in (law, dataclasses.replace(law, fitted_flops=None)):
        (model_dir / "plan.json").write_text(json.dumps({"own_law": dataclasses.asdict(own_law)}))
        assert read_run(model_dir).own_law == own_law
    (model_dir / "plan.json").write_text('{"own_law": null}')
    assert read_run(model_dir).own_law is None


def test_why_a_run_ended_early(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=10)
    assert read_run(model_dir).ending is None
    with RunWriter(model_dir, resume_step=10) as writer:
        writer.event("warned", step=10, tokens=1, reason="of something else")
    assert read_run(model_dir).ending is None
    with RunWriter(model_dir, resume_step=10) as writer:
        writer.event("finished", step=10, tokens=1, reason="early stopping")
    assert read_run(model_dir).ending == "early stopping"
