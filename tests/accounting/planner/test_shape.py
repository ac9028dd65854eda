import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from t5x_style.accounting import total_parameters
from t5x_style.accounting.audit.bloomberggpt import ARCHITECTURE as BLOOMBERGGPT
from t5x_style.accounting.planner.shape import (
    STYLES,
    buildable_shape,
    guide_layers,
    levine_width,
    padded_vocabulary,
)
from t5x_style.errors import UsageError


def test_levine():
    """BloombergGPT's section 3.2, and the abstract of Levine et al.: 'width 30K for 1T'."""
    assert levine_width(70) == pytest.approx(7510.07, rel=1e-5)
    assert levine_width(95) == pytest.approx(30.1e3, rel=2e-3)
    assert 12 * 95 * levine_width(95) ** 2 == pytest.approx(1.03e12, rel=5e-3)


def test_the_guide_is_levine_the_other_way_round_and_never_below_two_layers():
    for layers in (6, 24, 70, 95):
        assert guide_layers(levine_width(layers)) == pytest.approx(layers)
    assert guide_layers(8) == 2
    depths = [guide_layers(width) for width in range(8, 9000, 8)]
    assert depths == sorted(depths)


def test_bloomberggpts_size_in_its_style_is_bloomberggpt():
    shape = buildable_shape(50.56e9, vocab_size=131_072, style="bloomberggpt")
    assert shape == BLOOMBERGGPT


def test_llamas_size_in_its_style_has_llama_3_8bs_width_heads_and_groups():
    """Its depth is 32 and its feed-forward 3.5 D; ours is deeper by Levine's guide."""
    shape = buildable_shape(8.03e9, vocab_size=128_256)
    assert (shape.d_model, shape.heads, shape.kv_heads, shape.head_dim) == (4096, 32, 8, 128)
    assert not shape.tied_head


@pytest.mark.parametrize("style", STYLES)
@example(exponent=7.953125, vocab_size=2048)  # rounding once left 2.2 D for 8/3 D
@given(
    exponent=st.floats(5, 13),
    vocab_size=st.sampled_from([256, 2048, 32_000, 50_257, 131_072]),
)
def test_every_size_can_be_built(style, exponent, vocab_size):
    params = 10**exponent
    vocabulary = padded_vocabulary(vocab_size)
    # Where a step of the width is more than 3 % of the model, it may be unreachable: tested below.
    assume(params >= 256 * vocabulary)
    shape = buildable_shape(params, vocab_size=vocab_size, style=style)
    assert abs(total_parameters(shape) / params - 1) <= 0.03
    assert shape.vocab_size == vocabulary >= vocab_size
    assert shape.vocab_size % 128 == 0
    assert shape.heads * shape.head_dim == shape.d_model
    assert shape.head_dim % 8 == 0
    assert shape.layers >= 2
    if params > 1e8:
        assert shape.d_model % 128 == shape.d_ff % 128 == 0
        assert shape.head_dim in ((64, 96, 192) if style == "bloomberggpt" else (64, 128))
    expected = 4 if style == "bloomberggpt" else 8 / 3
    if shape.d_model >= 3072:
        assert shape.heads % 8 == shape.kv_heads % 8 == 0
    elif shape.d_model >= 512:
        assert (shape.head_dim, shape.kv_heads) == (64, shape.heads)
    else:
        assert shape.heads >= 4 or shape.head_dim == 8
    # Rounding leaves no usual range; a larger gelu is 4 D.
    if shape.d_model >= 64:
        assert shape.d_ff / shape.d_model == pytest.approx(expected, rel=0.1501)
    if style == "bloomberggpt":
        assert shape.tied_head
        assert shape.d_model < 512 or shape.d_ff == 4 * shape.d_model
    else:
        assert shape.tied_head == (params < 4e9)
        assert shape.d_model < 3072 or (shape.head_dim, shape.kv_heads) == (128, 8)


@pytest.mark.parametrize("style", STYLES)
def test_the_depth_stays_near_the_guide(style):
    for exponent in range(20, 53):
        shape = buildable_shape(10 ** (exponent / 4), vocab_size=2048, style=style)
        assert abs(math.log(shape.layers / guide_layers(shape.d_model))) < math.log(2), shape


def test_a_smaller_model_ties_its_head_and_a_larger_one_groups_its_queries():
    small = buildable_shape(1.2e9, vocab_size=128_256)
    large = buildable_shape(70e9, vocab_size=128_256)
    assert (small.tied_head, small.kv_heads) == (True, small.heads)
    assert (large.tied_head, large.kv_heads) == (False, 8)


@pytest.mark.parametrize(("params", "tied"), [(3.99e9, True), (4e9, False)])
def test_the_head_has_a_matrix_of_its_own_from_four_billion_parameters(params, tied):
    assert buildable_shape(params, vocab_size=32_000).tied_head == tied


def test_the_vocabulary_is_rounded_up_and_never_down():
    assert padded_vocabulary(50_257) == 50_304
    assert padded_vocabulary(131_072) == 131_072


def test_a_vocabulary_larger_than_the_model_is_refused_with_the_smallest_that_there_is():
    with pytest.raises(UsageError, match=r"smallest llama model .* has 404,136 parameters"):
        buildable_shape(1e5, vocab_size=50_257)
    smallest = buildable_shape(404_136, vocab_size=50_257)
    assert total_parameters(smallest) == 404_136


def test_a_size_between_two_widths_that_are_all_embedding_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"nearest llama model has 3,159,672"):
        buildable_shape(3e6, vocab_size=131_072)
    assert total_parameters(buildable_shape(3_159_672, vocab_size=131_072)) == 3_159_672


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"style": "lama"}, "did you mean 'llama'"),
        ({"vocab_size": 0}, "vocab_size = 0"),
        ({"params": -1.0}, "params = -1.0"),
        ({"params": math.inf}, "params = inf"),
        ({"params": math.nan}, "params = nan"),
    ],
)
def test_impossible_asks_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        buildable_shape(**{"params": 1e9, "vocab_size": 32_000, **change})
