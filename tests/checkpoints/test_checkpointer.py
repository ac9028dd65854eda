"""Which checkpoints stay; that a state comes back whole is in test_resume.py."""

import shutil
import threading

import jax
import jax.numpy as jnp
import pytest
from orbax.checkpoint._src.checkpointers import async_checkpointer as orbax_saving

from t5x_style.checkpoints import Checkpointer, checkpoint_steps, find_newest
from t5x_style.checkpoints.checkpointer import EndedSave


def save(checkpointer: Checkpointer, step: int, **options) -> EndedSave:
    """Save a state that says its step; how that ended."""
    state = {"step": jnp.int32(step), "weights": jnp.full(64, step, jnp.float32)}
    checkpointer.save(step, state, {"tokens": step}, **options)
    ended = checkpointer.ended(wait_seconds=60)
    assert ended is not None
    assert ended.step == step
    return ended


@pytest.mark.parametrize(
    ("keep", "keep_period", "best", "kept"),
    [
        (2, None, {}, {6, 7}),
        (2, 0, {}, {6, 7}),
        (1, 3, {}, {0, 3, 6, 7}),
        # The best is 1 up to step 4, then 5: the old one may go, the new one stays.
        (1, None, {**dict.fromkeys((1, 2, 3, 4), 1), **dict.fromkeys((5, 6, 7), 5)}, {5, 7}),
        (2, 4, dict.fromkeys(range(1, 8), 1), {0, 1, 4, 6, 7}),
    ],
)
def test_the_newest_every_nth_and_the_best_are_kept(tmp_path, keep, keep_period, best, kept):
    checkpointer = Checkpointer(str(tmp_path), keep=keep, keep_period=keep_period)
    for step in range(8):
        save(checkpointer, step, best_steps=[best[step]] if step in best else [])
    checkpointer.close()
    assert set(checkpoint_steps(str(tmp_path))) == kept


def test_the_best_of_an_earlier_life_is_kept(tmp_path):
    for steps in (range(3), range(3, 6)):
        checkpointer = Checkpointer(str(tmp_path), keep=1, keep_period=None)
        for step in steps:
            save(checkpointer, step, best_steps=[0])
        checkpointer.close()
    assert set(checkpoint_steps(str(tmp_path))) == {0, 5}


def content(checkpointer: Checkpointer, step: int) -> float:
    target = {"step": jnp.int32(0), "weights": jnp.zeros(64)}
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), target
    )
    state, run = checkpointer.restore(step, target)
    assert int(state["step"]) == run["tokens"] == step
    return float(state["weights"][0])


@pytest.fixture
def checkpointer(tmp_path):
    checkpointer = Checkpointer(str(tmp_path), keep=2, keep_period=None)
    yield checkpointer
    checkpointer.close()


def test_the_state_that_is_saved_may_be_donated_at_once(checkpointer):
    overwrite = jax.jit(lambda state: jax.tree.map(lambda x: x * 0, state), donate_argnums=0)
    state = {"step": jnp.int32(1), "weights": jnp.full(64, 3.0)}
    checkpointer.save(1, state, {"tokens": 1})
    overwrite(state)
    assert state["weights"].is_deleted()
    assert checkpointer.ended(wait_seconds=60).error is None
    assert content(checkpointer, 1) == 3.0


def test_the_end_of_a_save_is_told_once_and_must_be_asked_for(checkpointer):
    assert checkpointer.ended() is None
    may_go_on = threading.Event()
    state, late = {"step": jnp.int32(1), "weights": jnp.zeros(64)}, {"late": 2}
    checkpointer.save(1, state, {"tokens": 1}, last_facts=lambda: may_go_on.wait() and late)
    assert checkpointer.ended() is None
    assert checkpointer.latest_step() is None
    with pytest.raises(RuntimeError, match="step 2: a save is in progress"):
        checkpointer.save(2, state, {"tokens": 2})
    may_go_on.set()
    assert checkpointer.ended(wait_seconds=60) == EndedSave(1, pytest.approx(0, abs=60))
    assert checkpointer.ended() is None
    assert checkpointer.latest_step() == 1


def test_what_is_left_of_a_save_is_removed_by_the_next(checkpointer, tmp_path):
    """Of a process that was killed, or of a save that failed; nothing else is touched."""
    others = ["checkpoint_8.mine", "other.orbax-checkpoint-tmp"]
    for name in ("checkpoint_7.orbax-checkpoint-tmp", *others):
        (tmp_path / name / "state").mkdir(parents=True)

    def broken():
        raise OSError("no lines")

    assert str(save(checkpointer, 1, last_facts=broken).error) == "no lines"
    assert save(checkpointer, 2).error is None
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint_2", *others}


def test_a_kill_while_an_old_checkpoint_is_removed_leaves_no_half_of_it(
    checkpointer, tmp_path, monkeypatch
):
    def killed(folder):
        raise OSError(f"killed in {folder.name}")

    for step in (1, 2):
        save(checkpointer, step)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        ended = save(checkpointer, 3)
    assert ended.error is None
    assert str(ended.not_removed) == "killed in checkpoint_1.orbax-checkpoint-tmp"
    assert set(checkpoint_steps(str(tmp_path))) == {2, 3}
    # The next save removes the rest.
    assert save(checkpointer, 4).not_removed is None
    assert not (tmp_path / "checkpoint_1.orbax-checkpoint-tmp").exists()


def test_room_is_made_by_what_the_policy_lets_go_and_the_newest_stays(tmp_path, monkeypatch):
    write = orbax_saving._background_wait_for_commit_futures
    there = []

    def full(directory, *arguments, **options):
        there.append(set(checkpoint_steps(str(directory.parent))))
        return write(directory, *arguments, **options)

    monkeypatch.setattr(orbax_saving, "_background_wait_for_commit_futures", full)
    for keep in (2, 1):
        checkpointer = Checkpointer(str(tmp_path / str(keep)), keep=keep, keep_period=None)
        for step in (1, 2, 3):
            save(checkpointer, step, make_room=step == 3)
        checkpointer.close()
    # While the third is written, only the newest before it has to be there.
    assert there == [set(), {1}, {2}, set(), {1}, {2}]


def test_a_pinned_checkpoint_is_kept_from_any_moment_on(checkpointer, tmp_path):
    for step in range(1, 4):
        save(checkpointer, step)
        if step == 2:
            (tmp_path / "checkpoint_2/PINNED").touch()
    for step in (4, 5, 6):
        save(checkpointer, step)
    assert set(checkpoint_steps(str(tmp_path))) == {2, 5, 6}
    (tmp_path / "checkpoint_2/PINNED").unlink()
    save(checkpointer, 7)
    assert set(checkpoint_steps(str(tmp_path))) == {6, 7}


def test_a_run_that_goes_back_saves_the_later_steps_again(checkpointer, tmp_path):
    """Unlike the pinned one: its folder is moved aside."""
    checkpointer._keep = 9
    for step in (1, 2, 3, 4):
        save(checkpointer, step)
    (tmp_path / "checkpoint_4/PINNED").touch()
    checkpointer.forget_after(2)
    assert checkpointer.latest_step() == 2
    assert (tmp_path / "abandoned_checkpoint_4/state").is_dir()
    for step in (3, 4):
        assert save(checkpointer, step).error is None
    assert content(checkpointer, 4) == 4.0
    # A second time as well.
    (tmp_path / "checkpoint_4/PINNED").touch()
    checkpointer.forget_after(3)
    assert (tmp_path / "abandoned_checkpoint_4_2/state").is_dir()


def test_a_step_that_is_there_is_not_written_over(checkpointer):
    save(checkpointer, 1)
    assert "already exists" in str(save(checkpointer, 1).error)
    assert content(checkpointer, 1) == 1.0


def test_one_that_lost_its_manifest_is_not_taken_for_that_of_an_older_version(
    checkpointer, tmp_path
):
    for step in (1, 2):
        save(checkpointer, step)
    (tmp_path / "checkpoint_2/MANIFEST.json").unlink()
    found = find_newest(str(tmp_path), lambda manifest: None)
    assert (found.step, found.verified) == (1, True)
    assert [str(refused) for refused in found.refused] == ["checkpoint_2: MANIFEST.json is missing"]
