"""A vocabulary is made once, and again whenever something that it is made from changes."""

import dataclasses
import itertools
import json

import pytest

from t5x_style.data import Language, Length, Source, Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.recipe import Recipe, judged_texts, train_samples
from t5x_style.errors import Fault, UsageError
from tests.data.store_helpers import write_jsonl


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


def make(recipe, file):
    """Makes the vocabulary of a sample of its own."""
    fields = (recipe.sources, recipe.shares, recipe.sample_bytes, recipe.seed)
    return recipe.make(file, {name: one.texts for name, one in train_samples(*fields).items()})


def test_a_source_split_by_date_is_trained_on_once(recipe, tmp_path):
    file = tmp_path / "a.model"
    assert not recipe.is_made(file)
    assert make(recipe, file) == 350
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
        make(recipe, file)
    assert file.read_bytes() == b"theirs"


def test_a_sorted_source_gives_pieces_of_its_last_language(tmp_path):
    """English, then as much Greek: seven eighths of it are behind what the sample needs."""
    english = [f"the lessee of flat {n} shall pay the rent to the lessor" for n in range(2000)]
    greek = [f"ο μισθωτής του διαμερίσματος {n} καταβάλλει το μίσθωμα" for n in range(1200)]
    source = Source(
        name="sorted", splits={"train": write_jsonl(tmp_path / "a.jsonl", english + greek)}
    )
    recipe = Recipe(
        sources=[source],
        shares={"sorted": 1.0},
        cache_dir=tmp_path / "stores",
        vocab_size=450,
        sample_bytes=10_000,
        seed=0,
        options={"model_type": "bpe"},
    )
    make(recipe, tmp_path / "a.model")
    vocabulary = Tokenizer(str(tmp_path / "a.model"))
    pieces = [vocabulary.piece(token) for token in range(259, 450)]
    assert sum(any("α" <= char <= "ώ" for char in piece) for piece in pieces) > 50
    assert sum(any("a" <= char <= "z" for char in piece) for piece in pieces) > 50
    (texts, _) = judged_texts(source, lambda: train_samples([source], {"sorted": 1.0}, 10_000, 0))
    assert {"the" in text for text in texts} == {True, False}


def test_a_share_of_less_than_a_byte_is_no_source_without_text(tmp_path):
    """Of five thousand bytes; the blend is then the other source's."""
    names = {"a": 1 - 1e-6, "b": 1e-6}
    texts = [f"the lessee of flat {n} pays the lessor, quickly and often" for n in range(100)]
    file = write_jsonl(tmp_path / "a.jsonl", texts)
    sources = [Source(name=name, splits={"train": file}) for name in names]
    recipe = Recipe(sources, names, tmp_path / "stores", 320, 5000, 0, {"model_type": "bpe"})
    assert make(recipe, tmp_path / "a.model") == 320


def test_what_a_vocabulary_is_judged_on(tmp_path):
    """Its validation split, over the whole of it; else what was held out; else what there is."""
    train = [f"train {n}" for n in range(500)]
    validation = [f"{n:04} " + "é" * 600 for n in range(3000)]
    splits = {"train": write_jsonl(tmp_path / "t.jsonl", train)}
    both = splits | {"validation": write_jsonl(tmp_path / "v.jsonl", validation)}
    for names, expected in ((splits, train), (both, validation)):
        source = Source(name="a", splits=names)
        samples = train_samples([source], {"a": 1.0}, 10**6, 0)
        texts, what = judged_texts(source, lambda samples=samples: samples)
        assert set(texts) <= set(expected)
        assert not set(texts) & set(samples["a"].texts)
        assert ("validation split" in what) == (expected is validation)
        numbers = sorted(expected.index(text) for text in texts)
        assert numbers[0] < 0.1 * len(expected)
        assert numbers[-1] > 0.9 * len(expected)
    # A megabyte of 3.6, and the whole train split is trained on.
    assert 1_000_000 <= sum(len(text.encode()) for text in texts) < 1_002_000
    assert sorted(samples["a"].texts) == sorted(train)
    write_jsonl(tmp_path / "t.jsonl", train[:1])
    source = Source(name="a", splits=splits)
    samples = train_samples([source], {"a": 1.0}, 10**6, 0)
    texts, what = judged_texts(source, lambda: samples)
    assert (list(texts), "was trained on" in what) == (train[:1], True)
    write_jsonl(tmp_path / "v.jsonl", [" "])
    with pytest.raises(Fault, match="'a': its validation split has no text to judge on"):
        judged_texts(Source(name="a", splits=both), lambda: samples)
