"""A vocabulary is made once, and again whenever something that it is made from changes."""

import dataclasses
import itertools
import json

import pytest

from t5x_style.data import Language, Length, Source, Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.recipe import Recipe
from t5x_style.errors import UsageError


@pytest.fixture
def recipe(embedded, tmp_path):
    """Of a source that is split by date: the even documents are older."""
    texts = itertools.islice(documents(embedded["general"], "train"), 60)
    lines = [
        json.dumps({"text": text, "day": f"20{19 + number % 2}-05"})
        for number, text in enumerate(texts)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    source = Source(
        name="a",
        splits={"train": str(tmp_path / "a.jsonl")},
        date_field="day",
        validation_from="2020",
        dates=("2000", None),
        filters=[Length(min_characters=5)],
    )
    return Recipe(
        sources=[source],
        shares={"a": 1.0},
        cache_dir=tmp_path / "stores",
        vocab_size=350,
        sample_bytes=50_000,
        seed=0,
        options={"model_type": "unigram"},
    )


def test_a_source_split_by_date_is_trained_on_once(recipe, tmp_path):
    file = tmp_path / "a.model"
    assert not recipe.is_made(file)
    assert recipe.make(file) == 350
    assert Tokenizer(str(file)).vocab_size == 350
    # A recipe of a new process: what was made from is read back from JSON.
    assert dataclasses.replace(recipe).is_made(file)
    (source,) = recipe.sources
    for changed in (
        {"sources": [dataclasses.replace(source, validation_from="2021")]},
        {"sources": [dataclasses.replace(source, dates=("2001", None))]},
        {"sources": [dataclasses.replace(source, filters=[])]},
        {"shares": {"a": 0.5}},
        {"seed": 1},
        {"vocab_size": 351},
        {"options": {"model_type": "bpe"}},
        {"base": Tokenizer("bytes")},
    ):
        assert not dataclasses.replace(recipe, **changed).is_made(file), changed
    file.write_bytes(file.read_bytes() + b"\0")
    assert not recipe.is_made(file), "another file of the same name"


def test_a_filter_with_options_that_are_tuples_counts_as_the_same(recipe):
    """JSON has no tuples, and a `Language` keeps one."""
    pytest.importorskip("py3langid")
    (source,) = recipe.sources
    source = dataclasses.replace(source, filters=[Language()])
    made_from = dataclasses.replace(recipe, sources=[source]).made_from
    assert json.loads(json.dumps(made_from)) == made_from


def test_a_file_that_no_recipe_made_is_not_overwritten(recipe, tmp_path):
    file = tmp_path / "a.model"
    file.write_bytes(b"theirs")
    with pytest.raises(UsageError, match=r"a\.model is there and was not made here"):
        recipe.make(file)
    assert file.read_bytes() == b"theirs"
