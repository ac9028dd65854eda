"""Which checkpoints of a run are whole, and which one a reader gets."""

import os
import shutil

import pytest

from t5x_style.checkpoints import (
    checkpoint_steps,
    find_checkpoint,
    find_newest,
    run_folder,
    set_aside,
)
from t5x_style.errors import UsageError
from tests.checkpoints.whole import write_checkpoint


def own(manifest):
    seed = manifest["identity"]["seed"]
    return None if seed == 7 else f"is of another run, with seed {seed}"


@pytest.fixture
def model_dir(tmp_path):
    for step in (9, 10, 11):
        write_checkpoint(tmp_path, step)
    return tmp_path


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def replace_by_file(folder):
    shutil.rmtree(folder)
    folder.write_text("")


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_link(folder):
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")


def copy_of_an_older_one(folder):
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("checkpoint_9"), folder)


def of_another_run(folder):
    shutil.rmtree(folder)
    write_checkpoint(folder.parent, 11, {"seed": 8})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda c: flip(c / "state/ocdbt.process_0/d/x"), "d/x has other bytes than were written"),
        (lambda c: flip(c / "MANIFEST.json"), "MANIFEST.json is damaged"),
        (lambda c: os.truncate(c / "run/metadata", 9), "run/metadata has 9 bytes instead of"),
        (lambda c: shutil.rmtree(c / "run"), "run/metadata is missing"),
        (lambda c: shutil.rmtree(c / "state"), "has no folder state"),
        (lambda c: (c / "MANIFEST.json").unlink(), "MANIFEST.json is missing"),
        (empty, "has no folder state"),
        (replace_by_file, "is not a folder"),
        (replace_by_link, "is not a folder"),
        (copy_of_an_older_one, "is the checkpoint of step 9"),
        (of_another_run, "is of another run, with seed 8"),
    ],
)
def test_a_newest_checkpoint_that_is_not_whole_is_named_and_the_one_before_taken(
    model_dir, capsys, damage, reason
):
    damage(model_dir / "checkpoint_11")
    before = sorted(os.listdir(model_dir))
    found = find_newest(str(model_dir), own)
    assert (found.step, found.verified) == (10, True)
    assert [refused.name for refused in found.refused] == ["checkpoint_11"]
    assert reason in found.refused[0].reason
    # A reader takes the same one, says why, and moves nothing.
    assert find_checkpoint(str(model_dir), own) == model_dir / "checkpoint_10"
    assert reason in capsys.readouterr().err
    assert sorted(os.listdir(model_dir)) == before
    # One that was asked for is not replaced by another.
    for path, step in ((model_dir / "checkpoint_11", None), (model_dir, 11)):
        with pytest.raises(UsageError, match=f"checkpoint_11: .*{reason}"):
            find_checkpoint(str(path), own, step=step)


def test_where_none_is_whole_all_are_named(model_dir):
    for step in (9, 10, 11):
        flip(model_dir / f"checkpoint_{step}/state/_METADATA")
    with pytest.raises(UsageError) as refusal:
        find_checkpoint(str(model_dir), own)
    for step in (9, 10, 11):
        assert f"checkpoint_{step}: state/_METADATA has other bytes" in str(refusal.value)
    assert find_newest(str(model_dir), own).step is None


def test_an_older_folder_that_is_no_checkpoint_is_refused_as_well(model_dir):
    """A run that goes back would save into it."""
    empty(model_dir / "checkpoint_9")
    found = find_newest(str(model_dir), own)
    assert found.step == 11
    assert [(refused.step, refused.reason) for refused in found.refused] == [
        (9, "has no folder state")
    ]
    assert set(checkpoint_steps(str(model_dir))) == {10, 11}


def test_one_of_an_older_version_is_taken_and_called_not_verified(tmp_path, capsys):
    write_checkpoint(tmp_path, 3, with_manifest=False)
    found = find_newest(str(tmp_path), own)
    assert (found.step, found.verified) == (3, False)
    assert "checkpoint_3 is not verified: an older version" in found.notices[0]
    assert find_checkpoint(str(tmp_path / "checkpoint_3"), own) == tmp_path / "checkpoint_3"
    assert "checkpoint_3 is not verified" in capsys.readouterr().err


def test_a_checkpoint_of_step_0_is_one(tmp_path):
    write_checkpoint(tmp_path, 0)
    assert find_newest(str(tmp_path), own).step == 0


def test_names_are_those_that_a_run_writes(model_dir):
    for name in ("checkpoint_12.orbax-checkpoint-tmp", "checkpoint_x", "checkpoint_011"):
        shutil.copytree(model_dir / "checkpoint_11", model_dir / name)
    assert sorted(checkpoint_steps(str(model_dir))) == [9, 10, 11]
    assert find_newest(str(model_dir), own).step == 11
    assert checkpoint_steps(str(model_dir / "absent")) == {}


def test_a_checkpoint_is_found_by_its_path_by_its_step_and_under_another_name(model_dir):
    assert find_checkpoint(str(model_dir), own) == model_dir / "checkpoint_11"
    assert find_checkpoint(str(model_dir), own, step=9) == model_dir / "checkpoint_9"
    (model_dir / "checkpoint_10").rename(model_dir / "best")
    assert find_checkpoint(str(model_dir / "best"), own) == model_dir / "best"
    for path in ("", "best", "checkpoint_9"):
        assert run_folder(str(model_dir / path)) == str(model_dir)
    near = "next to it: checkpoint_11, checkpoint_9$"
    for path, step in ((model_dir / "checkpoint_8", None), (model_dir, 8)):
        with pytest.raises(UsageError, match=near):
            find_checkpoint(str(path), own, step=step)
    with pytest.raises(UsageError, match=r"neither a checkpoint nor a run with one$"):
        find_checkpoint(str(model_dir / "checkpoint_9" / "state" / "ocdbt.process_0"), own)


def test_what_is_set_aside_replaces_nothing(model_dir):
    for expected in ("damaged_checkpoint_9", "damaged_checkpoint_9_2", "damaged_checkpoint_9_3"):
        content = sorted((model_dir / "checkpoint_9").rglob("*"))
        assert set_aside(model_dir / "checkpoint_9", "damaged") == model_dir / expected
        assert len(sorted((model_dir / expected).rglob("*"))) == len(content)
        write_checkpoint(model_dir, 9)
