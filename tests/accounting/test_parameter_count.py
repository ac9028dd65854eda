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
        (bloomberggpt.ARCHITECTURE, 50_558_868_480),
        (GPT2, 124_439_808),
        (LLAMA_2_7B, 6_738_415_616),
        (LLAMA_3_8B, 8_030_261_248),
        (QWEN3_06B, 596_049_920),
    ],
    ids=["bloomberggpt", "gpt2", "llama2", "llama3", "qwen3"],
)
def test_counts_are_those_of_the_published_models(arch, published):
    assert total_parameters(arch) == published


def test_palm_to_the_digits_of_its_paper():
    assert total_parameters(PALM_540B) / 1e9 == pytest.approx(540.35, abs=0.01)


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
