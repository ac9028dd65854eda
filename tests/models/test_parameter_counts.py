"""What the model really holds against what the account says, without allocating any of it."""

import dataclasses
import itertools
import re
from pathlib import Path

import gin
import jax
import pytest

from t5x_style.accounting import (
    Architecture,
    Topology,
    non_embedding_parameters,
    parameters,
    total_parameters,
)
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.model_state import bind_model
from tests.models.architectures import ARCHITECTURES

MODEL_FILES = sorted((Path(__file__).parents[2] / "gin_configs/models").glob("*.gin"))


def counted(architecture: Architecture) -> dict[str, int]:
    """Parameters by the account's terms, from the shapes of the abstract model."""
    topology = Topology()
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        abstract = bind_model(architecture, topology, mesh, "float32").abstract
    terms = dict.fromkeys(parameters(architecture), 0)
    for path, leaf in jax.tree_util.tree_flatten_with_path(abstract)[0]:
        names = [entry.key for entry in path]
        if any(name.endswith("norm") for name in names):
            term = "norms"
        elif names[0] == "blocks":
            term = names[1]
        else:
            term = {"position_table": "positions"}.get(names[0], names[0])
        terms[term] += leaf.size
    return terms


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_account_of_every_option(name):
    assert counted(ARCHITECTURES[name]) == parameters(ARCHITECTURES[name])


@pytest.mark.parametrize(
    ("feed_forward", "biases", "norm"),
    list(itertools.product(["gelu", "swiglu"], [True, False], ["layer", "rms"])),
)
def test_the_account_of_biases_and_norms(feed_forward, biases, norm):
    base = dataclasses.replace(ARCHITECTURES["llama"], qk_norm=False, parallel_block=False)
    a = dataclasses.replace(base, feed_forward=feed_forward, biases=biases, norm=norm)
    assert counted(a) == parameters(a)


def architecture_of(path: Path) -> Architecture:
    gin.clear_config()
    try:
        gin.parse_config_file(str(path))
        return Architecture()
    finally:
        gin.clear_config()


@pytest.mark.parametrize("path", MODEL_FILES, ids=lambda path: path.stem)
def test_each_gin_file_has_its_size_in_its_head(path):
    a = architecture_of(path)
    head = re.match(r"(#.*\n)+", path.read_text())[0].replace("\n# ", " ")
    named = re.search(r"([\d,]+) parameters \(([\d,]+) without embeddings\)", head)
    total, rest = (int(number.replace(",", "")) for number in named.groups())
    assert (total, rest) == (total_parameters(a), non_embedding_parameters(a))
    assert sum(counted(a).values()) == total


def test_bloomberggpt_has_50_558_868_480_parameters():
    (path,) = [path for path in MODEL_FILES if path.stem == "bloomberggpt_50b"]
    assert sum(counted(architecture_of(path)).values()) == 50_558_868_480
