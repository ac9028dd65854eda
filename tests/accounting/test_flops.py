import dataclasses
import itertools

import numpy as np
import pytest

from t5x_style.accounting import (
    CONVENTIONS,
    Architecture,
    Topology,
    bloomberggpt,
    forward_flops_per_token,
    non_embedding_parameters,
    total_parameters,
    training_flops_per_token,
)
from t5x_style.accounting.attention_blocks import (
    even_block,
    flash_block,
    touched_keys_per_query,
)
from t5x_style.accounting.flops import LAYERS, forward_terms, keys_per_query
from t5x_style.accounting.recompute import REMAT_RECOMPUTES
from t5x_style.errors import UsageError
from tests.jaxprs import product_flops

BLOOMBERG = bloomberggpt.ARCHITECTURE


def test_fwd_terms():
    """The per-token table of BloombergGPT's forward pass, 2,048 tokens, over its 70 layers."""
    assert forward_flops_per_token(BLOOMBERG, 2048) == {
        "qkv": 24_772_608_000,
        "attention_logits": 2_202_009_600,
        "attention_values": 2_202_009_600,
        "output": 8_257_536_000,
        "feed_forward_in": 66_060_288_000 / 2,
        "feed_forward_out": 66_060_288_000 / 2,
        "head": 2_013_265_920,
    }
    terms = forward_terms(BLOOMBERG, 2048)
    assert terms["softmax"] == 17_203_200
    assert sum(terms[term] for term in (*LAYERS, "softmax")) == 103_511_654_400
    assert sum(terms[term] for term in (*LAYERS, "softmax", "head")) == 105_524_920_320
    # Biases and norms of appendix A.5: 13 D in a layer (3 + 1 + 2 x 2 in attention and the norms,
    # 4 + 1 in the feed-forward), and two norms outside of the layers.
    assert terms["vectors"] == 2 * (70 * 13 * 7680 + 2 * 2 * 7680)


# Hoffmann et al. 2022, table A4: layers, d_model, d_ff, heads, head_dim; N; FLOPs of a sequence of
# 2,048 tokens, without embedding and logits; and the printed ratio to 6 N D.
TABLE_A4 = [
    ((10, 640, 2560, 10, 64), 73_825_280, 929_877_196_800, 1.03),
    ((20, 1024, 4096, 16, 64), 305_707_008, 4_135_248_199_680, 1.10),
    ((24, 1280, 5120, 10, 128), 552_604_160, 7_353_453_772_800, 1.08),
    ((26, 1792, 7168, 14, 128), 1_143_453_696, 14_670_316_437_504, 1.04),
    ((28, 2048, 8192, 16, 128), 1_593_126_912, 20_220_437_594_112, 1.03),
    ((40, 3584, 14336, 28, 128), 6_796_274_688, 83_021_046_743_040, 0.99),
]


@pytest.mark.parametrize(("shape", "params", "flops", "ratio"), TABLE_A4)
def test_flops_a4(shape, params, flops, ratio):
    layers, width, inner, heads, head_dim = shape
    arch = Architecture(
        32000, layers, width, inner, heads, head_dim=head_dim, feed_forward="gelu", norm="layer",
        biases=True,
    )  # fmt: skip
    per_sequence = 2048 * training_flops_per_token(arch, 2048, "chinchilla_counted")
    assert per_sequence == flops
    # The paper's models have relative positions, which ours do not express: a fifth matrix of
    # attention, whose keys have two more biases.
    with_positions = total_parameters(arch) + layers * (width + 2) * heads * head_dim
    assert with_positions == params
    assert per_sequence / (6 * params * 2048) == pytest.approx(ratio, abs=0.0051)


def test_chinchillas_appendix_as_printed_gives_another_ratio():
    """With embedding and logits, the first row of table A4 would be 1.58 and not 1.03."""
    arch = Architecture(32000, 10, 640, 2560, 10, feed_forward="gelu")
    printed = training_flops_per_token(arch, 2048, "chinchilla_printed")
    assert printed / (6 * TABLE_A4[0][1]) == pytest.approx(1.58, abs=0.005)


OPTIONS = list(
    itertools.product(
        (True, False), ("learned", "rope"), ("gelu", "swiglu"), (None, 2), (True, False)
    )
)


@pytest.mark.parametrize(("tied", "positions", "feed_forward", "kv_heads", "biases"), OPTIONS)
def test_conventions_that_count_parameters_count_them_all(
    tied, positions, feed_forward, kv_heads, biases
):
    arch = Architecture(
        97, 3, 24, 40, 4, kv_heads=kv_heads, head_dim=10, positions=positions, max_length=32,
        feed_forward=feed_forward, biases=biases, norm="layer", tied_head=tied, qk_norm=biases,
        embedding_norm=True,
    )  # fmt: skip
    attention = 3 * 4 * 4 * 10 * 16  # L x 4 N H S
    flops = {name: training_flops_per_token(arch, 16, name) for name in CONVENTIONS}
    total, rest = total_parameters(arch), non_embedding_parameters(arch)
    assert flops["6nd"] == 6 * total
    assert flops["6nd_non_embedding"] == 6 * rest
    assert flops["8n"] == 8 * total
    assert flops["palm"] == 6 * total + 3 * attention
    assert flops["kaplan"] == 3 * (2 * rest + attention / 2)


def test_every_term_has_a_convention_and_every_convention_its_terms():
    counted = {term for convention in CONVENTIONS.values() for term in convention.passes}
    assert counted == forward_terms(BLOOMBERG, 2048).keys()


def test_megatrons_closed_forms():
    """Narayanan et al. 2021, equation 3, and the same without recomputation."""
    width, layers, length, vocab = 7680, 70, 2048, 131072
    attention, base = length / (6 * width), layers * width**2
    flops = {name: training_flops_per_token(BLOOMBERG, length, name) for name in CONVENTIONS}
    assert flops["megatron"] == flops["full"] == 316_523_151_360
    assert flops["megatron"] == pytest.approx(
        72 * base * (1 + attention + vocab / (12 * layers * width)), rel=1e-12
    )
    assert flops["megatron_recompute"] == pytest.approx(
        96 * base * (1 + attention + vocab / (16 * layers * width)), rel=1e-12
    )


def test_megatron_days():
    """300B tokens through 175B parameters on 1,024 GPUs at 140 TFLOP/s: 34 days in the paper."""
    gpt3 = Architecture(
        51200, 96, 12288, 4 * 12288, 96, feed_forward="gelu", norm="layer", biases=True,
        positions="learned", max_length=2048,
    )  # fmt: skip
    seconds = training_flops_per_token(gpt3, 2048, "8n") * 300e9 / (1024 * 140e12)
    assert seconds / 86400 == pytest.approx(33.831, rel=1e-3)


def test_palm_mfu():
    """46.2 % in the paper, at 238.3K tokens/s on 6,144 TPU v4 (Chowdhery et al. 2022)."""
    palm = Architecture(
        256000, 118, 18432, 73728, 48, kv_heads=1, head_dim=256, parallel_block=True
    )
    flops = training_flops_per_token(palm, 2048, "palm")
    assert flops * 238.3e3 / (6144 * 275e12) == pytest.approx(0.46229, rel=1e-4)


def test_full_counts_products_and_no_parameter():
    """It differs from PaLM's formula by the norms, the biases and the embedding's lookup alone."""
    untied = dataclasses.replace(BLOOMBERG, tied_head=False)
    for arch, lookup in ((BLOOMBERG, 0), (untied, 131072 * 7680)):
        vectors = 70 * 13 * 7680 + 2 * 2 * 7680
        difference = training_flops_per_token(arch, 2048, "palm") - training_flops_per_token(
            arch, 2048, "full"
        )
        assert difference == 6 * (vectors + lookup)


@pytest.mark.parametrize("window", [None, 1, 2, 5, 12, 13, 50])
def test_the_mean_number_of_keys_is_that_of_the_mask(window):
    distance = np.arange(12)[:, None] - np.arange(12)
    mask = (distance >= 0) & (distance < (window or 12))
    assert keys_per_query(12, window) == pytest.approx(mask.sum() / 12, rel=1e-15)


@pytest.mark.parametrize("window", [None, 1, 2, 128, 129, 130, 256, 257, 300, 1000])
@pytest.mark.parametrize(
    ("length", "most", "block"), [(768, 256, 256), (640, 512, 128), (768, 100, 128)]
)
def test_the_tiles_that_flash_touches_are_those_of_the_mask(window, length, most, block):
    assert flash_block(length, most) == block
    distance = np.arange(length)[:, None] - np.arange(length)
    mask = (distance >= 0) & (distance < (window or length))
    touched = mask.reshape(length // block, block, length // block, block).any((1, 3))
    assert touched_keys_per_query(length, window, block) == touched.sum() * block**2 / length


@pytest.mark.parametrize("window", [None, 1, 4, 5, 6, 9])
@pytest.mark.parametrize(
    ("length", "most", "block", "missing"),
    [(12, 4, 4, 0), (12, 5, 4, 0), (13, 4, 4, 3), (3, 9, 3, 0)],
)
def test_the_blocks_that_blockwise_touches_are_those_of_the_mask(
    window, length, most, block, missing
):
    """Its last block is multiplied whole, with fewer missing than it has."""
    assert even_block(length, most) == block
    filled = length + missing
    distance = np.arange(filled)[:, None] - np.arange(filled)
    mask = (distance >= 0) & (distance < (window or filled))
    touched = mask.reshape(filled // block, block, filled // block, block).any((1, 3))
    assert touched_keys_per_query(length, window, block) == touched.sum() * block**2 / length


def test_no_block_of_blockwise_is_much_smaller_than_asked_for():
    """A prime length once had blocks of one token."""
    for length in range(1, 2000):
        block = even_block(length, 128)
        assert min(length, 65) <= block <= 128
        assert 0 <= -length % block < block


def test_tiles_of_a_sequence_that_devices_share_fit_into_their_pieces():
    """Eight pieces of 512 tokens on four devices: a tile of 1,024 would span two of them."""

    def flops(block, shards):
        return training_flops_per_token(
            BLOOMBERG,
            4096,
            "hardware",
            Topology(kernel="flash", attention_block=block, sequence=shards),
        )

    assert flops(1024, 4) == flops(512, 1) < flops(1024, 1)


def test_a_window_changes_causal_and_nothing_else():
    """Plain computes all scores, so its 'hardware' does not fall with the window."""
    windowed = dataclasses.replace(BLOOMBERG, window=512)
    for name in CONVENTIONS:
        before, after = (training_flops_per_token(a, 2048, name) for a in (BLOOMBERG, windowed))
        if name == "causal":
            # 512 keys, but for the first 511 queries: 512 * 511 / 2 too few of 2,048 * 512.
            saved = 1024.5 - (512 - 512 * 511 / 4096)
            assert before - after == pytest.approx(3 * 70 * 2 * 2 * 7680 * saved, rel=1e-9)
        else:
            assert before == after


def test_gpt2_against_counted_products():
    """8.5465e8 is torch's FlopCounterMode on nanoGPT, 7.9809e8 the causal half by hand."""
    arch = Architecture(50304, 12, 768, 3072, 12, feed_forward="gelu")
    assert training_flops_per_token(arch, 1024, "full") == pytest.approx(8.5465e8, rel=1e-5)
    assert training_flops_per_token(arch, 1024, "causal") == pytest.approx(7.9809e8, rel=1e-5)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'causal'"):
        training_flops_per_token(BLOOMBERG, 2048, "casual")
    with pytest.raises(UsageError, match="did you mean 'save_dots'"):
        training_flops_per_token(BLOOMBERG, 2048, "hardware", Topology(remat="save_dot"))


@pytest.mark.parametrize(
    ("remat", "feed_forward", "parallel"),
    list(itertools.product(REMAT_RECOMPUTES, ("gelu", "swiglu"), (False, True))),
)
def test_hardware_flops_are_those_of_the_traced_step(remat, feed_forward, parallel):
    """A decoder written here from scratch, differentiated by jax, and its products counted."""
    import jax
    import jax.numpy as jnp
    from jax.ad_checkpoint import checkpoint_name as named

    arch = Architecture(
        48, 3, 16, 40, 4, kv_heads=2, head_dim=6, feed_forward=feed_forward, parallel_block=parallel
    )
    sequence_length, batch = 10, 2
    gates = 2 if feed_forward == "swiglu" else 1
    shapes = {
        "q": (16, 4, 6),
        "k": (16, 2, 6),
        "v": (16, 2, 6),
        "o": (4, 6, 16),
        "up": (gates, 16, 40),
        "down": (40, 16),
    }
    weights = {name: jax.ShapeDtypeStruct((3, *shape), "float32") for name, shape in shapes.items()}
    weights = {"layers": weights, "embedding": jax.ShapeDtypeStruct((48, 16), "float32")}

    def attend(x, w):
        q, k, v = (
            named(jnp.einsum("bsd,dnh->bsnh", x, w[name]), "qkv") for name in ("q", "k", "v")
        )
        q = q.reshape(batch, sequence_length, 2, 2, 6)
        scores = jax.nn.softmax(jnp.einsum("bskgh,btkh->bkgst", q, k))
        mixed = jnp.einsum("bkgst,btkh->bskgh", scores, v).reshape(batch, sequence_length, 4, 6)
        return named(jnp.einsum("bsnh,nhd->bsd", named(mixed, "mixed"), w["o"]), "out")

    def feed(x, w):
        inner = [jnp.einsum("bsd,df->bsf", x, w["up"][gate]) for gate in range(gates)]
        hidden = jax.nn.gelu(inner[0]) * (inner[1] if gates == 2 else 1)
        return jnp.einsum("bsf,fd->bsd", hidden, w["down"])

    def layer(x, w):
        normed = x / (1 + jnp.abs(x))
        if parallel:
            return x + attend(normed, w) + feed(normed, w), None
        x = x + attend(normed, w)
        return x + feed(x / (1 + jnp.abs(x)), w), None

    if remat != "none":
        policies = jax.checkpoint_policies
        keep = {
            "full": policies.nothing_saveable,
            "save_dots": policies.save_from_both_policies(
                policies.dots_with_no_batch_dims_saveable,
                policies.save_only_these_names("mixed"),
            ),
            "save_attention": policies.save_only_these_names("mixed", "out"),
            "save_qkv": policies.save_only_these_names("qkv", "mixed"),
            "save_qkv_out": policies.save_only_these_names("qkv", "mixed", "out"),
            "offload": policies.save_only_these_names("mixed", "out"),
        }
        layer = jax.checkpoint(layer, policy=keep[remat], prevent_cse=False)

    def loss(weights, tokens):
        x, _ = jax.lax.scan(layer, weights["embedding"][tokens], weights["layers"])
        return jnp.sum(jax.nn.logsumexp(jnp.einsum("bsd,vd->bsv", x, weights["embedding"]), -1))

    tokens = jax.ShapeDtypeStruct((batch, sequence_length), "int32")
    traced = jax.make_jaxpr(jax.grad(loss))(weights, tokens)
    per_token = product_flops(traced.jaxpr) / (batch * sequence_length)
    assert per_token == training_flops_per_token(
        arch, sequence_length, "hardware", Topology(remat=remat)
    )


def test_causal_attention_of_one_token_is_one_key():
    causal, full = (training_flops_per_token(BLOOMBERG, 1, name) for name in ("causal", "full"))
    assert causal == full


def test_the_head_is_computed_twice_by_two_vocabulary_chunks():
    head = forward_terms(BLOOMBERG, 2048)["head"]
    whole, two = (
        training_flops_per_token(BLOOMBERG, 2048, "hardware", Topology(loss_vocab_chunks=chunks))
        for chunks in (1, 2)
    )
    assert two == whole + head
