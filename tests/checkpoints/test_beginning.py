"""A start goes on from the newest whole checkpoint of its own run, and from nothing in silence."""

import dataclasses
import json
import os
import pathlib
import shutil

import pytest

from t5x_style.checkpoints import checkpoint_steps
from t5x_style.checkpoints.beginning import another_run, find_beginning
from t5x_style.errors import UsageError
from t5x_style.optim import AdamW, Schedule
from t5x_style.reporting import read_derived
from t5x_style.training import train
from tests.training.runs import make_run
from tests.training.test_resume import events, learnt, lines

CONSTANT = AdamW(Schedule(peak_learning_rate=1e-2, warmup_tokens=256, shape="constant"))
OPTIONS = {"optimizer": CONSTANT, "eval_period": 100, "keep_checkpoints": 3}


def start(folder: pathlib.Path, steps: int = 15, **changes) -> dict:
    asked = {name: changes.pop(name, None) for name in ("resume_step", "from_scratch")}
    beginning = find_beginning(str(folder), checkpoint_period=5, **asked)
    return train(make_run(folder, steps=steps, beginning=beginning, **{**OPTIONS, **changes}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """A run of 15 steps with checkpoints of 5, 10 and 15."""
    folder = tmp_path_factory.mktemp("finished")
    start(folder)
    assert set(checkpoint_steps(str(folder))) == {5, 10, 15}
    return folder


@pytest.fixture
def folder(finished, tmp_path) -> pathlib.Path:
    return shutil.copytree(finished, tmp_path / "run")


def largest(checkpoint: pathlib.Path) -> pathlib.Path:
    files = [path for path in (checkpoint / "state").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


def flip(file: pathlib.Path, at: float = 0.5) -> None:
    content = bytearray(file.read_bytes())
    content[int(at * len(content))] ^= 1
    file.write_bytes(content)


def test_after_a_flipped_bit_the_run_goes_on_from_the_checkpoint_before(folder, finished, capfd):
    flip(largest(folder / "checkpoint_15"))
    result = start(folder)
    assert result["resumed_from"] == 10
    assert learnt(folder) == learnt(finished)
    refused = [event for event in events(folder) if event["event"] == "refused"]
    name = largest(folder / "damaged_checkpoint_15").relative_to(folder / "damaged_checkpoint_15")
    assert [(event["step"], event["folder"], event["reason"]) for event in refused] == [
        (15, "checkpoint_15", f"{name} has other bytes than were written")
    ]
    assert "moved checkpoint_15 to damaged_checkpoint_15" in capfd.readouterr().err
    # The one that took its place is whole, and the end of the run is read from it.
    assert start(folder)["resumed_from"] == 15
    assert len([event for event in events(folder) if event["event"] == "refused"]) == 1


def test_another_runs_checkpoint_of_the_same_shape_is_not_taken(folder, finished, tmp_path):
    """Nor is one of this run under a later step's name."""
    strange = tmp_path / "strange"
    start(strange, seed=7)
    shutil.rmtree(folder / "checkpoint_15")
    shutil.copytree(strange / "checkpoint_15", folder / "checkpoint_15")
    shutil.copytree(folder / "checkpoint_5", folder / "checkpoint_20")
    result = start(folder)
    assert (result["resumed_from"], result["line"]["step"]) == (10, 15)
    assert learnt(folder) == learnt(finished)
    assert {event["step"]: event["reason"] for event in events(folder) if "folder" in event} == {
        15: "is of another run, with seed 7 and not 0",
        20: "is the checkpoint of step 5",
    }
    assert {path.name for path in folder.glob("*checkpoint*")} == {
        *(f"checkpoint_{step}" for step in (5, 10, 15)),
        "damaged_checkpoint_15",
        "damaged_checkpoint_20",
    }


def test_it_says_whose_a_checkpoint_is(finished):
    own = read_derived(finished)
    assert another_run(own.identity, own) is None
    assert (
        another_run({**own.identity, "seed": 7}, own) == "is of another run, with seed 7 and not 0"
    )
    architecture = {**own.identity["architecture"], "layers": 3}
    assert another_run({**own.identity, "architecture": architecture}, own) == (
        "is of another run, with architecture.layers 3 and not 2"
    )
    stores = {**own.identity["stores"], "legal": "x"}
    assert "stores.legal 'x' and not None" in another_run({**own.identity, "stores": stores}, own)


def test_a_run_that_changed_its_blend_owns_the_checkpoints_of_each(finished):
    own = read_derived(finished)
    before = own.identity
    now = {"phases": [], "max_epochs": None}
    grown = {**before, "blend": now, "stores": {**before["stores"], "new": "n"}}
    blend = [*own.blend, {**own.blend[-1], "asked": now}]
    changed = dataclasses.replace(own, identity=grown, blend=blend)
    assert another_run(before, changed) is None
    assert another_run({**before, "blend": {"phases": [1]}}, changed) is not None


def test_what_another_version_did_not_record_makes_no_other_run(finished):
    own = read_derived(finished)
    less = {name: value for name, value in own.identity.items() if name != "windows"}
    assert another_run(less, own) is None
    assert another_run({**own.identity, "new_key": 1}, own) is None
    assert another_run({}, own) is None


def test_where_no_checkpoint_is_whole_the_run_is_refused_and_nothing_moved(folder):
    for step in (5, 10, 15):
        flip(largest(folder / f"checkpoint_{step}"), 0.1 * step / 5)
    before = sorted(os.listdir(folder))
    with pytest.raises(UsageError, match="none of its checkpoints can be used") as refusal:
        start(folder)
    for step in (5, 10, 15):
        assert f"\n  checkpoint_{step}: state/" in str(refusal.value)
    assert "train.from_scratch = True" in str(refusal.value)
    assert sorted(os.listdir(folder)) == before


def test_from_scratch_begins_anew_and_deletes_nothing(folder, finished, capfd):
    for step in (5, 10, 15):
        flip(largest(folder / f"checkpoint_{step}"))
    kept = {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "events.jsonl")}
    result = start(folder, from_scratch=True)
    assert (result["resumed_from"], result["line"]["step"]) == (None, 15)
    assert learnt(folder) == learnt(finished)
    console = capfd.readouterr().err
    for name, content in kept.items():
        assert (folder / f"{name}.before").read_bytes() == content
        assert f": moved {name} to {name}.before\n" in console
    assert json.loads((folder / "plan.json.before").read_text())["identity"]["seed"] == 0
    assert [event["event"] for event in events(folder)].count("started") == 1
    for step in (5, 10, 15):
        assert (folder / f"damaged_checkpoint_{step}").is_dir()
    # The same command again: a run that can go on does not begin anew.
    again = start(folder, from_scratch=True)
    assert again["resumed_from"] == 15
    assert not (folder / "metrics.jsonl.before.2").exists()
    # It says so, and only where it was asked to.
    for asked in (True, False):
        notices = find_beginning(str(folder), checkpoint_period=5, from_scratch=asked).notices
        assert [notice[:33] for notice in notices] == ["train.from_scratch = True is for "] * asked


def without_checkpoints(folder: pathlib.Path) -> None:
    for path in folder.glob("checkpoint_*"):
        shutil.rmtree(path)


@pytest.mark.parametrize(
    ("damage", "missing"),
    [
        (lambda folder: None, r"a checkpoint of step 15 was saved, and there is no checkpoint"),
        (
            lambda folder: (folder / "events.jsonl").unlink(),
            r"metrics.jsonl goes to step 15, and there is no checkpoint",
        ),
        (
            lambda folder: (folder / "plan.json").unlink(),
            r"a checkpoint of step 15 was saved, and there is no checkpoint",
        ),
    ],
)
def test_a_run_whose_checkpoints_are_gone_is_refused(folder, damage, missing):
    without_checkpoints(folder)
    damage(folder)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    with pytest.raises(UsageError, match=missing):
        start(folder)
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    beginning = find_beginning(str(folder), checkpoint_period=5, from_scratch=True)
    assert (beginning.step, beginning.anew) == (None, True)


def test_a_run_that_saved_nothing_yet_begins_anew_by_itself(folder):
    without_checkpoints(folder)
    kept = [line for line in lines(folder) if line["step"] < 5]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    (folder / "events.jsonl").write_text("")
    assert not find_beginning(str(folder), checkpoint_period=5).anew
    begun = {"event": "started", "step": 0, "tokens": 0, "time": 1.0}
    (folder / "events.jsonl").write_text(json.dumps(begun) + "\n")
    assert not find_beginning(str(folder), checkpoint_period=2).anew
    assert not find_beginning(str(folder), checkpoint_period=2, from_scratch=True).anew


def test_checkpoints_without_a_plan_are_refused_and_moved_only_when_asked(folder):
    (folder / "plan.json").unlink()
    with pytest.raises(UsageError, match=r"plan\.json is missing"):
        start(folder)
    assert start(folder, steps=5, from_scratch=True)["resumed_from"] is None
    assert {path.name for path in folder.glob("*checkpoint*")} == {
        "checkpoint_5",
        *(f"before_checkpoint_{step}" for step in (5, 10, 15)),
    }


def test_a_run_goes_back_to_the_step_that_is_asked_for_once(folder, finished):
    result = start(folder, resume_step=5)
    assert (result["resumed_from"], result["line"]["step"]) == (5, 15)
    assert learnt(folder) == learnt(finished)
    rewound = [event for event in events(folder) if event["event"] == "rewound"]
    assert [(event["step"], event["from_step"], event["reason"]) for event in rewound] == [
        (5, 15, "train.resume_step = 5")
    ]
    assert {path.name for path in folder.glob("*checkpoint*")} == {
        *(f"checkpoint_{step}" for step in (5, 10, 15)),
        "abandoned_checkpoint_10",
        "abandoned_checkpoint_15",
    }
    # The command of a run that was killed since is the same, and does not go back again.
    assert start(folder, resume_step=5)["resumed_from"] == 15
    assert start(folder, steps=16, resume_step=5)["resumed_from"] == 15


def test_a_step_to_go_back_to_must_be_whole(folder):
    flip(largest(folder / "checkpoint_10"))
    for step, reason in ((10, "checkpoint_10: state/.* has other bytes"), (7, "steps 5, 10, 15")):
        with pytest.raises(UsageError, match=rf"(?s)train.resume_step = {step}: .*{reason}"):
            find_beginning(str(folder), checkpoint_period=5, resume_step=step)


def test_a_run_of_an_older_version_goes_on_with_a_word_that_it_was_not_verified(folder, finished):
    for path in folder.glob("checkpoint_*"):
        (path / "MANIFEST.json").unlink()
        run = json.loads((path / "run/metadata").read_text())
        del run["has_manifest"]
        (path / "run/metadata").write_text(json.dumps(run))
    start(folder, steps=16)
    assert learnt(folder)[: len(learnt(finished))] == learnt(finished)
    told = [event["reason"] for event in events(folder) if event["event"] == "warned"]
    assert any("checkpoint_15 is not verified" in reason for reason in told)


def test_nothing_of_another_run_is_moved(folder):
    """A configuration that points at the wrong MODEL_DIR is refused before anything is."""
    flip(largest(folder / "checkpoint_15"))
    before = sorted(os.listdir(folder))
    with pytest.raises(UsageError, match="holds another run"):
        start(folder, seed=7)
    assert sorted(os.listdir(folder)) == before


def test_a_dry_run_moves_nothing(folder):
    flip(largest(folder / "checkpoint_15"))
    before = sorted(os.listdir(folder))
    run = make_run(folder, steps=15, **OPTIONS)
    assert run.beginning.step == 10
    assert "checkpoint_15: state/" in run.beginning.notices[0]
    assert sorted(os.listdir(folder)) == before
