"""The two forms at one point each, worked out elsewhere, and which way they lean."""

import math

import pytest

from t5x_style.accounting.laws.mixing import DataMixingLaw, DomainMixLaw
from t5x_style.errors import UsageError


def test_mix_form():
    law = DataMixingLaw(irreducible=1.2, scale=0.5, sensitivities={"domain": -1.5})
    assert law.loss({"domain": 0.49}) == pytest.approx(1.439753, rel=1e-6)


def test_the_shares_of_all_sources_count():
    law = DataMixingLaw(2.0, 1.0, {"web": 0.3, "news": -0.7})
    expected = 2 + math.exp(0.3 * 0.25) * math.exp(-0.7 * 0.75)
    assert law.loss({"web": 0.25, "news": 0.75}) == pytest.approx(expected)
    assert law.loss({"news": 0.0}) == law.loss({}) == 3.0


def test_an_unknown_source_is_named():
    law = DataMixingLaw(2.0, 1.0, {"web": 0.3, "news": -0.7})
    with pytest.raises(UsageError, match=r"'newss'.*did you mean 'news'"):
        law.loss({"newss": 1.0})


# N and D in billions.
DOMAIN = DomainMixLaw(
    irreducible=1.5,
    params_scale=2,
    params_exponent=0.3,
    tokens_scale=1.2,
    tokens_exponent=0.3,
    share_exponent=0.4,
    dilution_scale=0.5,
    dilution_offset=0.1,
    dilution_exponent=0.7,
)


def test_dcpt_form():
    assert DOMAIN.loss(1.8, 10, 0.5) == pytest.approx(4.347398, rel=1e-6)


def test_more_of_anything_lowers_the_loss():
    here = DOMAIN.loss(1.8, 100, 0.3)
    assert DOMAIN.loss(3.6, 100, 0.3) < here
    assert DOMAIN.loss(1.8, 200, 0.3) < here
    assert DOMAIN.loss(1.8, 100, 0.6) < here
