"""A run that goes back and passes over steps is the run that was told to skip them."""

import gc

import jax
import numpy as np
import pytest

from t5x_style.checkpoints import Checkpointer, checkpoint_steps, find_newest
from t5x_style.data import BatchPlan
from t5x_style.errors import Fault, UsageError
from t5x_style.reporting import read_derived, read_run
from t5x_style.training import EarlyStopping, train
from t5x_style.training.recovery.spikes import Spikes
from tests.training.recovery.faulty import Faults
from tests.training.runs import make_run
from tests.training.test_resume import CONSTANT, events, learnt, lines

# Steps 18 and 19 go wrong. The checkpoint of step 15 lies inside the margin, so 10 is meant.
GO_BACK = Spikes(window=8, patience=2, margin=3)


@pytest.fixture
def faults(monkeypatch) -> Faults:
    return Faults(monkeypatch)


def run_of(folder, **changes):
    options = {"steps": 30, "optimizer": CONSTANT, "spikes": GO_BACK, "keep_checkpoints": 4}
    options |= {"eval_tokens": 0}
    return make_run(folder, **{**options, **changes})


def kinds(folder, kind: str) -> list[dict]:
    return [event for event in events(folder) if event["event"] == kind]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The run without a fault that is told to skip the steps 18 and 19."""
    folder = tmp_path_factory.mktemp("told")
    train(run_of(folder, skip_steps=[(18, 2)]))
    return folder


def test_a_run_goes_back_and_passes_over_the_stretch_as_one_that_was_told_to(
    told, tmp_path, faults, monkeypatch
):
    faults.not_finite = {18, 19}
    gc.collect()
    # Other tests of this process have arrays of their own.
    before = sum(array.nbytes for array in jax.live_arrays())
    held = []
    restore = Checkpointer.restore
    monkeypatch.setattr(
        Checkpointer,
        "restore",
        lambda *given: (held.append(sum(x.nbytes for x in jax.live_arrays())), restore(*given))[1],
    )
    result = train(run_of(tmp_path))
    (rewound,) = kinds(tmp_path, "rewound")
    assert (rewound["step"], rewound["from_step"], rewound["tokens"]) == (10, 19, 1280)
    assert (rewound["first"], rewound["count"]) == (18, 2)
    ran = [number for number, *_ in faults.ran]
    assert ran == [*range(1, 21), *range(11, 18), *range(20, 31)]
    assert read_derived(tmp_path).skipped_steps == ((18, 2),)
    # The state that is given up is gone before another one is read.
    assert held[0] - before < faults.state_bytes

    assert learnt(tmp_path) == learnt(told)
    written = [line["step"] for line in lines(tmp_path) if "loss" in line]
    assert written == list(range(1, 31))
    skipped = kinds(tmp_path, "skipped")
    assert [(event["step"], event["count"]) for event in skipped] == [(18, 1), (19, 1), (18, 2)]
    assert {document["row"] for document in skipped[2]["documents"]} == set(range(136, 140))
    # A step that was passed over has no numbers of its own, and no speed.
    (line,) = [line for line in lines(tmp_path) if line["step"] == 18 and "loss" in line]
    assert (line["loss"], line["grad_norm"]) == (None, None)
    assert "tokens_per_second" not in line
    # No second is booked twice, and none is lost sight of.
    finished = events(tmp_path)[-1]
    wall = finished["time"] - events(tmp_path)[0]["began"]
    assert sum(result["seconds"].values()) == pytest.approx(wall, rel=0.01)
    assert 0 < rewound["lost_seconds"] == pytest.approx(result["seconds"]["lost"])


def test_what_was_read_is_what_was_learnt_and_what_was_skipped(told, tmp_path, faults):
    """Counted by the sources of the rows that reached an applied update."""
    faults.not_finite = {7, 18, 19}
    result = train(run_of(tmp_path, seed=3))
    achieved = read_derived(tmp_path).achieved["sources"]
    by_source = faults.learnt_by_source(30, 16)
    for name, learnt_from in zip(("domain", "general"), by_source, strict=True):
        account = achieved[name]
        assert account["tokens"] == learnt_from + account["skipped"]
        assert result["line"][f"skipped/{name}"] == account["skipped"]
        assert account["effective_tokens"] <= learnt_from
    assert sum(account["skipped"] for account in achieved.values()) == 3 * 128
    # At every line, not at the end alone.
    for line in lines(tmp_path):
        if "loss" in line:
            skipped = line.get("skipped/domain", 0) + line.get("skipped/general", 0)
            assert sum(faults.learnt_by_source(line["step"], 16)) == line["tokens"] - skipped
    # Compute is counted by what was learnt, so N follows from the line as before.
    base = [line for line in lines(told) if "loss" in line][9]
    last = result["line"]
    assert last["model_flops_6nd"] / (30 - 3) == pytest.approx(base["model_flops_6nd"] / 10)
    record = read_run(tmp_path)
    assert record.parameters == pytest.approx(record.derived.parameters["total"])


def test_a_run_stopped_after_it_went_back_goes_on_as_if_it_had_not(told, tmp_path, faults):
    """Before the stretch has come again, too; and a step is saved again."""
    faults.not_finite = {18, 19}
    for steps in (20, 23, 30):
        train(run_of(tmp_path, steps=steps))
    assert len(kinds(tmp_path, "rewound")) == 1
    assert read_derived(tmp_path).skipped_steps == ((18, 2),)
    skipped = [
        {key: value for key, value in line.items() if key.startswith("skipped/")}
        for line in lines(tmp_path)
        if "loss" in line
    ]
    losses = [(line["step"], line["loss"]) for line in lines(tmp_path) if "loss" in line]
    assert losses == [(line["step"], line["loss"]) for line in lines(told) if "loss" in line]
    assert [sum(line.values()) for line in skipped] == [0] * 17 + [128] + [256] * 12
    saved = [event["step"] for event in kinds(tmp_path, "saved")]
    assert saved == [5, 10, 15, 15, 20, 23, 25, 30]
    finished = train(run_of(tmp_path))
    assert finished["line"]["skipped/domain"] + finished["line"]["skipped/general"] == 256


def test_killed_while_it_goes_back_a_run_decides_the_same_again(
    told, tmp_path, faults, monkeypatch
):
    faults.not_finite = {18, 19}
    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "forget_after", _killed)
        with pytest.raises(KeyboardInterrupt):
            train(run_of(tmp_path))
    assert not kinds(tmp_path, "rewound")
    train(run_of(tmp_path))
    assert learnt(tmp_path) == learnt(told)


def _killed(*_):
    raise KeyboardInterrupt


def test_a_damaged_checkpoint_is_not_gone_back_to(told, tmp_path, faults):
    """The one of step 10, damaged when the run has come to step 17."""
    faults.not_finite = {18, 19}
    faults.before[17] = lambda: _flip_a_byte(tmp_path / "checkpoint_10")
    train(run_of(tmp_path))
    (refused,) = kinds(tmp_path, "refused")
    assert (refused["step"], refused["folder"]) == (10, "checkpoint_10")
    assert kinds(tmp_path, "rewound")[0]["step"] == 5
    assert learnt(tmp_path) == learnt(told)


def _flip_a_byte(folder):
    data = max((path for path in folder.rglob("*") if path.is_file()), key=_size)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)


def _size(path):
    return path.stat().st_size


def test_noise_in_the_text_is_a_spike_that_a_run_goes_back_for(tmp_path, faults):
    """The steps 22 and 23 read rows of random tokens."""
    faults.noise = range(21 * 8, 23 * 8)
    rule = Spikes(action="rewind", window=8, patience=2, margin=2)
    train(run_of(tmp_path / "back", spikes=rule))
    (spike,) = kinds(tmp_path / "back", "spike")
    assert spike["step"] == 22
    assert spike["loss_deviations"] > 6
    calm = [line for line in lines(tmp_path / "back") if line["step"] in range(14, 22)]
    losses = [line["loss"] for line in calm if "loss" in line]
    assert spike["loss_median"] == pytest.approx(np.median(losses), rel=1e-6)
    (rewound,) = kinds(tmp_path / "back", "rewound")
    assert (rewound["first"], rewound["count"]) == (22, 2)
    train(run_of(tmp_path / "told", spikes=rule, skip_steps=[(22, 2)]))
    assert learnt(tmp_path / "back") == learnt(tmp_path / "told")


def test_by_default_a_spike_is_told_and_changes_nothing(tmp_path, faults):
    faults.noise = range(21 * 8, 23 * 8)
    train(run_of(tmp_path / "warned", spikes=Spikes(window=8)))
    assert [event["step"] for event in kinds(tmp_path / "warned", "spike")] == [22]
    train(run_of(tmp_path / "blind", spikes=Spikes(window=8, deviations=1e9)))
    assert not kinds(tmp_path / "blind", "spike")
    assert learnt(tmp_path / "warned") == learnt(tmp_path / "blind")


def test_an_update_is_left_out_at_the_same_step_however_the_run_is_stopped_and_looked_at(
    tmp_path, faults
):
    faults.noise = range(21 * 8, 23 * 8)
    rule = Spikes(action="skip", window=8, patience=4)
    options = {"spikes": rule, "log_period": 7}
    train(run_of(tmp_path / "whole", **options, checkpoint_period=100, eval_period=100))
    left_out = [number for number, _, applied in faults.ran if not applied]
    assert left_out == [22, 23]
    assert [e["step"] for e in kinds(tmp_path / "whole", "spike")] == [22]
    assert [e["step"] for e in kinds(tmp_path / "whole", "skipped")] == [22, 23]
    want = faults.parameters
    for steps in (11, 21, 22, 25, 30):
        often = {"checkpoint_period": 1, "eval_period": 3}
        train(run_of(tmp_path / "parts", **options, **often, steps=steps))
    jax.tree.map(np.testing.assert_array_equal, faults.parameters, want)
    ends = [lines(tmp_path / name)[-1]["tokens"] for name in ("whole", "parts")]
    assert ends == [30 * 128] * 2


@pytest.mark.parametrize(
    ("changes", "steps", "named"),
    [
        # The step after those that are passed over goes wrong as well.
        ({}, (18, 4), "went back for steps 18 to 19 already, and then went wrong again"),
        (
            {"keep_checkpoints": 1},
            (18, 2),
            r"no whole checkpoint of step 14 or before \(there is 15\)",
        ),
        ({"spikes": Spikes(patience=2, rewinds=0)}, (28, 2), r"went back 0 times .*Spikes.rewinds"),
    ],
)
def test_a_run_that_cannot_go_back_ends_and_says_what_to_do(
    tmp_path, faults, changes, steps, named
):
    faults.not_finite = set(range(steps[0], sum(steps)))
    with pytest.raises(Fault, match=named) as error:
        train(run_of(tmp_path, **changes))
    assert f"train.skip_steps = [{steps}]" in str(error.value)
    # Started again, it does not go round in circles either.
    ran = len(faults.ran)
    with pytest.raises(Fault, match=named):
        train(run_of(tmp_path, **changes))
    assert len(faults.ran) - ran < 30


def test_early_stopping_forgets_the_evaluations_that_the_run_went_back_over(tmp_path, faults):
    """The best of them, too, whose checkpoint is gone."""
    rule = EarlyStopping(patience_tokens=10**6)
    options = {"eval_tokens": None, "eval_period": 4, "early_stopping": rule}
    rule_of_spikes = Spikes(patience=2, margin=7)
    faults.not_finite = {18, 19}
    back = train(run_of(tmp_path / "back", **options, spikes=rule_of_spikes))
    (rewound,) = kinds(tmp_path / "back", "rewound")
    assert rewound["step"] <= 10
    faults.not_finite = set()
    told = train(run_of(tmp_path / "told", **options, spikes=rule_of_spikes, skip_steps=[(18, 2)]))
    assert learnt(tmp_path / "back") == learnt(tmp_path / "told")
    assert back["best_step"] == told["best_step"]
    assert set(checkpoint_steps(str(tmp_path / "back"))) >= {30, back["best_step"]}


def test_another_batch_size_passes_over_the_same_text(tmp_path, faults):
    """The stretch is kept as rows: 136 to 151, or four steps of four rows from step 15 on."""
    faults.not_finite = {18, 19}
    faults.stop_at = 17
    with pytest.raises(KeyboardInterrupt):
        train(run_of(tmp_path))
    there = checkpoint_steps(str(tmp_path))
    assert max(there) == 15
    plan = BatchPlan.from_settings([(8, 15 * 128), (4, None)], 16, train_steps=25)
    faults.not_finite, faults.ran = set(), []
    train(run_of(tmp_path, plan=plan))
    assert [number for number, *_ in faults.ran] == [16, 17, 18, 19, 24, 25]
    assert read_derived(tmp_path).skipped_steps == ((20, 4),)


def test_a_step_that_was_learnt_cannot_be_skipped_any_more(told):
    before = (told / "plan.json").read_bytes()
    with pytest.raises(
        UsageError, match=r"train.skip_steps asks to skip step 12, .* of step 30 has"
    ):
        train(run_of(told, steps=40, skip_steps=[(18, 2), (12, 1)]))
    assert (told / "plan.json").read_bytes() == before


@pytest.mark.parametrize("wrong", [[(0, 2)], [(3, 0)], [(3,)], [3], 3, [(3, 1.5)], [("3", 1)]])
def test_steps_that_are_no_pairs_are_refused(tmp_path, wrong):
    with pytest.raises(UsageError, match=r"train.skip_steps = .*, as in \[\(1200, 8\)\]"):
        run_of(tmp_path, skip_steps=wrong)


def test_a_run_goes_back_past_a_checkpoint_that_is_damaged(tmp_path, faults, monkeypatch):
    def damaged_before(model_dir, *arguments, **options):
        file = tmp_path / "run/checkpoint_10/state/_METADATA"
        file.write_bytes(file.read_bytes().replace(b"0", b"1", 1))
        return find_newest(model_dir, *arguments, **options)

    monkeypatch.setattr("t5x_style.training.rewind.find_newest", damaged_before)
    faults.not_finite = {18, 19}
    train(run_of(tmp_path / "run"))
    (rewound,), (refused,) = (kinds(tmp_path / "run", kind) for kind in ("rewound", "refused"))
    assert (rewound["step"], rewound["from_step"]) == (5, 19)
    assert (refused["step"], refused["folder"]) == (10, "checkpoint_10")
    assert refused["reason"] == "state/_METADATA has other bytes than were written"
