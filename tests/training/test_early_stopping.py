"""When a run should stop: on made-up evaluation lines, and in runs that learn by heart."""

import itertools
import json
import math
import random

import jax
import numpy as np
import pytest

from t5x_style.checkpoints import Checkpointer, checkpoint_steps
from t5x_style.data import BatchPlan
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.training import EarlyStopping, train
from tests.training.runs import EOS, VOCABULARY, FakeStores, constant, made_up_store, make_run

HALVES = {"legal": 0.5, "general": 0.5}
LEGAL = {"legal": 1.0}


def lines(scores, *, period: int = 100, tokens=None) -> list[dict]:
    """Evaluation lines of one source, `period` tokens a step apart."""
    tokens = tokens or itertools.count(0, period)
    return [
        {"step": step, "tokens": at, **measured(legal=score)}
        for step, (score, at) in enumerate(zip(scores, tokens, strict=False))
    ]


def measured(size: int = 1000, **scores) -> dict:
    line = {}
    for source, score in scores.items():
        line[f"eval/{source}/bits_per_byte"] = score
        line[f"eval/{source}/loss"] = None if score is None else 2 * score
        line[f"eval/{source}/tokens"] = size
    return line


def first_stop(rule: EarlyStopping, evaluations: list[dict], weights=LEGAL) -> int | None:
    """The step of the first line at which the rule says stop, asked line by line."""
    for end in range(1, len(evaluations) + 1):
        state = rule.state(evaluations[:end], weights)
        if state is not None and state.reason is not None:
            return state.step
    return None


def test_the_best_is_known_without_any_patience():
    rule = EarlyStopping(mode="keep")
    state = rule.state(lines([3.0, 1.0, *[2.0] * 1000]), LEGAL)
    assert (state.best_step, state.best_score, state.step) == (1, 1.0, 1001)
    assert (state.reason, state.advise, state.stop) == (None, False, False)
    with pytest.raises(UsageError, match=r"mode = 'stop' needs EarlyStopping.patience_tokens"):
        EarlyStopping(mode="stop")
    with pytest.raises(UsageError, match=r"mode = 'keep' has no use for EarlyStopping.patience"):
        EarlyStopping(patience_tokens=1, mode="keep")


def test_a_plateau_ends_after_the_patience_in_tokens():
    rule = EarlyStopping(patience_tokens=250, mode="stop")
    evaluations = lines([3.0, 2.0, 1.0, 1.1, 1.2, 1.1, 1.3])
    # The last gain is at 200 tokens; the first evaluation 250 tokens later or more is at 500.
    assert first_stop(rule, evaluations) == 5
    state = rule.state(evaluations[:6], LEGAL)
    assert (state.best_step, state.best_score, state.stop) == (2, 1.0, True)
    assert "bits per byte of legal" in state.reason
    assert "best 1.0000 at step 2, now 1.1000" in state.reason


def test_one_that_keeps_falling_never_ends():
    rule = EarlyStopping(patience_tokens=100)
    assert first_stop(rule, lines([1 / (1 + step) for step in range(200)])) is None


def test_noise_within_min_delta_is_no_gain_and_the_lowest_is_still_the_best():
    noise = random.Random(0)
    evaluations = lines([3.0, 2.0, *(2.0 + noise.uniform(-0.009, 0.009) for _ in range(20))])
    patient = {"patience_tokens": 500}
    assert first_stop(EarlyStopping(**patient, min_delta=0.01), evaluations) == 1 + 5
    assert first_stop(EarlyStopping(**patient), evaluations) != 1 + 5
    state = EarlyStopping(**patient, min_delta=0.01).state(evaluations, LEGAL)
    scores = [line["eval/legal/bits_per_byte"] for line in evaluations]
    assert state.best_step == int(np.argmin(scores))
    assert state.best_score == min(scores)


def test_small_steps_add_up_to_a_gain():
    # 0.004 an evaluation: a gain of more than 0.01 every third.
    evaluations = lines([2.0 - 0.004 * step for step in range(100)])
    assert first_stop(EarlyStopping(patience_tokens=301, min_delta=0.01), evaluations) is None
    assert first_stop(EarlyStopping(patience_tokens=200, min_delta=0.01), evaluations) == 2


def test_a_fall_of_just_min_delta_is_no_gain():
    for score, since in ((1.75, 0), (1.74, 1)):
        rule = EarlyStopping(patience_tokens=100, min_delta=0.25)
        assert rule.state(lines([2.0, score]), LEGAL).since_step == since
    assert EarlyStopping(1).state(lines([2.0, 1.99]), LEGAL).since_step == 1


def test_the_rule_that_is_not_spelled_out():
    rule = EarlyStopping(patience_tokens=1)
    assert (rule.min_delta, rule.sources) == (0.0, None)
    assert (rule.measure, rule.mode) == ("bits_per_byte", "advise")


def test_of_equal_scores_the_first_is_the_best():
    state = EarlyStopping(patience_tokens=1).state(lines([2.0, 1.0, 1.0]), LEGAL)
    assert state.best_step == 1


@pytest.mark.parametrize(
    ("sources", "shares", "stops_at"),
    [
        (None, HALVES, None),  # what legal loses, general gains twice
        (["legal"], HALVES, 4),
        (["general"], HALVES, None),
        (None, {"legal": 0.8, "general": 0.2}, 4),
    ],
)
def test_blended_by_the_shares_or_of_one_source(sources, shares, stops_at):
    evaluations = [
        {
            "step": step,
            "tokens": 100 * step,
            **measured(legal=2 + 0.1 * step, general=4 - 0.2 * step),
        }
        for step in range(10)
    ]
    rule = EarlyStopping(patience_tokens=400, sources=sources)
    weights = rule.weights(shares, ["legal", "general"])
    assert sum(weights.values()) == pytest.approx(1)
    assert first_stop(rule, evaluations, weights) == stops_at


def test_the_weights_are_the_shares_of_those_with_a_validation_split():
    shares = {"legal": 0.5, "web": 0.25, "code": 0.25}
    assert EarlyStopping(1).weights(shares, ["legal", "web"]) == {"legal": 2 / 3, "web": 1 / 3}
    assert EarlyStopping(1, sources=["code"]).weights(shares, list(shares)) == {"code": 1.0}


def test_the_blended_loss_is_the_mean_over_the_tokens_of_the_blend():
    line = {"step": 0, "tokens": 0, **measured(legal=1.0, general=3.0)}
    rule = EarlyStopping(1, measure="loss")
    state = rule.state([line], {"legal": 0.75, "general": 0.25})
    assert state.best_score == pytest.approx(0.75 * 2.0 + 0.25 * 6.0)


def test_patience_is_in_tokens_whatever_the_batch():
    # Steps of 4 rows of 16, then of 64 rows: the same evaluations stand further apart.
    plan = BatchPlan.from_settings([(4, 640), (64, None)], 16, train_steps=40)
    tokens = [plan.tokens_before(step) for step in range(0, 41, 5)]
    assert tokens[:4] == [0, 320, 640, 640 + 5 * 1024]
    rule = EarlyStopping(patience_tokens=1024)
    # In the small batches two evaluations are 640 tokens, in the large one alone is 5,120.
    assert first_stop(rule, lines([3.0, 2.0, 2.1], tokens=tokens)) is None
    assert first_stop(rule, lines([3.0, 2.0, 2.1, 2.2], tokens=tokens)) == 3


def test_advice_is_given_once_per_plateau():
    rule = EarlyStopping(patience_tokens=200)
    evaluations = lines([3.0, 2.0, 2.1, 2.2, 2.3, 1.0, 1.1, 1.2, 1.3])
    states = [rule.state(evaluations[: end + 1], LEGAL) for end in range(len(evaluations))]
    assert [state.step for state in states if state.advise] == [3, 7]
    assert [state.step for state in states if state.reason] == [3, 4, 7, 8]
    assert not any(state.stop for state in states)


def test_what_the_file_keeps_decides_as_the_memory_does():
    rule = EarlyStopping(patience_tokens=300, min_delta=1e-3)
    noise = random.Random(1)
    evaluations = lines([2 + noise.gauss(0, 0.1) for _ in range(30)])
    evaluations[4] |= measured(legal=math.nan)
    written = [json.loads(json.dumps(line).replace("NaN", "null")) for line in evaluations]
    for end in range(1, 31):
        assert rule.state(evaluations[:end], LEGAL) == rule.state(written[:end], LEGAL)


def test_no_number_is_no_gain():
    rule = EarlyStopping(patience_tokens=200)
    assert first_stop(rule, lines([3.0, None, math.inf, math.nan])) == 2
    assert rule.state(lines([math.nan, 3.0]), LEGAL).best_step == 1


def test_lines_on_other_text_are_not_compared():
    rule = EarlyStopping(patience_tokens=100)
    easier = [{"step": 0, "tokens": 0, **measured(legal=1.0, size=10)}]
    later = [{"step": 5, "tokens": 900, **measured(legal=2.0)}]
    assert rule.state(easier + later, LEGAL).best_step == 5
    assert rule.state([], LEGAL) is None
    assert rule.state([{"step": 0, "tokens": 0, **measured(web=1.0)}], LEGAL) is None


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        ({"patience_tokens": 0}, "patience_tokens = 0: must be 1 or more"),
        ({"min_delta": -0.1}, "min_delta = -0.1"),
        ({"min_delta": math.nan}, "min_delta = nan"),
        ({"min_delta": math.inf}, "min_delta = inf"),
        ({"mode": "stopp"}, "did you mean 'stop'"),
        ({"measure": "bits"}, "bits_per_byte, loss"),
        ({"sources": ["legal", "legal"]}, "names a source twice"),
    ],
)
def test_what_is_no_rule_is_refused(fields, lines):
    with pytest.raises(UsageError, match=lines):
        EarlyStopping(**{"patience_tokens": 1, **fields})


@pytest.mark.parametrize(
    ("sources", "lines"),
    [(["lega"], "did you mean 'legal'"), (["web"], "no validation split"), ([], "name a source")],
)
def test_sources_that_cannot_be_watched_are_refused(sources, lines):
    shares = {"legal": 0.5, "web": 0.5}
    with pytest.raises(UsageError, match=lines):
        EarlyStopping(1, sources=sources).weights(shares, ["legal"])
    with pytest.raises(UsageError, match="watches nothing"):
        EarlyStopping(1).weights(shares, [])


# --- In runs ---

PLATEAU = {
    "steps": 60,
    "batch": 8,
    "eval_period": 4,
    "log_period": 3,
    "checkpoint_period": 10,
    "keep_checkpoints": 1,
    "max_epochs": 1000.0,
    "optimizer": AdamW(Schedule(peak_learning_rate=1e-2, shape="constant"), weight_decay=0.0),
}
STOP = EarlyStopping(patience_tokens=8 * 16 * 8, mode="stop")


def memorised_stores() -> FakeStores:
    """Tokens drawn by lot: there is nothing to learn but the few of the training split."""

    def drawn(name: str, tokens: int, seed: int):
        store = made_up_store(name, tokens, seed)
        store.tokens[:] = np.random.default_rng(seed).integers(EOS + 1, VOCABULARY, tokens)
        return store

    return FakeStores(
        phases=constant({"domain": 0.5, "general": 0.5}),
        train={"domain": drawn("d", 256, 0), "general": drawn("g", 256, 1)},
        validation={"domain": drawn("dv", 512, 2), "general": drawn("gv", 512, 3)},
    )


def plateau(model_dir, **changes):
    return make_run(model_dir, stores=memorised_stores(), **{**PLATEAU, **changes})


def written(model_dir, name: str) -> list[dict]:
    return [json.loads(line) for line in (model_dir / f"{name}.jsonl").read_text().splitlines()]


def scores_of(model_dir) -> dict[int, float]:
    return {
        line["step"]: np.mean([line[f"eval/{s}/bits_per_byte"] for s in ("domain", "general")])
        for line in written(model_dir, "metrics")
        if "loss" not in line
    }


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that early stopping ended, and what train returned."""
    model_dir = tmp_path_factory.mktemp("stopped")
    jax.config.update("jax_enable_compilation_cache", False)
    result = train(plateau(model_dir, early_stopping=STOP))
    jax.config.update("jax_enable_compilation_cache", True)
    return model_dir, result


def test_a_run_stops_early_and_keeps_its_best(stopped):
    model_dir, result = stopped
    scores = scores_of(model_dir)
    best = min(scores, key=scores.get)
    end = result["line"]["step"]
    # It learnt at first, then by heart; two evaluations without a gain are eight steps.
    assert 0 < best < end < 60
    assert end == best + 8
    assert list(scores) == list(range(0, end + 1, 4))
    assert set(checkpoint_steps(str(model_dir))) == {best, end}
    assert result["best_step"] == best
    assert result["line"]["remaining_tokens"] == (60 - end) * 8 * 16
    *_, saved, finished = written(model_dir, "events")
    assert (saved["event"], saved["step"]) == ("saved", end)
    assert (finished["event"], finished["step"]) == ("finished", end)
    assert finished["tokens"] == end * 8 * 16
    assert finished["reason"] == result["reason"]
    assert f"early stopping at {end / 60:.1%} of the planned tokens" in result["reason"]
    assert f"best {scores[best]:.4f} at step {best}" in result["reason"]
    told_best = [event for event in written(model_dir, "events") if "best_score" in event]
    assert told_best[-1]["step"] == best
    assert told_best[-1]["best_score"] == pytest.approx(scores[best])


def test_started_again_it_is_finished_and_without_the_rule_it_goes_on(stopped):
    model_dir, result = stopped
    before = (model_dir / "metrics.jsonl").read_bytes(), (model_dir / "events.jsonl").read_bytes()
    again = train(plateau(model_dir, early_stopping=STOP))
    assert again["resumed_from"] == again["line"]["step"] == result["line"]["step"]
    assert (again["reason"], again["best_step"]) == (result["reason"], result["best_step"])
    assert before == (
        (model_dir / "metrics.jsonl").read_bytes(),
        (model_dir / "events.jsonl").read_bytes(),
    )

    # A kill between the last checkpoint and the last event: the event is written now.
    lines = (model_dir / "events.jsonl").read_text().splitlines(keepends=True)
    (model_dir / "events.jsonl").write_text("".join(lines[:-1]))
    assert train(plateau(model_dir, early_stopping=STOP))["reason"] == result["reason"]
    assert written(model_dir, "events")[-1]["reason"] == result["reason"]

    # A shorter run is refused as ever; without the rule this one goes on to its planned end.
    with pytest.raises(UsageError, match="after the last of this run"):
        train(plateau(model_dir, early_stopping=STOP, steps=4))
    on = train(plateau(model_dir, steps=30))
    assert on["line"]["step"] == 30
    assert "reason" not in on
    assert written(model_dir, "events")[-1]["event"] == "finished"


def test_advice_does_not_end_the_run(tmp_path, capsys):
    advise = EarlyStopping(patience_tokens=8 * 16 * 8, mode="advise")
    result = train(plateau(tmp_path, steps=40, early_stopping=advise))
    scores = scores_of(tmp_path)
    best = min(scores, key=scores.get)
    assert result["line"]["step"] == 40
    assert "reason" not in result
    assert result["best_step"] == best
    assert set(checkpoint_steps(str(tmp_path))) == {best, 40}
    (advice,) = [
        event
        for event in written(tmp_path, "events")
        if event["event"] == "warned" and "early stopping advises to stop now" in event["reason"]
    ]
    assert advice["step"] == best + 8
    assert advice["reason"] in capsys.readouterr().out


class Killed(BaseException):
    """As if by SIGKILL: nothing in the loop handles it."""


def test_killed_between_an_evaluation_and_its_checkpoint(stopped, tmp_path, monkeypatch):
    """Once at a new best, once where it would have stopped: the same lines, the same end."""
    reference, result = stopped
    end, best = result["line"]["step"], result["best_step"]
    save = Checkpointer.save
    jax.config.update("jax_enable_compilation_cache", False)
    for fatal in (best, end):

        def save_or_die(self, step, *arguments, fatal=fatal, **options):
            if step == fatal:
                raise Killed
            save(self, step, *arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Checkpointer, "save", save_or_die)
            with pytest.raises(Killed):
                train(plateau(tmp_path, early_stopping=STOP))
        assert written(tmp_path, "metrics")[-1]["step"] == fatal
    again = train(plateau(tmp_path, early_stopping=STOP))
    jax.config.update("jax_enable_compilation_cache", True)

    assert (again["reason"], again["best_step"]) == (result["reason"], best)
    assert set(checkpoint_steps(str(tmp_path))) == {best, end}

    def learnt(model_dir):
        return [
            {k: v for k, v in line.items() if k.startswith(("eval/", "loss")) or k == "step"}
            for line in written(model_dir, "metrics")
            if line["step"] <= end
        ]

    assert learnt(tmp_path) == learnt(reference)
