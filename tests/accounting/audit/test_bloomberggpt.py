"""Every number that the paper prints, from its shape and schedule alone."""

from collections import Counter

import pytest

from t5x_style.accounting.audit import bloomberggpt

ACCOUNTS = bloomberggpt.accounts()


def test_tokens_schedule():
    assert ACCOUNTS["tokens"] == 568_747_622_400
    # The warm-up of the batch takes 7,200 steps of half a batch.
    assert [phase["tokens"] for phase in ACCOUNTS["phases"]] == [15_099_494_400, 553_648_128_000]


def test_epoch_fraction():
    assert ACCOUNTS["epochs"] == pytest.approx(0.80230, abs=1e-4)


def test_budget():
    assert pytest.approx(3.51e23, rel=1e-15) == bloomberggpt.BUDGET_FLOPS


@pytest.mark.parametrize(
    ("convention", "per_token", "total", "tflops", "of_peak"),
    [
        ("6nd", 303_353_210_880, 1.72531e23, 76.46, 0.245),
        ("chinchilla_counted", 310_534_963_200, 1.76616e23, 78.27, 0.251),
        ("palm", 316_565_268_480, 1.80046e23, 79.79, 0.256),
        ("megatron", 316_523_151_360, 1.80022e23, 79.78, 0.256),
        ("8n", 404_470_947_840, 2.30042e23, 101.95, 0.327),
        ("megatron_recompute", 420_017_602_560, 2.38884e23, 105.87, 0.339),
    ],
)
def test_flops_table(convention, per_token, total, tflops, of_peak):
    """One run, six accounts of it."""
    figures = ACCOUNTS["flops"][convention]
    assert figures["per_token"] == per_token
    assert figures["total"] == pytest.approx(total, rel=1e-5)
    assert figures["flops_per_second_per_gpu"] / 1e12 == pytest.approx(tflops, abs=0.01)
    assert figures["share_of_peak"] == pytest.approx(of_peak, abs=5e-4)


def test_flops_8n_full():
    """The paper's 2.36e23 FLOPs are 8N per token, over 139,200 full batches."""
    total = ACCOUNTS["flops"]["8n_full_batches"]["total"]
    assert total == pytest.approx(2.361492e23, rel=1e-6)
    assert total == pytest.approx(2.36e23, rel=1e-3)


def test_the_230_million_petaflop_of_the_course_notes_are_8n_over_the_tokens():
    petaflop = ACCOUNTS["flops"]["8n"]["total"] / 1e15
    assert petaflop == pytest.approx(230_041_890, abs=1)
    assert round(petaflop, -7) == 230_000_000


def test_hw_tflops():
    """102 TFLOP/s a GPU in the paper: 8N over 2,048 x 2,048 tokens in 32.5 s on 512 of them."""
    rate = ACCOUNTS["flops"]["8n"]["flops_per_second_per_gpu"]
    assert rate == pytest.approx(101.9516e12, rel=1e-5)


def test_one_speed_is_one_hfu_and_a_range_of_mfus():
    assert ACCOUNTS["utilisation"] == pytest.approx(
        {"hfu": 0.327, "mfu_lowest": 0.245, "mfu_highest": 0.256}, abs=5e-4
    )


def test_wall_days():
    """About 53 days in the paper, and half of the 1.3 million GPU hours."""
    assert ACCOUNTS["time"]["days"] == pytest.approx(52.3611, rel=1e-5)
    assert ACCOUNTS["time"]["gpu_hours"] == pytest.approx(643_413, abs=1)
    assert ACCOUNTS["time"]["share_of_budget"] == pytest.approx(0.495, abs=5e-4)


def test_what_the_choice_of_size_was_worth():
    audit = ACCOUNTS["audit"]
    assert audit["chinchilla/besiroglu/compute_efficiency"] == pytest.approx(0.976, abs=5e-4)
    assert audit["chinchilla/hoffmann/compute_efficiency"] == pytest.approx(0.832, abs=5e-4)


def test_table1_sums():
    """The rows add up to the printed totals, but for the rounding of five rows of FinPile."""
    tokens = Counter()
    for source in ACCOUNTS["sources"]:
        tokens[source["group"]] += source["tokens"]
    assert tokens["FinPile"] == 3_634 * 10**8  # printed: 3,635
    assert tokens["Pile"] == 1_836 * 10**8
    assert tokens["Pile"] + tokens["public"] == 3_454 * 10**8
    assert tokens.total() == pytest.approx(bloomberggpt.AVAILABLE_TOKENS, rel=2e-4)


@pytest.mark.parametrize("source", bloomberggpt.SOURCES, ids=lambda source: source.name)
def test_a_row_of_table_1_is_consistent(source):
    """The share is that of the tokens. Both are rounded as printed."""
    rounding = 0.5e8 / bloomberggpt.AVAILABLE_TOKENS + 0.5e-4
    share = source.tokens / bloomberggpt.AVAILABLE_TOKENS
    assert source.share == pytest.approx(share, abs=1.01 * rounding)


# Characters per document and per token, as the paper's table prints them beside the counts.
@pytest.mark.parametrize(
    ("name", "per_document", "per_token"),
    [
        ("Web", 933, 4.96),
        ("News", 1665, 4.44),
        ("C4", 2206, 5.56),
        ("Wikipedia (7/1/22)", 3271, 3.06),
    ],
)
def test_the_printed_ratios_of_table_1(name, per_document, per_token):
    (source,) = [source for source in bloomberggpt.SOURCES if source.name == name]
    assert source.characters / source.documents == pytest.approx(per_document, rel=2e-3)
    assert source.characters / source.tokens == pytest.approx(per_token, rel=2e-3)


def test_table_1_adds_up_in_documents_and_characters():
    """The printed totals, in 1e4 documents and 1e8 characters, but for a rounding of FinPile."""
    documents, characters = Counter(), Counter()
    for source in ACCOUNTS["sources"]:
        group = "FinPile" if source["group"] == "FinPile" else "public"
        documents[group] += source["documents"]
        characters[group] += source["characters"]
    assert documents == {"FinPile": 175_886 * 10**4, "public": 50_744 * 10**4}
    assert characters == {"FinPile": 17_882 * 10**8, "public": 16_818 * 10**8}  # printed: 17,883


def test_the_shape_of_table_4():
    shape = bloomberggpt.ARCHITECTURE
    assert (shape.layers, shape.heads, shape.d_model, shape.vocab_size) == (70, 40, 7680, 131_072)
    assert (shape.head_dim, shape.kv_heads, shape.d_ff) == (192, 40, 4 * 7680)
    assert (shape.positions, shape.norm, shape.feed_forward) == ("alibi", "layer", "gelu")
    assert shape.biases
    assert shape.embedding_norm
    assert shape.tied_head
    assert bloomberggpt.TOPOLOGY.remat == "full"
