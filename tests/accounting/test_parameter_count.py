import pytest

from t5x_style.accounting import (
    Architecture,
    bloomberggpt,
    non_embedding_parameters,
    parameters,
    total_parameters,
)

GPT2 = Architecture(
    vocab_size=50257,
    layers=12,
    d_model=768,
    d_ff=3072,
    heads=12,
    positions="learned",
    max_length=1024,
    norm="layer",
    feed_forward="gelu",
    biases=True,
)
LLAMA_2_7B = Architecture(32000, 32, 4096, 11008, 32, tied_head=False)
LLAMA_3_8B = Architecture(128256, 32, 4096, 14336, 32, kv_heads=8, tied_head=False)
QWEN3_06B = Architecture(151936, 28, 1024, 3072, 16, kv_heads=8, head_dim=128, qk_norm=True)
PALM_540B = Architecture(
    256000, 118, 18432, 73728, 48, kv_heads=1, head_dim=256, parallel_block=True
)


@pytest.mark.parametrize(
    ("arch", "published"),
    [
        (GPT2, 124_439_808),
        (LLAMA_2_7B, 6_738_415_616),
        (LLAMA_3_8B, 8_030_261_248),
        (QWEN3_06B, 596_049_920),
    ],
    ids=["gpt2", "llama2", "llama3", "qwen3"],
)
def test_counts_are_those_of_the_published_models(arch, published):
    assert total_parameters(arch) == published


def test_palm_to_the_digits_of_its_paper():
    assert total_parameters(PALM_540B) / 1e9 == pytest.approx(540.35, abs=0.01)


def test_params_bloomberg():
    assert total_parameters(bloomberggpt.ARCHITECTURE) == 50_558_868_480


def test_bloomberggpt_term_by_term():
    """Appendix A.5 of the paper, written out."""
    width, inner, layers = 7680, 4 * 7680, 70
    assert parameters(bloomberggpt.ARCHITECTURE) == {
        "embedding": 131072 * width,
        "positions": 0,
        "attention": layers * (3 * width * width + 3 * width + width * width + width),
        "feed_forward": layers * (width * inner + inner + inner * width + width),
        "norms": 2 * width + layers * 4 * width + 2 * width,
        "head": 0,
    }
    assert non_embedding_parameters(bloomberggpt.ARCHITECTURE) == 49_552_235_520


def test_non_embedding_leaves_out_positions_and_keeps_an_untied_head():
    assert non_embedding_parameters(GPT2) == 124_439_808 - (50257 + 1024) * 768
    assert non_embedding_parameters(LLAMA_2_7B) == 6_738_415_616 - 32000 * 4096


# Hoffmann et al. 2022, table A9: millions of parameters; width, inner width, head size, heads,
# layers.
TABLE_A9 = """
44 512 2048 64 8 8, 57 576 2304 64 9 9, 74 640 2560 64 10 10, 90 640 2560 64 10 13,
106 640 2560 64 10 16, 117 768 3072 64 12 12, 140 768 3072 64 12 15, 163 768 3072 64 12 18,
175 896 3584 64 14 14, 196 896 3584 64 14 16, 217 896 3584 64 14 18, 251 1024 4096 64 16 16,
278 1024 4096 64 16 18, 306 1024 4096 64 16 20, 425 1280 5120 128 10 18, 489 1280 5120 128 10 21,
509 1408 5632 128 11 18, 552 1280 5120 128 10 24, 587 1408 5632 128 11 21, 632 1536 6144 128 12 19,
664 1408 5632 128 11 24, 724 1536 6144 128 12 22, 816 1536 6144 128 12 25, 893 1792 7168 128 14 20,
1018 1792 7168 128 14 23, 1143 1792 7168 128 14 26, 1266 2048 8192 128 16 22,
1424 2176 8704 128 17 22, 1429 2048 8192 128 16 25, 1593 2048 8192 128 16 28,
1609 2176 8704 128 17 25, 1731 2304 9216 128 18 24, 1794 2176 8704 128 17 28,
2007 2304 9216 128 18 28, 2283 2304 9216 128 18 32, 2298 2560 10240 128 20 26,
2639 2560 10240 128 20 30, 2980 2560 10240 128 20 34, 3530 2688 10752 128 22 36,
3802 2816 11264 128 22 36, 4084 2944 11776 128 22 36, 4516 3072 12288 128 24 36,
6796 3584 14336 128 28 40, 9293 4096 16384 128 32 42, 11452 4352 17408 128 32 47,
12295 4608 18432 128 36 44, 12569 4608 18432 128 32 47, 13735 4864 19456 128 32 47,
14940 4992 19968 128 32 49, 16183 5120 20480 128 40 47
"""


def test_params_a9():
    """All 50 models to the last printed million, 46 of them when rounded.

    The paper's attention has no biases, and a fifth matrix for relative positions.
    """
    rows = [tuple(map(int, row.split())) for row in TABLE_A9.split(",")]
    assert len(rows) == 50
    rounded = 0
    for millions, width, inner, head_dim, heads, layers in rows:
        arch = Architecture(
            32000, layers, width, inner, heads, head_dim=head_dim, feed_forward="gelu",
            norm="layer", biases=True,
        )  # fmt: skip
        columns = heads * head_dim
        counted = total_parameters(arch) + layers * (width * columns - 3 * columns - width)
        assert counted == pytest.approx(millions * 1e6, abs=1e6)
        rounded += round(counted / 1e6) == millions
    assert rounded == 46
