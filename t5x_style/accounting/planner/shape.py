"""A decoder of about N parameters whose sizes a mesh and a TPU's vector lanes divide."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

from t5x_style.accounting.architecture import Architecture
from t5x_style.accounting.attention_blocks import LANES
from t5x_style.accounting.parameter_count import total_parameters
from t5x_style.errors import UsageError, did_you_mean

STYLES = {
    "llama": "rope, rms norm, swiglu of about 8/3 D, no biases; grouped queries and heads of 128 "
    "from a width of 3072, a tied head below 4e9 parameters",
    "bloomberggpt": "alibi, layer norm, gelu of 4 D (near it below a width of 512), biases, a tied "
    "head, a norm after the embedding; heads of 192, 96 or 64",
}

# Largest relative difference from the wanted number of parameters.
TOLERANCE = 0.03

# Llama 3.2 1B (width 2048) has heads of 64, the 3B (width 3072) heads of 128; both tie their head,
# the 8B of Llama 3 does not. All share 8 key-value heads (Grattafiori et al. 2024).
_LARGE_FROM = 3072
_UNTIED_FROM = 4e9
_KV_HEADS = 8

# Heads of 64, 96 and 192 leave room in a tile for the features that ALiBi adds to them.
_ALIBI_HEADS = (192, 96, 64)
_SMALL_HEADS = (64, 48, 32, 24, 16, 8)
_SMALL_HEAD_COUNT = 4
# Narrower models may have heads of less than 64, widths in steps finer than 128, and any
# feed-forward near 4 D.
_SMALL_BELOW = 512

# Levine et al. fitted networks of six layers and more.
_FITTED_LAYERS = 6
_LEAST_LAYERS = 2
# Nobody would train a depth that differs from the guide by more than this factor.
_DEPTH_SLACK = math.log(3.0)
# A finer width leaves tiles partly filled; it pays only where coarse widths miss by more than this.
_DEPTH_GOOD = math.log(1.5)
# How far the inner width may differ from 8/3 D or 4 D to meet the number of parameters.
_FEED_FORWARD_SLACK = 0.15
_FINE_STEPS = (64, 32, 16, 8)


def levine_width(layers: float) -> float:
    """The best width for a depth: exp(5.039) exp(0.0555 L).

    Levine et al. 2020, "Limits to depth efficiencies of self-attention". BloombergGPT chose its
    shape by this rule (section 3.2).
    """
    return math.exp(5.039 + 0.0555 * layers)


def guide_layers(width: float) -> float:
    """The best depth for a width: the inverse of `levine_width`.

    Below the width of six layers, where Levine et al. have no networks, the depth falls in
    proportion to the width, to two layers.
    """
    narrowest = levine_width(_FITTED_LAYERS)
    if width < narrowest:
        return max(_LEAST_LAYERS, _FITTED_LAYERS * width / narrowest)
    return (math.log(width) - 5.039) / 0.0555


def padded_vocabulary(vocab_size: int) -> int:
    """V rounded up to a multiple of 128, so that the head fills its tiles.

    The added rows belong to no token.
    """
    return -(-vocab_size // LANES) * LANES


def buildable_shape(params: float, *, vocab_size: int, style: str = "llama") -> Architecture:
    """The decoder of about `params` parameters whose depth suits its width best.

    The width is a multiple of 128 wherever the size admits it; small models (up to some tens of
    millions of parameters) take finer steps, down to 8. The feed-forward is a multiple of the same
    step; heads and key-value heads are multiples of 8 from a width of 3072, so that a tensor axis
    of the mesh divides them.

    Args:
      params: N, embedding and head included.
      vocab_size: V of the tokenizer; rounded up by `padded_vocabulary`, never reduced.
      style: one of STYLES.

    Returns:
      An Architecture with N within TOLERANCE.

    Raises:
      UsageError: no such style; a size below 1; or no shape of that size with that vocabulary: the
        message gives the smallest N, or the nearest.
    """
    if style not in STYLES:
        raise UsageError(
            f"no style {style!r}: one of {', '.join(STYLES)}{did_you_mean(str(style), STYLES)}"
        )
    for name, value in (("params", params), ("vocab_size", vocab_size)):
        if not 1 <= value < math.inf:
            raise UsageError(f"{name} = {value!r}: must be 1 or more")
    wanted = _Wanted(params, padded_vocabulary(vocab_size), style)
    shapes: list[Architecture] = []
    for step in (LANES, *_FINE_STEPS):
        shapes += _shapes(wanted, step, None if step == LANES else _SMALL_BELOW)
        fitting = [shape for shape in shapes if _missed(shape, params) <= TOLERANCE]
        # One per cent of N counts as four of depth: neither changes the loss much.
        best = min(fitting, key=lambda s: _depth_cost(s) + 4 * _missed(s, params), default=None)
        if best is not None and (best.d_model >= _SMALL_BELOW or _depth_cost(best) <= _DEPTH_GOOD):
            return best
    if best is not None:
        return best
    smallest = _smallest(wanted)
    if params < total_parameters(smallest):
        raise UsageError(
            f"params = {params:,.0f} with vocab_size = {vocab_size:,} (padded to "
            f"{wanted.vocabulary:,}): the smallest {style} model with this vocabulary has "
            f"{total_parameters(smallest):,} parameters, {wanted.vocabulary * smallest.d_model:,} "
            "of them its embedding; ask for that many, or train a smaller vocabulary"
        )
    nearest = min((*shapes, smallest), key=lambda shape: _missed(shape, params))
    raise UsageError(
        f"params = {params:,.0f} with vocab_size = {vocab_size:,}: each step of the width "
        f"adds more than {2 * TOLERANCE:.0%}; the nearest {style} model has "
        f"{total_parameters(nearest):,} parameters"
    )


@dataclasses.dataclass(frozen=True)
class _Wanted:
    params: float
    vocabulary: int
    style: str


def _missed(shape: Architecture, params: float) -> float:
    return abs(total_parameters(shape) / params - 1)


def _depth_cost(shape: Architecture) -> float:
    """The difference of the depth from the guide, as a logarithm; too deep counts twice.

    Levine et al. find that depth past the guide adds nothing, where a wider model still gains.
    """
    error = math.log(shape.layers / guide_layers(shape.d_model))
    return max(2 * error, -error)


def _shapes(wanted: _Wanted, step: int, below: int | None) -> Iterator[Architecture]:
    """Every width in steps (narrower than `below`), with the depths that bring it near the size."""
    width = 0
    while True:
        # Steps of a 32nd at most: a finer step changes the shape less than a layer does.
        width += step * 2 ** max(0, math.floor(math.log2(max(width, 1) / (32 * step))))
        # A layer has two matrices [D, D] at least, and there are two layers.
        least = wanted.vocabulary * width + 4 * width**2
        if (below is not None and width >= below) or least > 2 * wanted.params:
            return
        two = _shape(wanted, width, _LEAST_LAYERS, step)
        if two is None:
            continue
        layer = total_parameters(dataclasses.replace(two, layers=_LEAST_LAYERS + 1))
        layer -= total_parameters(two)
        layers = _LEAST_LAYERS + (wanted.params - total_parameters(two)) / layer
        too_deep = math.log(max(layers, 1) / guide_layers(width))
        if too_deep <= _DEPTH_SLACK:
            for depth in range(math.floor(layers) - 1, math.ceil(layers) + 2):
                if depth >= _LEAST_LAYERS:
                    yield _tuned(wanted, dataclasses.replace(two, layers=depth), step)
        if layers < 1 or too_deep < -_DEPTH_SLACK:
            yield two
            return


def _shape(wanted: _Wanted, width: int, layers: int, step: int) -> Architecture | None:
    """The style at a width; None where no heads divide it."""
    bloomberg = wanted.style == "bloomberggpt"
    kv_heads = None
    if width < _SMALL_BELOW:
        several = [size for size in _SMALL_HEADS if size * _SMALL_HEAD_COUNT <= width]
        head_dim = _head_dim(width, (*several, _SMALL_HEADS[-1]), 1)
    elif width < _LARGE_FROM:
        head_dim = _head_dim(width, (64,), 1)
    elif bloomberg:
        head_dim = _head_dim(width, _ALIBI_HEADS, 8)
    else:
        head_dim = _head_dim(width, (128,), 8)
        kv_heads = _KV_HEADS
    if head_dim is None:
        return None
    return Architecture(
        vocab_size=wanted.vocabulary,
        layers=layers,
        d_model=width,
        d_ff=4 * width if bloomberg else _rounded(8 * width / 3, _feed_forward_step(width, step)),
        heads=width // head_dim,
        kv_heads=kv_heads or width // head_dim,
        head_dim=head_dim,
        positions="alibi" if bloomberg else "rope",
        norm="layer" if bloomberg else "rms",
        feed_forward="gelu" if bloomberg else "swiglu",
        biases=bloomberg,
        tied_head=bloomberg or wanted.params < _UNTIED_FROM,
        embedding_norm=bloomberg,
    )


def _head_dim(width: int, sizes: tuple[int, ...], multiple: int) -> int | None:
    """The largest head size of which a width has a multiple of `multiple` heads."""
    fitting = (size for size in sizes if width % size == 0 and width // size % multiple == 0)
    return next(fitting, None)


def _tuned(wanted: _Wanted, shape: Architecture, step: int) -> Architecture:
    """The shape with its inner width moved to meet the size; a large model's gelu stays at 4 D."""
    gated = shape.feed_forward_kind.gated
    if not gated and shape.d_model >= _SMALL_BELOW:
        return shape
    usual, matrices = (8 * shape.d_model / 3, 3) if gated else (4 * shape.d_model, 2)
    missing = wanted.params - total_parameters(shape)
    meets = shape.d_ff + missing / (matrices * shape.layers * shape.d_model)
    least, most = usual * (1 - _FEED_FORWARD_SLACK), usual * (1 + _FEED_FORWARD_SLACK)
    inner_step = _feed_forward_step(shape.d_model, step)
    inner = _rounded(min(max(meets, least), most), inner_step)
    # Rounding must not leave the usual range.
    inner += inner_step if inner < least else -inner_step if inner > most else 0
    return dataclasses.replace(shape, d_ff=max(inner, inner_step))


def _feed_forward_step(width: int, step: int) -> int:
    """The step, doubled while it stays a 16th of the width: a mesh finds more divisors."""
    return step * 2 ** max(0, math.floor(math.log2(width / (16 * step))))


def _rounded(value: float, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)


def _smallest(wanted: _Wanted) -> Architecture:
    step = _FINE_STEPS[-1]
    shapes = (_shape(wanted, width, _LEAST_LAYERS, step) for width in itertools.count(step, step))
    return next(shape for shape in shapes if shape is not None)
