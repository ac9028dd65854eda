"""A vocabulary and the JSON beside it: nobody else's file is touched, and a kill blocks nothing."""

import dataclasses
import json
import os

import pytest

from t5x_style.data import Source, Tokenizer
from t5x_style.data.tokenizers import made_from
from t5x_style.data.tokenizers.extend import Extension, read_extension
from t5x_style.data.tokenizers.recipe import Recipe
from t5x_style.errors import UsageError
from tests.data.store_helpers import write_jsonl
from tests.disk import Disk

HUGGING_FACE = '{"model": {"type": "BPE"}, "added_tokens": []}'
TEXTS = [f"the lessee of flat {n} pays the lessor, quickly and often" for n in range(100)]


@pytest.fixture
def recipe(tmp_path):
    """350 pieces of a hundred short texts."""
    source = Source(name="a", splits={"train": write_jsonl(tmp_path / "a.jsonl", TEXTS)})
    return Recipe(
        sources=[source],
        shares={"a": 1.0},
        cache_dir=tmp_path / "stores",
        vocab_size=330,
        sample_bytes=5_000,
        seed=0,
        options={"model_type": "bpe"},
    )


def make(recipe, file):
    return recipe.make(file, {"a": TEXTS})


def other(recipe):
    """The same recipe for another vocabulary."""
    return dataclasses.replace(recipe, vocab_size=331)


def test_a_tokenizer_json_beside_the_vocabulary_stays_as_it_is(recipe, tmp_path):
    """GPT-2, Llama 3 and Qwen are downloaded as a tokenizer.json, without a .model."""
    theirs = tmp_path / "tokenizer.json"
    theirs.write_text(HUGGING_FACE)
    make(recipe, tmp_path / "tokenizer.model")
    assert theirs.read_text() == HUGGING_FACE
    beside = tmp_path / "tokenizer.model.made_from.json"
    assert json.loads(beside.read_text())["vocab_size"] == 330
    assert dataclasses.replace(recipe).is_made(tmp_path / "tokenizer.model")


def test_a_model_that_somebody_put_in_the_place_of_ours_is_not_overwritten(recipe, tmp_path):
    file = tmp_path / "a.model"
    make(recipe, file)
    file.write_bytes(b"theirs")
    with pytest.raises(UsageError, match=r"a\.model is there and was not made here"):
        make(other(recipe), file)
    assert file.read_bytes() == b"theirs"


def test_our_own_vocabulary_is_replaced_by_another_of_ours(recipe, tmp_path):
    file = tmp_path / "a.model"
    make(recipe, file)
    make(other(recipe), file)
    assert Tokenizer(str(file)).vocab_size == 331


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("written", [0, 1])
def test_a_stop_between_the_two_files_blocks_no_later_start(
    recipe, tmp_path, monkeypatch, before, written
):
    """Stopped after `written` of the two files, with or without a vocabulary there before."""
    file = tmp_path / "a.model"
    if before:
        make(recipe, file)
    old = file.read_bytes() if before else None
    write, calls = made_from.write_whole, []

    def stops(path, content):
        if len(calls) == written:
            raise KeyboardInterrupt
        calls.append(path)
        write(path, content)

    monkeypatch.setattr(made_from, "write_whole", stops)
    with pytest.raises(KeyboardInterrupt):
        make(other(recipe), file)
    monkeypatch.undo()
    assert not other(recipe).is_made(file)
    assert (file.read_bytes() if file.exists() else None) == old
    third = dataclasses.replace(recipe, vocab_size=332)
    make(third, file)
    assert third.is_made(file)
    assert Tokenizer(str(file)).vocab_size == 332


def test_both_files_are_on_the_disk(recipe, tmp_path, monkeypatch):
    disk = Disk(monkeypatch)
    make(recipe, tmp_path / "a.model")
    for name in ("a.model", "a.model.made_from.json"):
        assert disk.has_name(tmp_path / name), name


@pytest.mark.parametrize("content", ["", '{"vocab_size": 3', "[]", "\0\0\0\0"])
def test_a_broken_json_is_made_again_and_the_vocabulary_is_kept(recipe, tmp_path, capsys, content):
    file, beside = tmp_path / "a.model", tmp_path / "a.model.made_from.json"
    make(recipe, file)
    whole, model = beside.read_text(), file.read_bytes()
    beside.write_text(content)
    assert not recipe.is_made(file)
    make(recipe, file)
    assert "a.model.made_from.json is broken" in capsys.readouterr().err
    assert json.loads(beside.read_text())["model"] == json.loads(whole)["model"]
    assert file.read_bytes() == model
    assert recipe.is_made(file)


def test_beside_a_broken_json_another_vocabulary_is_not_overwritten(recipe, tmp_path):
    """Nothing shows any more that it was made here."""
    file, beside = tmp_path / "a.model", tmp_path / "a.model.made_from.json"
    make(recipe, file)
    model = file.read_bytes()
    beside.write_text("")
    with pytest.raises(UsageError, match=r"a\.model\.made_from\.json is broken"):
        make(other(recipe), file)
    assert (file.read_bytes(), beside.read_text()) == (model, "")


def test_a_second_process_is_refused_and_told_which_one_is_first(tmp_path):
    file = tmp_path / "new" / "a.model"
    message = rf"the vocabulary .*a\.model .*process {os.getpid()} "
    with made_from.lock(file), pytest.raises(UsageError, match=message), made_from.lock(file):
        pass
    assert not file.parent.exists(), "nothing was made, and nothing is left"


def test_a_runs_own_copy_knows_what_it_extends(tmp_path, recipe):
    """A folder that is copied to another machine is a start for further runs."""
    file = tmp_path / "a.model"
    make(recipe, file)
    beside = tmp_path / "a.model.made_from.json"
    extension = {"base_hash": "b", "base_size": 2, "sub_pieces": {"2": [0, 1]}}
    beside.write_text(json.dumps(json.loads(beside.read_text()) | {"extension": extension}))
    tokenizer = Tokenizer(str(file))
    for _ in range(2):
        tokenizer.write_copy(str(tmp_path / "run"))
        copy = Tokenizer(str(tmp_path / "run" / tokenizer.name_in_run))
        assert read_extension(copy) == read_extension(tokenizer) == Extension("b", 2, {2: (0, 1)})
        tokenizer = copy  # a run that starts again from its own folder
    Tokenizer("bytes").write_copy(str(tmp_path / "other"))
    assert not (tmp_path / "other").exists()
