import dataclasses
import json
import math

import pytest

from t5x_style.accounting import LawAudit, Topology
from t5x_style.accounting.laws import ParametricLaw
from t5x_style.errors import Fault, UsageError
from t5x_style.reporting import DerivedRun, RunWriter, VocabularyRecord, read_derived, read_run
from tests.plans import made_up_plan, write_plan


def test_a_finished_run_is_read(made_up_run, tmp_path):
    run = read_run(made_up_run(tmp_path / "run", steps=100))
    assert [line["step"] for line in run.training] == list(range(10, 101, 10))
    assert [line["step"] for line in run.evaluations] == [0, 100]
    assert [event.kind for event in run.events] == ["started", "saved", "finished"]
    assert run.derived.horizon.tokens == 204_800
    assert "train.steps" in run.config


def test_a_run_without_a_line_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    run = read_run(tmp_path)
    assert (run.training, run.evaluations, run.events, run.derived) == ([], [], [], None)
    assert run.config == ""


def test_wrong_directories_are_refused(made_up_run, tmp_path):
    made_up_run(tmp_path / "quickstart", steps=10)
    with pytest.raises(UsageError, match="did you mean 'quickstart'"):
        read_run(tmp_path / "quickstrt")
    with pytest.raises(UsageError, match=r"has no metrics\.jsonl"):
        read_run(tmp_path)
    with pytest.raises(UsageError, match="model_dir = 'gs://bucket/run': gs:// is not"):
        read_run("gs://bucket/run")


def test_a_broken_plan_is_a_fault(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=10)
    (model_dir / "plan.json").write_text("{")
    with pytest.raises(Fault, match=r"plan\.json is not JSON"):
        read_run(model_dir)
    (model_dir / "plan.json").write_text('{"horizon": {"tokens": 1}}')
    with pytest.raises(
        Fault, match=r"plan\.json is not the plan\.json of a run \(KeyError: 'phases'"
    ):
        read_run(model_dir)


def test_the_users_own_law_is_read_from_the_plan(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=10)
    assert read_run(model_dir).own_law is None
    law = ParametricLaw("mine", 1.5, 40.0, 60.0, 0.3, 0.3, "made up", (1e12, 1e15))
    for own_law in (law, dataclasses.replace(law, fitted_flops=None)):
        write_plan(model_dir, made_up_plan({"legal": 1.0}, own_law=own_law))
        assert read_run(model_dir).own_law == own_law
    write_plan(model_dir, made_up_plan({"legal": 1.0}))
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


def test_curves_and_last_values(made_up_run, tmp_path):
    run = read_run(made_up_run(tmp_path / "run", steps=100))
    tokens, losses = run.curve("loss")
    # The loss of step 50 is not finite; `loss/legal` is another measure.
    assert tokens == [2048 * step for step in range(10, 101, 10) if step != 50]
    assert losses == [line["loss"] for line in run.training if line["loss"] is not None]
    assert run.curve("no_such_measure") == ([], [])
    shares = run.curves_by_source("share")
    assert list(shares) == ["legal", "general"]
    assert shares["legal"][1] == [line["share/legal"] for line in run.training]
    held_out = run.evaluation_curves("bits_per_byte")
    assert held_out["general"] == (
        [0, 204_800],
        [line["eval/general/bits_per_byte"] for line in run.evaluations],
    )
    efficiency = run.curves_by_law("compute_efficiency")["besiroglu"][1]
    assert efficiency[-1] == run.training[-1]["chinchilla/besiroglu/compute_efficiency"]
    assert run.parameters == pytest.approx(run.derived.parameters["total"])


def test_seconds_are_those_of_the_end_or_of_the_last_line(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=100)
    run = read_run(model_dir)
    assert run.state == "finished"
    assert run.seconds == run.events[-1].details["seconds"]
    # Without an end, the last training line has them.
    events = (model_dir / "events.jsonl").read_text().splitlines(keepends=True)
    (model_dir / "events.jsonl").write_text("".join(events[:-1]))
    run = read_run(model_dir)
    assert run.state == "saved"
    assert run.seconds["step"] == run.training[-1]["seconds/step"]


@pytest.mark.parametrize(
    ("estimates", "scale"),
    [
        # Of four lines the last two: means of 4 and 100.
        ([(9.0, 9.0), (9.0, 9.0), (-2.0, 150.0), (10.0, 50.0)], 25.0),
        # Lines without the figures say nothing.
        ([(9.0, 9.0), (9.0, 9.0), None, (4.0, 2.0)], 0.5),
        # An estimate that is below zero, and a step whose gradient was not finite, are no scale.
        ([(1.0, 1.0), (-1.0, 3.0)], None),
        ([(1.0, 1.0), (math.nan, math.nan)], None),
        ([None, None], None),
        ([], None),
    ],
)
def test_the_noise_scale_is_a_ratio_of_means(estimates, scale, tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 0, "tokens": 0, "eval/legal/loss": 1.0})
        for step, pair in enumerate(estimates, 1):
            noise = {} if pair is None else {"noise/signal": pair[0], "noise/variance": pair[1]}
            writer.metrics({"step": step, "tokens": step, "loss": 1.0} | noise)
    assert read_run(tmp_path).gradient_noise_scale == scale


def test_a_plan_is_read_alone(made_up_run, tmp_path):
    model_dir = made_up_run(tmp_path / "run", steps=10)
    derived = read_derived(model_dir)
    assert derived == read_run(model_dir).derived
    assert json.loads((model_dir / "plan.json").read_text()) == derived.to_json()
    (model_dir / "plan.json").unlink()
    assert read_run(model_dir).derived is None
    with pytest.raises(UsageError, match=r"no run there \(plan\.json is missing\)"):
        read_derived(model_dir)


def test_figures_of_ones_own_are_those_that_every_run_has_not(tmp_path):
    with RunWriter(tmp_path, resume_step=None) as writer:
        writer.metrics({"step": 1, "tokens": 8, "loss": 2.0, "tokens_per_param": None})
        for key in ("worst/row", "loss", "perplexity", "bits_per_byte", "tokens", "best"):
            writer.metrics({"step": 1, "tokens": 8, f"eval/legal/{key}": 1.0})
    run = read_run(tmp_path)
    assert run.own_metrics == ["best", "row"]
    assert (run.parameters, run.state, run.ending, run.seconds) == (None, None, None, {})


def test_a_plan_comes_back_from_its_file_as_it_was():
    derived = made_up_plan(
        {"legal": 1.0},
        topology=Topology(
            chip="v5p", data=2, fsdp=4, remat="full", kernel="blockwise", microbatches=3,
            loss_chunk_tokens=64, loss_vocab_chunks=2,
        ),
        optimizer={"rate": 1.0}, packing={"windows": 2}, blend=[{"asked": {}}], notices=["a"],
        vocabulary=VocabularyRecord("v.model", "</s>", "h", 99),
        early_stopping={"mode": "stop"},
        own_law=ParametricLaw("mine", 1.5, 40.0, 60.0, 0.3, 0.3, "made up", (1e12, 1e15)),
        laws={"mine": LawAudit(1e9, 2e10, 2.5, 0.75)},
        achieved={"step": 3},
    )  # fmt: skip
    written = json.loads(json.dumps(derived.to_json()))
    assert DerivedRun.from_json(written) == derived
    assert written["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert written["laws"]["mine"] == {
        "optimal_params": 1e9, "optimal_tokens": 2e10, "expected_loss": 2.5,
        "compute_efficiency": 0.75,
    }  # fmt: skip
    # A version before these fields left them out.
    later = ("packing", "blend", "early_stopping", "own_law", "achieved", "chip", "remat", "kernel")
    older = {key: value for key, value in written.items() if key not in later}
    del older["tokenizer"]["eos"]
    read = DerivedRun.from_json(older)
    assert (read.packing, read.blend, read.early_stopping) == ({}, [], None)
    assert (read.own_law, read.achieved, read.vocabulary.eos) == (None, None, None)
    assert read.topology.chip is None


def test_what_happened_to_the_logs_is_not_the_state_of_the_run(made_up_run, tmp_path):
    """A disk that takes lines again as the run ends has the last word, after `finished`."""
    model_dir = made_up_run(tmp_path / "run", steps=10)
    before = read_run(model_dir)
    with RunWriter(model_dir, resume_step=10) as writer:
        writer.event("logs_rewritten", step=10, tokens=1, reason="of the disk")
    after = read_run(model_dir)
    assert after.events[-1].kind == "logs_rewritten"
    assert (after.state, after.ending, after.seconds) == ("finished", None, before.seconds)
