"""Nothing is lost between text and ids, and each id knows how many bytes it stands for."""

import gzip
import hashlib
import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from t5x_style.data import Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers import kinds
from t5x_style.data.tokenizers.kinds import SEGMENT_CHARACTERS
from t5x_style.errors import UsageError

HARD = [
    "",
    " ",
    "\n",
    "  a b\n\n   c \t\r\n",
    "x  ",
    "\u2581x\u2581\u2581 \u2581",
    "<0xE2></s><unk><pad>",
    "a\0b",
    "é漢字😀 2³ ﬁ ２",
    "e\u0301\u200d\ufeff\u00a0",
    "1234567890",
]


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(text=strategies.text(max_size=60))
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not np.isin(ids, [0, 1, 2]).any(), "no control id comes from text"


def test_corpora_come_back(tokenizer, embedded):
    for source in embedded.values():
        for text in documents(source, "validation"):
            assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_long_text_goes_through_in_segments(tokenizer):
    line = "The licensee shall not sublicense. \u2581 " * 20 + "\n"
    for text in (line * (2 * SEGMENT_CHARACTERS // len(line) + 3), "x" * (SEGMENT_CHARACTERS + 5)):
        assert len(text) > SEGMENT_CHARACTERS
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("", []),
        ("abcdefgh", ["abcdefgh"]),
        ("abcdefghi", ["abcdefgh", "i"]),
        ("ab\ncd\nefgh", ["ab\ncd\n", "efgh"]),
        ("abcdefg\nhi", ["abcdefg\n", "hi"]),
        # A newline just behind the segment is out of its reach.
        ("abcdefgh\nij", ["abcdefgh", "\nij"]),
        ("\nabcdefghij", ["\n", "abcdefgh", "ij"]),
        # Before a space, which belongs to the word after it.
        ("ab cd efgh", ["ab cd", " efgh"]),
        (" abcdefghij", [" abcdefg", "hij"]),
        ("ab cd\nefgh ij", ["ab cd\n", "efgh ij"]),
    ],
)
def test_a_long_text_is_cut_after_a_newline_or_before_a_space(text, segments, monkeypatch):
    monkeypatch.setattr(kinds, "SEGMENT_CHARACTERS", 8)
    assert list(kinds._segments(text)) == segments


def test_ids_of_t5(tokenizer):
    assert tokenizer.vocab_size == 512
    assert tokenizer.eos_id == 1
    sizes = tokenizer.token_bytes()
    assert sizes.dtype == np.int32
    assert sizes.shape == (512,)
    assert sizes[:3].tolist() == [0, 0, 0]
    assert (sizes[3:259] == 1).all(), "the 256 bytes"
    assert [tokenizer.decode([3 + byte]) for byte in b"A~"] == ["A", "~"]


def test_digits_stand_alone(tokenizer):
    assert len(tokenizer.encode("20267")) == 5


def test_the_hash_is_that_of_the_file(tokenizer):
    expected = hashlib.sha256(pathlib.Path(tokenizer.path).read_bytes()).hexdigest()
    assert tokenizer.hash == expected


def test_files_that_are_no_vocabulary(tmp_path):
    absent = Tokenizer(str(tmp_path / "absent.model"))
    with pytest.raises(UsageError, match=r"absent\.model.*no such file.*t5x-style tokenizer"):
        absent.hash  # noqa: B018
    broken = tmp_path / "broken.model"
    broken.write_bytes(b"not a model at all")
    with pytest.raises(UsageError, match="not a sentencepiece model"):
        Tokenizer(str(broken)).encode("x")


@pytest.mark.parametrize("name", ["a.model", "a.json"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "is a Git LFS pointer"),
        (gzip.compress(b"{}"), "is a gzip archive"),
    ],
    ids=["nothing", "pointer", "archive"],
)
def test_a_file_that_is_no_vocabulary_is_named_as_what_it_is(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name}' {message}"):
        Tokenizer(str(tmp_path / name)).vocab_size  # noqa: B018


def test_a_prompt_that_is_no_text_is_refused(tokenizer):
    """A byte of the command line that is not UTF-8 arrives as half a surrogate pair."""
    for vocabulary in (tokenizer, Tokenizer("bytes")):
        with pytest.raises(UsageError, match=r"'caf\\udce9' is not UTF-8 at character 3"):
            vocabulary.encode("caf\udce9")
