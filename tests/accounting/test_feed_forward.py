import json
import sys
from dataclasses import asdict, replace

import pytest

from t5x_style.accounting import Architecture, FeedForwardKind, StepShape, Topology, parameters
from t5x_style.accounting.layouts.memory import step_memory
from t5x_style.errors import UsageError

SWIGLU = Architecture(40, 2, 24, 48, 4, feed_forward="swiglu", biases=True)


@pytest.fixture
def team(tmp_path, monkeypatch):
    """A module of its own that loads no jax."""
    (tmp_path / "light_team.py").write_text(
        "from t5x_style.accounting import FeedForwardKind\n"
        "REGLU = FeedForwardKind(gated=True, factor_arrays=3, activation=lambda up, gate: up)\n"
        "BARE = FeedForwardKind(gated=True, factor_arrays=3)\n"
    )
    (tmp_path / "broken_team.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "light_team"
    for name in ("light_team", "broken_team"):
        sys.modules.pop(name, None)


def test_the_accounts_ask_a_users_kind_for_its_numbers(team):
    reglu = replace(SWIGLU, feed_forward=f"{team}.REGLU")
    assert isinstance(reglu.feed_forward_kind, FeedForwardKind)
    assert parameters(reglu) == parameters(SWIGLU)
    ours, theirs = (
        step_memory(StepShape(architecture, 2, 8), Topology()) for architecture in (reglu, SWIGLU)
    )
    # One array of F bfloat16 numbers fewer for each of the 16 tokens.
    assert ours == replace(theirs, layer=theirs.layer - 2 * 16 * 48)


@pytest.mark.parametrize(
    ("kind", "in_bfloat16", "in_float32"),
    [
        # Factors of the derivative of gelu's tanh form.
        ("gelu", 6 * 2, 6 * 4),
        # Two factors and a mask.
        ("relu2", 2 * 2 + 1, 2 * 4 + 1),
        # Two products and their gradients.
        ("swiglu", 4 * 2, 4 * 4),
    ],
)
def test_bytes_of_the_backward_pass_in_an_activation(kind, in_bfloat16, in_float32):
    """For each of the F of a token: 16 tokens and an F that is greater by 48."""
    for dtype, expected in (("bfloat16", in_bfloat16), ("float32", in_float32)):
        narrow, wide = (
            step_memory(
                StepShape(replace(SWIGLU, feed_forward=kind, d_ff=width), 2, 8, dtype),
                Topology(remat="full"),
            )
            for width in (48, 96)
        )
        assert wide.layer - narrow.layer == 16 * 48 * expected


def test_it_goes_into_json_and_comes_back(team):
    reglu = replace(SWIGLU, feed_forward=f"{team}.REGLU")
    plain = json.loads(json.dumps(asdict(reglu)))
    assert plain["feed_forward"] == "light_team.REGLU"
    assert Architecture(**plain) == reglu


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swiglo", r"one of gelu, swiglu, relu2, nor the dotted path .* did you mean 'swiglu'"),
        ("light_tean.REGLU", "light_tean cannot be imported: ModuleNotFoundError"),
        ("broken_team.REGLU", "broken_team cannot be imported: ZeroDivisionError"),
        ("light_team.REGLUE", "light_team has no 'REGLUE'; did you mean 'REGLU'"),
        ("light_team.BARE", "must have an activation, not FeedForwardKind"),
        ("light_team.FeedForwardKind", "must be a t5x_style.accounting.feed_forward.Feed"),
        ("math.pi", "FeedForwardKind, not 3.14"),
    ],
)
def test_a_kind_that_is_none_is_refused(team, name, message):
    with pytest.raises(UsageError, match=message):
        replace(SWIGLU, feed_forward=name)
