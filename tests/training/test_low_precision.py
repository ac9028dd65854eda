"""A run that multiplies in eight bits, beside the same run that does not."""

import dataclasses

import jax
import numpy as np

from t5x_style.step.step import packed_batch
from t5x_style.training.session import open_session
from tests.training.runs import ARCHITECTURE, make_run

STEPS = 12


def losses(folder, matmul_dtype: str | None) -> np.ndarray:
    architecture = dataclasses.replace(ARCHITECTURE, layers=1, matmul_dtype=matmul_dtype)
    run = make_run(folder, steps=STEPS, architecture=architecture)
    session = open_session(run)
    state, curve = session.state, []
    for at in range(STEPS):
        rows = packed_batch(run.reader.rows(np.arange(8 * at, 8 * at + 8)))
        batch = jax.device_put(rows, session.batch_sharding)
        limits = session.limits_of(at + 1, 0)
        state, metrics, _ = session.steps[8, 16](state, batch, session.sums, limits)
        curve.append(float(metrics["loss"]))
    session.close()
    return np.array(curve)


def test_it_learns_what_the_compute_dtype_learns(tmp_path):
    plain, int8 = losses(tmp_path / "plain", None), losses(tmp_path / "int8", "int8")
    assert plain[-1] < 0.7 * plain[0]
    # A quarter of a per cent at most on two cores.
    np.testing.assert_allclose(int8, plain, rtol=0.005)
    # It is another computation, though.
    assert np.abs(int8 / plain - 1).max() > 1e-5
