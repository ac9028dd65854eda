"""Where every parameter lies, held to what was agreed (see golden_specs.py)."""

import re

import pytest

from tests.partitioning.golden_specs import GOLDEN, pairs, specs

AGREED = {
    section.partition("\n")[0]: section.strip()
    for section in re.split(r"\n(?=\S)", GOLDEN.read_text())
}


@pytest.mark.parametrize(("model", "topology"), pairs())
def test_every_parameter_lies_where_it_did(model, topology):
    assert specs(model, topology) == AGREED[f"{model} on {topology}"]


def test_every_section_is_of_files_that_ship():
    assert sorted(AGREED) == sorted(f"{model} on {topology}" for model, topology in pairs())
