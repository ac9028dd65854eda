"""Limits on the signs of a slow divergence are told once for each time that one is passed."""

import types

import pytest

from t5x_style.training.recovery.monitors import Monitors
from t5x_style.training.rewind import tell_divergence


def test_a_limit_is_told_when_a_line_passes_it_and_again_after_it_fell():
    run = types.SimpleNamespace(monitors=Monitors(2.0, embedding_rms=0.5, update_ratio=None))
    events = []
    writer = types.SimpleNamespace(event=lambda kind, **fields: events.append((kind, fields)))
    session, before = types.SimpleNamespace(writer=writer), {}
    gains = [1.0, 2.0, 2.5, 3.0, None, 3.0, 1.5, 2.25]
    for step, gain in enumerate(gains, 1):
        line = {
            "step": step,
            "tokens": 10 * step,
            "monitor/first_gain_rms": gain,
            "monitor/embedding_rms": 0.125 * step,
            "monitor/update_ratio": 1e9,
        }
        tell_divergence(run, session, before, line)
        before = line
    assert [(kind, fields["step"], fields["tokens"]) for kind, fields in events] == [
        ("warned", 3, 30), ("warned", 5, 50), ("warned", 6, 60), ("warned", 8, 80),
    ]  # fmt: skip
    reasons = [fields["reason"] for _, fields in events]
    assert reasons[0] == "first_gain_rms 2.5 is above the limit Monitors.first_gain_rms = 2"
    assert reasons[1].startswith("embedding_rms 0.625 is above")


@pytest.mark.parametrize("line", [{}, {"loss": 2.0}, {"monitor/first_gain_rms": float("nan")}])
def test_a_line_without_a_figure_passes_no_limit(line):
    assert Monitors().warnings({}, line) == []
