"""The sums from which a metric is computed, against a softmax in float64."""

import dataclasses
import itertools
import json
import math
import re

import jax
import numpy as np
import pytest

from t5x_style.accounting import Topology
from t5x_style.data import EvaluationSet
from t5x_style.errors import Preempted, UsageError
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.model_state import bind_model
from t5x_style.training import EvaluationSums, Evaluator, loop, train
from t5x_style.training.session import open_session
from tests.my_team import WorstRow
from tests.training.runs import ARCHITECTURE, EOS, SEQUENCE, VOCABULARY, make_run

ROWS, PADDED = 6, 5  # and 5 tokens of padding in the last row


@dataclasses.dataclass
class Recorder:
    """A metric that keeps the sums it was called with."""

    name: str = "rows"
    sums: EvaluationSums | None = None

    def value(self, sums):
        self.sums = sums
        return len(sums.row_nats)


def test_row_sums_are_those_of_a_softmax_and_leave_padding_out():
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, VOCABULARY, (ROWS, SEQUENCE + 1)).astype(np.int32)
    weights = np.ones((ROWS, SEQUENCE), np.float32)
    weights[-1, -PADDED:] = 0
    recorder = Recorder()
    topology = Topology(loss_chunk_tokens=24)
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        model = bind_model(ARCHITECTURE, topology, mesh, "float32")
        parameters = model.fresh_parameters(0)
        evaluator = Evaluator(
            model,
            mesh,
            {"a": EvaluationSet(tokens, weights, 400)},
            topology,
            batch_size=4,  # the second batch has two rows of padding
            eos_id=EOS,
            metrics=[recorder, WorstRow()],
        )
        line = evaluator(parameters)
        decoder = model(parameters)
        hidden, _ = decoder(tokens[:, :-1])
        logits = np.asarray(decoder.logits(hidden), np.float64)
    log_z = np.log(np.exp(logits).sum(-1))
    right = np.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    nats = ((log_z - right) * weights).sum(1)

    sums = recorder.sums
    assert sums.source == "a"
    assert sums.row_nats.dtype == np.float64
    np.testing.assert_allclose(sums.row_nats, nats, rtol=1e-5)
    assert sums.row_tokens.tolist() == [SEQUENCE] * (ROWS - 1) + [SEQUENCE - PADDED]
    assert line["eval/a/rows"] == ROWS
    assert line["eval/a/tokens"] == ROWS * SEQUENCE - PADDED
    assert sums.row_nats.sum() == pytest.approx(line["eval/a/loss"] * line["eval/a/tokens"])
    # 400 bytes of text; the perplexity is to the base of the nats.
    assert sums.bytes == 400
    assert line["eval/a/loss"] == pytest.approx(nats.sum() / weights.sum(), rel=1e-5)
    assert line["eval/a/perplexity"] == pytest.approx(
        math.e ** (nats.sum() / weights.sum()), rel=1e-4
    )
    assert line["eval/a/bits_per_byte"] == pytest.approx(
        np.log2(np.exp(nats)).sum() / 400, rel=1e-5
    )
    worst = (nats / weights.sum(1)).max()
    assert line["eval/a/worst_row"] == pytest.approx(worst, rel=1e-5)


def test_a_loss_beyond_every_exponent_still_has_a_perplexity(monkeypatch):
    rows = EvaluationSet(np.zeros((1, 3), np.int32), np.ones((1, 2), np.float32), 8)
    evaluator = Evaluator.__new__(Evaluator)
    evaluator._sets, evaluator._metrics = {"a": rows}, ()
    for nats, perplexity in ((2.0, math.e), (2e6, math.exp(700))):
        monkeypatch.setattr(evaluator, "_losses", lambda *_, nats=nats: (nats, np.array([nats])))
        assert evaluator({})["eval/a/perplexity"] == pytest.approx(perplexity)


def test_a_run_refuses_two_metrics_of_one_name_and_what_is_no_metric(tmp_path):
    for metrics in ([Recorder(), Recorder()], [Recorder(name="loss")]):
        with pytest.raises(UsageError, match="is the name of two figures; built in are loss, perp"):
            make_run(tmp_path, metrics=metrics)
    with pytest.raises(UsageError, match=r"train.metrics = 'worst' is no Metric: it lacks name"):
        make_run(tmp_path, metrics=["worst"])
    assert not list(tmp_path.iterdir())


def asked_at(number: int):
    """A signal that comes before the `number`th time that a run asks for one."""
    calls = itertools.count(1)
    return lambda: "SIGTERM" if next(calls) >= number else None


def until_left(run, leave) -> str:
    """A start of a run that is asked to leave: its last word."""
    session = open_session(run)
    try:
        with pytest.raises(Preempted) as left:
            loop.run_loop(run, session, leave)
    finally:
        session.close()
    return str(left.value)


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def curve(model_dir):
    """All that the lines of a run hold, but for its clock."""
    clock = re.compile(r"time|seconds/.*|.*_seconds|tokens_per_second|goodput")
    lines = read(model_dir / "metrics.jsonl")
    return [{key: x for key, x in line.items() if not clock.fullmatch(key)} for line in lines]


@pytest.fixture
def bit_for_bit():
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", True)


def test_an_evaluation_that_is_left_is_made_again_and_the_curve_is_the_same(tmp_path, bit_for_bit):
    """In the middle of a run and at its last step. Each evaluation here has 8 batches or fewer."""
    options = {"steps": 4, "batch": 4, "eval_period": 2}
    whole = train(make_run(tmp_path / "whole", **options))
    folder = tmp_path / "parts"
    run = make_run(folder, **options)
    batches = 8 + 4  # 512 and 256 tokens in rows of 16, 4 at a time

    # Asked in the evaluation of step 0: there is nothing to save.
    assert until_left(run, asked_at(3)).startswith("signal SIGTERM in the evaluation of step 0:")
    assert not list(folder.glob("checkpoint_*"))
    # In the evaluation of step 2: all of that of step 0, two steps, three batches.
    said = until_left(run, asked_at(batches + 2 + 3))
    assert said == "signal SIGTERM at step 2: saved, start again to continue"
    assert [line["step"] for line in curve(folder) if "loss" not in line] == [0]
    # Again in the same evaluation: the checkpoint is there, and is not written again.
    before = (folder / "checkpoint_2").stat().st_mtime_ns
    assert until_left(run, asked_at(5)).startswith("signal SIGTERM in the evaluation of step 2:")
    assert (folder / "checkpoint_2").stat().st_mtime_ns == before
    # In the evaluation of the last step.
    said = until_left(run, asked_at(batches + 2 + 3))
    assert said == "signal SIGTERM at step 4: saved, start again to continue"

    end = train(run)
    assert curve(folder) == curve(tmp_path / "whole")
    assert end["line"]["loss"] == whole["line"]["loss"]
    kinds = [event["event"] for event in read(folder / "events.jsonl")]
    assert kinds.count("preempted") == 4
    assert kinds[-1] == "finished"
    for key, value in whole["evaluation"].items():
        assert end["evaluation"][key] == value
    # It is finished now, and is not begun again.
    assert train(run)["resumed_from"] == 4
    assert [event["event"] for event in read(folder / "events.jsonl")] == kinds


def test_a_run_that_is_asked_before_an_evaluation_does_not_begin_it(tmp_path):
    run = make_run(tmp_path, steps=4, batch=4, eval_period=2)
    # 12 batches of the evaluation of step 0, and two steps.
    until_left(run, asked_at(12 + 2))
    assert [line["step"] for line in curve(tmp_path)] == [0, 1, 2]
    assert read(tmp_path / "events.jsonl")[-1]["held_seconds"] > 0
