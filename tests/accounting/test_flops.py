import itertools

import pytest

from t5x_style.accounting import (
    CONVENTIONS,
    REMAT_RECOMPUTES,
    Architecture,
    bloomberggpt,
    forward_flops_per_token,
    training_flops_per_token,
)
from t5x_style.errors import UsageError
from tests.jaxprs import product_flops

BLOOMBERG = bloomberggpt.ARCHITECTURE


def test_forward_terms_of_bloomberggpt():
    terms = forward_flops_per_token(BLOOMBERG, 2048)
    assert terms == {
        "qkv": 24_772_608_000,
        "attention_logits": 2_202_009_600,
        "attention_values": 2_202_009_600,
        "output": 8_257_536_000,
        "feed_forward_in": 66_060_288_000 / 2,
        "feed_forward_out": 66_060_288_000 / 2,
        "head": 2_013_265_920,
    }


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
def test_layers_cost_what_chinchillas_appendix_says(shape, params, flops, ratio):
    layers, d_model, d_ff, heads, head_dim = shape
    arch = Architecture(32000, layers, d_model, d_ff, heads, head_dim=head_dim, feed_forward="gelu")
    terms = forward_flops_per_token(arch, 2048)
    # The appendix counts three FLOPs for each softmax entry; this table counts products alone.
    softmax = 3 * heads * 2048 * layers
    per_sequence = 3 * 2048 * (sum(terms.values()) - terms["head"] + softmax)
    assert per_sequence == flops
    assert per_sequence / (6 * params * 2048) == pytest.approx(ratio, abs=0.006)


def test_conventions_on_bloomberggpt():
    per_token = {
        convention: training_flops_per_token(BLOOMBERG, 2048, convention)
        for convention in CONVENTIONS
    }
    assert per_token["6nd"] == 303_353_210_880
    # Megatron's closed form without recomputation, 72 B s L h^2 (1 + s/6h + V/12Lh), per token.
    width, layers = 7680, 70
    megatron = 72 * layers * width**2 * (1 + 2048 / (6 * width) + 131072 / (12 * layers * width))
    assert per_token["full"] == pytest.approx(megatron, rel=1e-12)
    assert per_token["full"] == 316_523_151_360
    assert per_token["causal"] == pytest.approx(3.0992e11, rel=1e-5)
    assert per_token["hardware"] == per_token["full"]


def test_gpt2_against_counted_products():
    """8.5465e8 is torch's FlopCounterMode on nanoGPT, 7.9809e8 the causal half by hand."""
    arch = Architecture(50304, 12, 768, 3072, 12, feed_forward="gelu")
    assert training_flops_per_token(arch, 1024, "full") == pytest.approx(8.5465e8, rel=1e-5)
    assert training_flops_per_token(arch, 1024, "causal") == pytest.approx(7.9809e8, rel=1e-5)


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'causal'"):
        training_flops_per_token(BLOOMBERG, 2048, "casual")
    with pytest.raises(UsageError, match="did you mean 'save_dots'"):
        training_flops_per_token(BLOOMBERG, 2048, "hardware", "save_dot")


@pytest.mark.parametrize(
    ("remat", "feed_forward", "parallel"),
    list(itertools.product(REMAT_RECOMPUTES, ("gelu", "swiglu"), (False, True))),
)
def test_hardware_flops_are_those_of_the_traced_step(remat, feed_forward, parallel):
    """A decoder written here from scratch, differentiated by jax, and its products counted."""
    import jax
    import jax.numpy as jnp

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
        q, k, v = (jnp.einsum("bsd,dnh->bsnh", x, w[name]) for name in ("q", "k", "v"))
        q = q.reshape(batch, sequence_length, 2, 2, 6)
        scores = jax.nn.softmax(jnp.einsum("bskgh,btkh->bkgst", q, k))
        mixed = jnp.einsum("bkgst,btkh->bskgh", scores, v).reshape(batch, sequence_length, 4, 6)
        return jnp.einsum("bsnh,nhd->bsd", mixed, w["o"])

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
            "save_dots": policies.dots_with_no_batch_dims_saveable,
        }
        layer = jax.checkpoint(layer, policy=keep[remat], prevent_cse=False)

    def loss(weights, tokens):
        x, _ = jax.lax.scan(layer, weights["embedding"][tokens], weights["layers"])
        return jnp.sum(jax.nn.logsumexp(jnp.einsum("bsd,vd->bsv", x, weights["embedding"]), -1))

    tokens = jax.ShapeDtypeStruct((batch, sequence_length), "int32")
    traced = jax.make_jaxpr(jax.grad(loss))(weights, tokens)
    per_token = product_flops(traced.jaxpr) / (batch * sequence_length)
    assert per_token == training_flops_per_token(arch, sequence_length, "hardware", remat)


def test_causal_attention_of_one_token_is_one_key():
    causal, full = (training_flops_per_token(BLOOMBERG, 1, name) for name in ("causal", "full"))
    assert causal == full
