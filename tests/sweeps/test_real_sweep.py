"""The sweep over the real `train`."""

from .compare_with_single_runs import compare


def test_a_sweep_killed_once_gives_the_figures_of_single_runs(tmp_path):
    assert compare(tmp_path, rates=(0.001, 0.01), widths=(8,)) == 0.0
