"""The models of the figure, against further figures that their papers print."""

import json
import re

import pytest

from t5x_style.accounting import total_parameters
from t5x_style.accounting.audit import bloomberggpt
from t5x_style.errors import UsageError
from t5x_style.quantities import count
from t5x_style.reporting import KnownModel, known_models
from t5x_style.reporting.figures.known_models import parse_models

ENTRY = {"name": "A", "params": 1e9, "tokens": 20e9, "year": 2024, "source": "a paper"}


@pytest.fixture(scope="module")
def by_name():
    return {model.name: model for model in known_models()}


def test_flops_that_papers_print(by_name):
    # Brown et al. 2020, table D.1; Hoffmann et al. 2022, a budget of 5.76e23; Llama 3, section 1.
    assert by_name["GPT-3 175B"].flops == pytest.approx(3.14e23, rel=0.01)
    assert by_name["Chinchilla 70B"].flops == pytest.approx(5.76e23, rel=0.03)
    assert by_name["Llama 3.1 405B"].flops == pytest.approx(3.8e25, rel=0.01)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("GPT-NeoX 20B", 0.33), ("OPT 66B", 0.69), ("BLOOM 176B", 2.24), ("GPT-3 175B", 1.82)],
)
def test_compute_ratios_of_the_bloomberggpt_paper(by_name, name, ratio):
    """Wu et al. 2023, table 6: N D against its own."""
    own = by_name["BloombergGPT"]
    assert by_name[name].flops / own.flops == pytest.approx(ratio, abs=0.01)


def test_bloomberggpt_agrees_with_the_accounts(by_name):
    assert by_name["BloombergGPT"].params == total_parameters(bloomberggpt.ARCHITECTURE)
    assert by_name["BloombergGPT"].tokens == bloomberggpt.accounts()["tokens"]


def test_cerebras_gpt_has_twenty_tokens_per_parameter(by_name):
    family = [model for name, model in by_name.items() if name.startswith("Cerebras")]
    assert len(family) == 7
    for model in family:
        assert model.tokens / model.params == pytest.approx(20, rel=0.02)


def test_parameters_agree_with_the_size_in_the_name(by_name):
    """`GPT-NeoX 20B` has 20 billion parameters, to the digits of its name."""
    sized = 0
    for name, model in by_name.items():
        match = re.search(r"(\d+(?:\.\d+)?)([MB])$", name)
        if match:
            sized += 1
            named = float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]]
            assert model.params == pytest.approx(named, rel=0.19), (name, count(model.params))
    assert sized > 30


def test_models_are_sorted_by_flops_and_sourced():
    models = known_models()
    assert list(models) == sorted(models, key=lambda model: model.flops)
    assert all(2018 <= model.year <= 2026 for model in models)
    assert all(
        re.search(r"arXiv \d{4}\.\d{5}|model card|github\.com/", model.source) for model in models
    )


def test_a_model_is_read():
    assert parse_models(json.dumps([ENTRY]), where="here") == (
        KnownModel("A", 1e9, 20e9, 2024, "a paper"),
    )
    (least,) = parse_models(json.dumps([ENTRY | {"params": 1, "tokens": 0.5}]), where="here")
    assert (least.params, least.tokens) == (1, 0.5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[\n{]", "here:2: not JSON"),
        ("{}", "here: must be a list of models, not dict"),
        ("[1]", "here, model 1: must be an object, not 1"),
        (json.dumps([ENTRY, ENTRY]), "here: 'A' is listed 2 times"),
        (
            json.dumps([ENTRY | {"param": 1}]),
            "here, model 1: unknown key 'param'; did you mean 'params'?",
        ),
        (json.dumps([{"name": "A"}]), "here, model 1: has no 'params'"),
        (json.dumps([ENTRY | {"params": "1B"}]), "params = '1B': must be a number above 0"),
        (json.dumps([ENTRY | {"params": True}]), "params = True: must be a number above 0"),
        (json.dumps([ENTRY | {"tokens": 0}]), "tokens = 0: must be a number above 0"),
        (json.dumps([ENTRY | {"tokens": float("nan")}]), "tokens = nan: must be a number above 0"),
        (json.dumps([ENTRY | {"year": 2024.0}]), "year = 2024.0: must be a whole number"),
        (json.dumps([ENTRY | {"source": " "}]), "source = ' ': must be text"),
    ],
)
def test_a_broken_file_is_refused(text, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_models(text, where="here")
