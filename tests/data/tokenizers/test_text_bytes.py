"""The bytes of a text that its ids stand for, whatever a vocabulary does to the text."""

import io
import json

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from t5x_style.data import Tokenizer
from tests.data.tokenizer_json import trained

TEXT = strategies.text(
    strategies.sampled_from("the quick fox ½ﬁ㍿…É漢\u2581\n\t é\u0301\u200b"), max_size=40
)


def normalising(folder, **options):
    """T5's way: compatibility forms, white space folded and a space put before the text."""
    import sentencepiece

    model = io.BytesIO()
    options = {"vocab_size": 290, "byte_fallback": True} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox 株式会社 " * 20] * 20),
        model_writer=model,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
        **options,
    )
    path = folder / "normalising.model"
    path.write_bytes(model.getvalue())
    return Tokenizer(str(path))


@pytest.fixture(scope="module")
def lossy(tmp_path_factory):
    return normalising(tmp_path_factory.mktemp("lossy"))


@pytest.fixture(scope="module")
def composing(tmp_path_factory):
    """Byte-level, and composes characters first, as Qwen does."""
    pytest.importorskip("tokenizers")
    plain = trained(["the quick brown fox é " * 20], "gpt 2")
    plain["normalizer"] = {"type": "NFC"}
    path = tmp_path_factory.mktemp("composing") / "tokenizer.json"
    path.write_text(json.dumps(plain))
    return Tokenizer(str(path))


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory):
    pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("metaspace") / "tokenizer.json"
    path.write_text(json.dumps(trained(["the quick brown fox é " * 20], "metaspace")))
    return Tokenizer(str(path))


def by_id(tokenizer, text):
    """Bytes of the text by id, EOS last, and the bytes that do not come back."""
    ids = tokenizer.encode_array(text)
    found = tokenizer.text_bytes(text, ids)
    sizes = np.append(tokenizer.token_bytes()[ids], 0).astype(int)
    for place, more in found.extra:
        sizes[place] += more
    return sizes.tolist(), found.lost


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("the quick fox", 0),
        # Two spaces before, one within and two behind go; the newline becomes a space: 1 and 1.
        ("  the  quick\nfox  ", 2 + 1 + 2 + 2),
        # A ligature of three bytes becomes two letters.
        ("the ﬁ", 3 + 2),
        # Three bytes become twelve, and none of them is the same.
        ("the ㍿", 3 + 12),
        # As many bytes, three points for three bytes: a net sum would be zero.
        ("the…", 3 + 3),
        ("漢", 0),
    ],
)
def test_lost_bytes_by_hand(lossy, text, lost):
    sizes, found = by_id(lossy, text)
    assert found == lost
    assert (found == 0) == (lossy.decode(lossy.encode(text)) == text)
    assert sum(sizes) == len(text.encode())
    assert min(sizes) >= 0


def test_an_unknown_character_is_lost_and_still_counted(tmp_path):
    vocabulary = normalising(tmp_path, vocab_size=60, byte_fallback=False)
    sizes, lost = by_id(vocabulary, "the 漢 fox")
    assert (sum(sizes), lost) == (11, 3)


def test_each_id_has_the_bytes_it_was_made_of(lossy):
    """'ﬁ' is written by f and i, of which the last has the three bytes of the ligature."""
    text = "the ﬁ x"
    ids = lossy.encode(text)
    sizes, _ = by_id(lossy, text)
    ends = np.cumsum(sizes)[[i for i, token in enumerate(ids) if "x" in lossy.piece(token)]]
    assert ends.tolist() == [len(text.encode())]
    assert sizes[-1] == 0, "nothing is left for EOS"
    assert by_id(lossy, "fox ")[0][-1] == 1, "but a space that no id has"


def test_our_own_vocabularies_and_bytes_need_no_table(tokenizer):
    for vocabulary in (tokenizer, Tokenizer("bytes")):
        for text in ("", " a  b\n", "é漢\u2581ﬁ"):
            found = vocabulary.text_bytes(text, vocabulary.encode_array(text))
            assert (found.extra, found.lost) == ((), 0)


@pytest.mark.parametrize("name", ["lossy", "composing", "metaspace", "tokenizer"])
@hypothesis.settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(text=TEXT)
def test_the_bytes_of_all_ids_are_those_of_the_text(name, request, text):
    vocabulary = request.getfixturevalue(name)
    sizes, lost = by_id(vocabulary, text)
    assert sum(sizes) == len(text.encode())
    assert min(sizes) >= 0
    comes_back = vocabulary.decode(vocabulary.encode(text)) == text
    assert (lost == 0) == comes_back


def test_a_composed_character_is_three_bytes_that_became_two(composing):
    sizes, lost = by_id(composing, "the e\u0301")
    assert sum(sizes) == 7
    # Another letter, and another mark: nothing of e and its accent is in é.
    assert lost == 3 + 2
    assert by_id(composing, "the \u00e9")[1] == 0
