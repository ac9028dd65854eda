import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5x_style.accounting import Architecture
from t5x_style.kernels import blockwise_attention
from t5x_style.models import Decoder
from tests.jaxprs import equations
from tests.models import reference
from tests.models.architectures import ARCHITECTURES, BLOOMBERG, GPT2, LLAMA

TOKENS = np.random.default_rng(7).integers(0, 40, (2, 9))


@dataclasses.dataclass(frozen=True)
class Case:
    """A decoder with drawn parameters and the logits that the compiled forward pass gives."""

    architecture: Architecture
    decoder: Decoder
    parameters: dict
    forward: object

    @functools.cached_property
    def logits(self) -> np.ndarray:
        return np.asarray(self.forward(TOKENS))


@functools.cache
def case(name: str, **options) -> Case:
    architecture = ARCHITECTURES[name]
    options = {"compute_dtype": jnp.float32, **options}
    decoder, parameters = reference.with_random_parameters(
        lambda: Decoder(architecture, rngs=nnx.Rngs(0), **options)
    )

    @jax.jit
    def forward(tokens):
        return decoder.logits(decoder(tokens)[0])

    return Case(architecture, decoder, parameters, forward)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_against_numpy(name):
    expected = reference.logits(case(name).architecture, case(name).parameters, TOKENS)
    assert expected.std() > 0.3
    np.testing.assert_allclose(case(name).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bloomberg", "sliding_window"])
def test_another_kernel_changes_nothing(name):
    other = case(name, kernel=functools.partial(blockwise_attention, block_size=3))
    np.testing.assert_allclose(other.logits, case(name).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt2", {}),
        ("llama", {}),
        ("bloomberg", {"kernel": functools.partial(blockwise_attention, block_size=3)}),
        ("sliding_window", {"remat": "full"}),
    ],
)
def test_segments_of_a_row_are_what_each_is_alone(name, options):
    """Against numpy that runs each by itself, from position 0: learned positions count anew."""
    packed = case(name, **options)
    segments = np.array([[0, 0, 0, 0, 1, 1, 2, 2, 2], [3, 1, 1, 1, 1, 1, 1, 1, 1]], np.int32)

    @jax.jit
    def forward(tokens, segments):
        hidden, _ = packed.decoder(tokens, segments=segments)
        return packed.decoder.logits(hidden)

    got = np.asarray(forward(TOKENS, segments))
    for row, of_row in enumerate(segments):
        for segment in np.unique(of_row):
            here = of_row == segment
            alone = reference.logits(
                packed.architecture, packed.parameters, TOKENS[row : row + 1, here]
            )
            np.testing.assert_allclose(got[row, here], alone[0], rtol=1e-4, atol=1e-4)
    assert np.abs(got - packed.logits)[segments != segments[:, :1]].max() > 1e-2


def test_segments_do_not_go_with_a_cache():
    decoder = case("llama").decoder
    with pytest.raises(ValueError, match="segments with a cache"):
        decoder(TOKENS, cache=decoder.empty_cache(2, 12), segments=np.zeros((2, 9), np.int32))


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloomberg"])
def test_a_token_changes_nothing_before_it(name):
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 40
    difference = np.abs(case(name).forward(changed) - case(name).logits).max((0, 2))
    assert (difference[:5] == 0).all()
    assert (difference[5:] > 1e-4).all()


def test_a_token_is_felt_a_window_further_in_every_layer():
    """Three keys a query, two layers: a token reaches the four after it and no other."""
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 40
    windowed = case("sliding_window")
    difference = np.abs(windowed.forward(changed) - windowed.logits).max((0, 2))
    assert (difference[2:7] > 1e-4).all()
    assert (difference[[0, 1, 7, 8]] == 0).all()


@pytest.mark.parametrize("name", ["gpt2", "llama", "bloomberg", "sliding_window"])
def test_decoding_with_a_cache_gives_the_logits_of_the_whole_pass(name):
    """Four tokens at once, then one at a time, in a cache with room to spare."""
    decoder = case(name).decoder

    @jax.jit
    def some(tokens, start, cache):
        positions = start + jnp.arange(tokens.shape[1], dtype=jnp.int32)
        hidden, cache = decoder(tokens, positions, cache)
        return decoder.logits(hidden), cache

    cache = decoder.empty_cache(2, 12)
    a = case(name).architecture
    assert cache[0].shape == (a.layers, 2, 12, a.kv_heads, a.head_dim)
    first, cache = some(TOKENS[:, :4], 0, cache)
    pieces = [first]
    for t in range(4, 9):
        piece, cache = some(TOKENS[:, t : t + 1], t, cache)
        pieces.append(piece)
    np.testing.assert_allclose(np.concatenate(pieces, 1), case(name).logits, rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_in_bfloat16_and_counts_in_float32():
    low = case("llama", compute_dtype=jnp.bfloat16)
    hidden, logits = jax.eval_shape(
        lambda tokens: (low.decoder(tokens)[0], low.decoder.logits(low.decoder(tokens)[0])), TOKENS
    )
    assert hidden.dtype == jnp.bfloat16
    assert logits.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(low.parameters))
    error = np.abs(low.logits - case("llama").logits)
    assert 1e-4 < error.max() < 0.15


def test_the_layer_scan_carries_the_stream_and_returns_nothing_else():
    """Scan would copy each layer's parameters if its body returned them."""
    decoder = case("llama").decoder
    traced = jax.make_jaxpr(lambda tokens: decoder(tokens)[0])(TOKENS)
    scans = [
        equation for equation, _ in equations(traced.jaxpr) if equation.primitive.name == "scan"
    ]
    (layers,) = scans
    assert layers.params["length"] == LLAMA.layers
    assert [out.aval.shape for out in layers.outvars] == [(*TOKENS.shape, LLAMA.d_model)]


def fresh_matrices(architecture: Architecture) -> tuple[dict, dict]:
    """A new decoder's matrices as lists, one entry per layer; and its vectors; by name."""
    make = lambda: nnx.split(Decoder(architecture, rngs=nnx.Rngs(0)))[1]  # noqa: E731
    fresh = nnx.to_pure_dict(jax.jit(make)())
    matrices, vectors = {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(fresh)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.endswith(("gain", "bias")):
            vectors[name] = np.asarray(leaf)
        else:
            matrices[name] = list(np.asarray(leaf)) if leaf.ndim == 3 else [np.asarray(leaf)]
    return matrices, vectors


def test_every_matrix_starts_with_its_standard_deviation():
    layers, width = 3, 192
    wide = {"layers": layers, "d_model": width, "d_ff": 2 * width, "head_dim": 32}
    matrices, vectors = fresh_matrices(
        dataclasses.replace(BLOOMBERG, **wide, tied_head=False, vocab_size=256)
    )
    std = 1 / math.sqrt(3 * width)
    residual = std / math.sqrt(2 * layers)
    expected = {
        "embedding": std,
        "head": std,
        "blocks/attention/query/weight": std,
        "blocks/attention/key/weight": std,
        "blocks/attention/value/weight": std,
        "blocks/attention/out/weight": residual,
        "blocks/feed_forward/up/weight": std,
        "blocks/feed_forward/down/weight": residual,
    }
    assert matrices.keys() == expected.keys()
    for name, layer in ((name, layer) for name, all_ in matrices.items() for layer in all_):
        # 36,864 draws at least: the deviation of a standard deviation is 0.4 % of it.
        assert layer.std() == pytest.approx(expected[name], rel=0.02), name
        assert abs(layer.mean()) < 0.03 * layer.std(), name
    for name, vector in vectors.items():
        assert (vector == (1.0 if name.endswith("gain") else 0.0)).all(), name
    # No two matrices and no two layers start alike.
    all_matrices = [layer for equation in matrices.values() for layer in equation]
    assert len({float(layer[0, 0] / layer.std()) for layer in all_matrices}) == len(all_matrices)


def test_the_standard_deviation_can_be_chosen():
    a = dataclasses.replace(GPT2, init_std=0.02, d_model=96, head_dim=32, vocab_size=400)
    matrices, _ = fresh_matrices(a)
    assert matrices["embedding"][0].std() == pytest.approx(0.02, rel=0.02)
    for down in matrices["blocks/feed_forward/down/weight"]:
        assert down.std() == pytest.approx(0.02 / math.sqrt(2 * a.layers), rel=0.04)
