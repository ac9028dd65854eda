"""Which checkpoints stay; that a state comes back whole is in test_resume.py."""

import jax.numpy as jnp
import pytest

from t5x_style.errors import UsageError
from t5x_style.training.checkpoints import Checkpointer, checkpoint_steps, find_checkpoint


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
        checkpointer.save(step, {"step": jnp.int32(step)}, {"tokens": step}, best.get(step))
    checkpointer.close()
    assert set(checkpoint_steps(str(tmp_path))) == kept


def test_the_best_of_an_earlier_life_is_kept(tmp_path):
    for steps in (range(3), range(3, 6)):
        checkpointer = Checkpointer(str(tmp_path), keep=1, keep_period=None)
        for step in steps:
            checkpointer.save(step, {"step": jnp.int32(step)}, {"tokens": step}, 0)
        checkpointer.close()
    assert set(checkpoint_steps(str(tmp_path))) == {0, 5}


def test_the_newest_checkpoint_is_that_of_the_highest_step(tmp_path):
    names = ("checkpoint_9", "checkpoint_10", "checkpoint_11.orbax-checkpoint-tmp", "checkpoint_x")
    for name in names:
        (tmp_path / name / "state").mkdir(parents=True)
    assert sorted(checkpoint_steps(str(tmp_path))) == [9, 10]
    assert find_checkpoint(str(tmp_path)) == tmp_path / "checkpoint_10"
    assert find_checkpoint(str(tmp_path / "checkpoint_9")) == tmp_path / "checkpoint_9"
    with pytest.raises(
        UsageError, match=r"next to it: checkpoint_10, .*, checkpoint_9, checkpoint"
    ):
        find_checkpoint(str(tmp_path / "checkpoint_8"))
    with pytest.raises(UsageError, match=r"neither a checkpoint nor a run with one$"):
        find_checkpoint(str(tmp_path / "checkpoint_9" / "state"))
    assert checkpoint_steps(str(tmp_path / "absent")) == {}
