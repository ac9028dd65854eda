import dataclasses

import pytest

from t5x_style.accounting import (
    LAWS,
    Architecture,
    Auditor,
    Topology,
    audit,
    bloomberggpt,
    chip,
    sources_of,
    total_parameters,
    training_flops_per_token,
)
from t5x_style.accounting.laws import ParametricLaw
from t5x_style.errors import UsageError
from tests.calls import calls_of

BLOOMBERG = bloomberggpt.ARCHITECTURE
REMAT = Topology(remat="full")
TOKENS = 568_747_622_400
PLANNED = 708_900_000_000


def test_the_keys_are_those_that_users_scripts_read():
    assert set(audit(BLOOMBERG, 2048, TOKENS)) == {
        "model_flops_6nd",
        "model_flops_full",
        "model_flops_causal",
        "hardware_flops",
        "tokens_per_param",
        *(
            f"chinchilla/{law}/{what}"
            for law in ("approach_1", "approach_2", "hoffmann", "besiroglu")
            for what in (
                "optimal_params",
                "optimal_tokens",
                "expected_loss",
                "compute_efficiency",
            )
        ),
    }


OWN = ParametricLaw(
    name="mine",
    irreducible=1.5,
    params_scale=400.0,
    tokens_scale=2000.0,
    params_exponent=0.35,
    tokens_exponent=0.35,
    source="made up",
    fitted_flops=(1e12, 1e15),
)


def test_a_law_of_ones_own_and_the_planned_tokens_bring_their_keys():
    line = Auditor(BLOOMBERG, 2048, planned_tokens=PLANNED, own_law=OWN).line_at(TOKENS)
    assert set(line) - set(audit(BLOOMBERG, 2048, TOKENS)) == {
        "remaining_tokens",
        *(
            f"chinchilla/{law}/remaining_gain"
            for law in ("approach_1", "approach_2", "hoffmann", "besiroglu")
        ),
        *(
            f"chinchilla/mine/{what}"
            for what in (
                "optimal_params",
                "optimal_tokens",
                "expected_loss",
                "compute_efficiency",
                "remaining_gain",
            )
        ),
    }
    assert line["chinchilla/mine/expected_loss"] == OWN.loss(50_558_868_480, TOKENS)


def test_a_law_of_ones_own_cannot_take_a_published_name():
    with pytest.raises(UsageError, match="besiroglu"):
        Auditor(BLOOMBERG, 2048, own_law=dataclasses.replace(OWN, name="besiroglu"))


def test_what_bloomberggpt_left_of_its_tokens():
    """19.77 % of 708.9 billion (Wu et al. 2023, table 1); only B / D^beta falls on the way."""
    auditor = Auditor(BLOOMBERG, 2048, planned_tokens=PLANNED)
    line = auditor.line_at(TOKENS)
    assert line["remaining_tokens"] / PLANNED == pytest.approx(0.1977, abs=1e-4)
    for law, scale, exponent in (
        ("besiroglu", 2085.43, 0.3658),
        ("hoffmann", 410.722827, 0.2849083),
    ):
        gain = scale * (TOKENS**-exponent - PLANNED**-exponent)
        assert line[f"chinchilla/{law}/remaining_gain"] == pytest.approx(gain, rel=1e-9)
    assert line["chinchilla/approach_1/remaining_gain"] is None


def test_at_the_end_nothing_is_left_and_before_the_first_token_no_law_speaks():
    auditor = Auditor(BLOOMBERG, 2048, planned_tokens=PLANNED)
    end, start = auditor.line_at(PLANNED), auditor.line_at(0)
    assert end["remaining_tokens"] == 0
    assert end["chinchilla/hoffmann/remaining_gain"] == 0
    assert start["remaining_tokens"] == PLANNED
    assert start["chinchilla/hoffmann/remaining_gain"] is None


def test_the_audit_of_bloomberggpt():
    line = audit(BLOOMBERG, 2048, TOKENS, REMAT)
    assert line["model_flops_6nd"] == pytest.approx(1.72531e23, rel=1e-5)
    assert line["model_flops_full"] == pytest.approx(1.80022e23, rel=1e-5)
    assert line["tokens_per_param"] == pytest.approx(11.249, abs=1e-3)
    assert line["chinchilla/besiroglu/compute_efficiency"] == pytest.approx(0.97599, abs=1e-4)
    assert line["chinchilla/hoffmann/compute_efficiency"] == pytest.approx(0.83245, abs=1e-4)
    assert line["chinchilla/besiroglu/expected_loss"] == pytest.approx(2.01299, abs=1e-5)
    assert line["chinchilla/besiroglu/optimal_params"] == pytest.approx(38.9e9, rel=2e-3)
    assert line["chinchilla/hoffmann/optimal_tokens"] == pytest.approx(1235e9, rel=1e-3)
    assert line["chinchilla/approach_1/compute_efficiency"] is None


def test_flops_add_up_over_tokens():
    auditor = Auditor(BLOOMBERG, 2048, REMAT)
    for key, convention in (("model_flops_causal", "causal"), ("hardware_flops", "hardware")):
        per_token = training_flops_per_token(BLOOMBERG, 2048, convention, REMAT)
        assert auditor.line_at(1000)[key] == 1000 * per_token
        assert auditor.line_at(3000)[key] == 3 * auditor.line_at(1000)[key]


def test_lengths_by_phase_are_accounted_each_at_its_own():
    """By hand: 1,000 tokens at 512, 2,000 at 2,048 and the rest at 8,192."""
    auditor = Auditor(BLOOMBERG, [(0, 512), (1000, 2048), (3000, 8192)], REMAT)
    for key, convention in (("model_flops_causal", "causal"), ("hardware_flops", "hardware")):
        short, middle, long = (
            training_flops_per_token(BLOOMBERG, length, convention, REMAT)
            for length in (512, 2048, 8192)
        )
        assert len({short, middle, long}) == 3
        for tokens, flops in (
            (0, 0),
            (1000, 1000 * short),
            (1500, 1000 * short + 500 * middle),
            (4000, 1000 * short + 2000 * middle + 1000 * long),
        ):
            assert auditor.line_at(tokens)[key] == pytest.approx(flops, rel=1e-14)
        assert auditor.flops_per_token(0, 1)[key] == short
        assert auditor.flops_per_token(1000, 3000)[key] == middle
        assert auditor.flops_per_token(500, 1500)[key] == pytest.approx((short + middle) / 2)
    # 6 N D knows no sequence length.
    assert (
        auditor.line_at(4000)["model_flops_6nd"] == audit(BLOOMBERG, 512, 4000)["model_flops_6nd"]
    )


def test_utilisation_is_that_of_the_lengths_that_were_read():
    phased = Auditor(BLOOMBERG, [(0, 512), (1000, 8192)])
    short, long = (
        Auditor(BLOOMBERG, length).utilisation(1e3, 8, chip("v4")) for length in (512, 8192)
    )
    across = phased.utilisation(1e3, 8, chip("v4"), since=500, until=1500)
    assert phased.utilisation(1e3, 8, chip("v4"), since=500, until=1000) == short
    for name in ("mfu_full", "mfu_causal", "hfu"):
        assert across[name] == pytest.approx((short[name] + long[name]) / 2)


def test_before_the_first_token_the_laws_are_silent():
    line = audit(BLOOMBERG, 2048, 0)
    assert line["model_flops_6nd"] == 0
    assert line["tokens_per_param"] == 0
    for law in LAWS:
        assert line[f"chinchilla/{law}/optimal_params"] is None
        assert line[f"chinchilla/{law}/compute_efficiency"] is None


def test_palms_mfu():
    """Chowdhery et al. 2022, section 4.1: 46.2 % at 238.3K tokens/s on 6,144 TPU v4."""
    palm = Architecture(
        256000, 118, 18432, 73728, 48, kv_heads=1, head_dim=256, parallel_block=True
    )
    assert Auditor(palm, 2048).utilisation(238.3e3, 6144, chip("v4"))["mfu_full"] == pytest.approx(
        0.46229, abs=1e-4
    )


def test_two_conventions_on_llama_3():
    """6,667 tokens/s a GPU at 8,192 tokens on H100, which torchtitan's page calls 39 % MFU."""
    llama = Architecture(128256, 32, 4096, 14336, 32, kv_heads=8, tied_head=False)
    shares = Auditor(llama, 8192).utilisation(6667, 1, chip("h100"))
    assert shares["mfu_full"] == pytest.approx(0.390, abs=1e-3)
    assert shares["mfu_causal"] == pytest.approx(0.347, abs=1e-3)


def test_utilisation_by_each_count_of_flops():
    """A thousand tokens a second on eight v4 of 275 TFLOP/s."""
    found = Auditor(BLOOMBERG, 2048, REMAT).utilisation(1e3, 8, chip("v4"))
    for name, convention in (("mfu_full", "full"), ("mfu_causal", "causal"), ("hfu", "hardware")):
        flops = training_flops_per_token(BLOOMBERG, 2048, convention, REMAT)
        assert found[name] == pytest.approx(1e3 * flops / (8 * 275e12))
    assert found["mfu_causal"] < found["mfu_full"] < found["hfu"]


def test_an_unknown_chip_has_no_utilisation():
    assert Auditor(BLOOMBERG, 2048).utilisation(1e6, 1, None) == {
        "mfu_full": None,
        "mfu_causal": None,
        "hfu": None,
    }


def test_an_audit_costs_a_log_line_next_to_nothing():
    auditor = Auditor(BLOOMBERG, 2048, REMAT, planned_tokens=PLANNED, own_law=OWN)
    calls = [len(calls_of(auditor.line_at, tokens)) for tokens in (1, 10**6, 10**12)]
    # Five laws and no search in them: some 100 calls, however long the run.
    assert len(set(calls)) == 1
    assert calls[0] < 200


def test_repeated_tokens_are_audited_at_their_worth():
    """Sixteen epochs are worth 0.661404 of as many fresh tokens (golden dc_epochs)."""
    unique = 1e9
    sources = sources_of({"legal": unique}, None, 40)
    fresh = Auditor(BLOOMBERG, 2048).line_at(int(16 * unique))
    repeated = Auditor(
        BLOOMBERG, 2048, planned_tokens=int(16 * unique), effective_tokens=sources.effective_tokens
    ).line_at(int(16 * unique))
    assert repeated["effective_tokens"] == pytest.approx(16 * unique * 0.661404, rel=1e-6)
    law = LAWS["besiroglu"]
    params = total_parameters(BLOOMBERG)
    expected = law.loss(params, 16 * unique * 0.661404)
    assert repeated["chinchilla/besiroglu/expected_loss"] == pytest.approx(expected, rel=1e-6)
    # A budget of C' with fresh text reaches the same loss.
    least = repeated["chinchilla/besiroglu/compute_efficiency"] * repeated["model_flops_6nd"]
    assert law.loss(*law.optimal(least)) == pytest.approx(expected, rel=1e-6)
    assert repeated["chinchilla/besiroglu/remaining_gain"] == 0
    # The FLOPs are spent all the same.
    assert repeated["model_flops_full"] == fresh["model_flops_full"]
    assert "effective_tokens" not in fresh
