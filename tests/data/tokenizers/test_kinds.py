"""Bytes and tokenizer.json files: the ids of the library called plainly, and nothing lost."""

import copy
import itertools
import json
import sys

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from t5x_style.data import Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers import kinds as tokenizer_kinds
from t5x_style.errors import UsageError
from tests.data.tokenizer_json import trained

tokenizers = pytest.importorskip("tokenizers", reason="the extra hf or dev brings it")

HARD = [
    "",
    "  a b\n\n   c \t\r\n",
    "<|endoftext|></s><pad>",
    "a\0b x é漢字😀 2³ ﬁ e\u0301\u200d\ufeff\u00a0",
    "1234567890 can't DON'T\n\n\nof",
]
PARTS = ["of ", "the\n", "\n", " ", "Licence", "é", "'ll ", "...", "/", "\r", "12", "  a", "x\ny"]


@pytest.fixture(scope="session")
def texts(embedded):
    return list(itertools.islice(documents(embedded["legal"], "validation"), 12))


@pytest.fixture(scope="session", params=["gpt 2", "llama 3", "metaspace"])
def json_tokenizer(request, texts, tmp_path_factory):
    plain = trained(texts, request.param)
    path = tmp_path_factory.mktemp("json") / "tokenizer.json"
    # What a file used for training classifiers carries along; it must not cut documents here.
    plain["truncation"] = {
        "direction": "Right",
        "max_length": 8,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    path.write_text(json.dumps(plain))
    return Tokenizer(str(path))


@pytest.fixture(scope="session")
def plainly(json_tokenizer):
    """text -> ids by the library, with nothing of ours between."""
    model = tokenizers.Tokenizer.from_file(json_tokenizer.path)
    model.no_truncation()
    return lambda text: model.encode(text, add_special_tokens=False).ids


def check_bytes(tokenizer, text):
    ids = tokenizer.encode_array(text)
    assert ids.dtype == np.int32
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode())
    assert not (ids == tokenizer.eos_id).any(), "text never ends a document"
    return ids


@pytest.mark.parametrize("text", HARD)
def test_hard_texts_come_back(json_tokenizer, text):
    assert json_tokenizer.decode(check_bytes(json_tokenizer, text)) == text


def test_the_mark_of_a_space(json_tokenizer):
    """Metaspace cannot tell U+2581 from a space; its bytes are then those of what it gives back."""
    kept = json_tokenizer._kind._byte_level
    ids = json_tokenizer.encode("a \u2581x")
    back = json_tokenizer.decode(ids)
    assert back == ("a \u2581x" if kept else "a  x")
    assert json_tokenizer.token_bytes()[ids].sum() == len(back.encode())


def test_corpora_come_back_with_the_ids_of_the_library(json_tokenizer, plainly, texts):
    for text in texts:
        ids = check_bytes(json_tokenizer, text)
        assert ids.tolist() == plainly(text)
        assert json_tokenizer.decode(ids) == text
    assert len(texts[0]) > 1000, "longer than the truncation that the file asks for"


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(
    text=strategies.text(strategies.characters(codec="utf-8", exclude_characters="\u2581"))
)
def test_any_text_comes_back(json_tokenizer, text):
    assert json_tokenizer.decode(check_bytes(json_tokenizer, text)) == text


@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(parts=strategies.lists(strategies.sampled_from(PARTS), max_size=60))
def test_cutting_leaves_the_ids_as_they_are(json_tokenizer, plainly, parts):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_kinds, "JSON_SEGMENT_CHARACTERS", 5)
        assert json_tokenizer.encode("".join(parts)) == plainly("".join(parts))


def test_a_long_text_is_cut_and_one_that_cannot_be_is_not(json_tokenizer, plainly, texts):
    kind = json_tokenizer._kind
    text = "\n".join(texts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_kinds, "JSON_SEGMENT_CHARACTERS", 1000)
        segments = list(kind._segments(text))
        assert "".join(segments) == text
        assert max(map(len, segments)) < 5000
        assert json_tokenizer.encode(text) == plainly(text)
        assert list(kind._segments("x" * 5000)) == ["x" * 5000]


def test_a_prefix_put_before_each_text_forbids_cutting(texts, tmp_path):
    plain = trained(texts, "metaspace")
    plain["pre_tokenizer"]["prepend_scheme"] = "always"
    path = tmp_path / "t.json"
    path.write_text(json.dumps(plain))
    tokenizer = Tokenizer(str(path))
    text = "licence\n" * 40
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_kinds, "JSON_SEGMENT_CHARACTERS", 100)
        assert list(tokenizer._kind._segments(text)) == [text]
    model = tokenizers.Tokenizer.from_file(str(path))
    assert tokenizer.encode(text) == model.encode(text, add_special_tokens=False).ids


def test_what_a_json_says_of_itself(json_tokenizer):
    model = tokenizers.Tokenizer.from_file(json_tokenizer.path)
    assert json_tokenizer.vocab_size == model.get_vocab_size() <= 700
    assert json_tokenizer.piece(json_tokenizer.eos_id) == "<|endoftext|>"
    pieces = [json_tokenizer.piece(token) for token in json_tokenizer.encode(" of")]
    assert pieces in (["Ġof"], ["▁of"])
    with pytest.raises(UsageError, match=r"ids 0 to \d+, not 700"):
        json_tokenizer.piece(700)


def test_a_copy_as_a_worker_gets_it_still_takes_special_tokens_for_text(json_tokenizer):
    json_tokenizer.encode("x")
    sent = copy.copy(json_tokenizer)
    assert sent == json_tokenizer
    assert "_kind" not in sent.__dict__
    check_bytes(sent, "a<|endoftext|>b")


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens(texts, tmp_path, special):
    """As GPT-NeoX has runs of spaces: text, unless they are special; EOS is so in any case."""
    plain = trained(texts, "gpt 2")
    plain["added_tokens"][0]["special"] = False
    spaces = plain["added_tokens"][0] | {"content": "    é", "id": 700, "special": special}
    plain["added_tokens"].append(spaces)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(plain))
    tokenizer = Tokenizer(str(path))
    assert tokenizer.vocab_size == 701
    ids = check_bytes(tokenizer, "a    é<|endoftext|>")
    assert (700 in ids) is not special
    assert tokenizer.token_bytes()[[tokenizer.eos_id, 700]].tolist() == [0, 0 if special else 6]


@pytest.mark.parametrize("token", [5, 720, 10**6])
def test_an_added_token_whose_id_the_library_changes_is_refused(texts, tmp_path, token):
    """Edited by hand: the library counts on from its vocabulary, whatever the file has."""
    plain = trained(texts, "gpt 2")
    plain["added_tokens"].append(plain["added_tokens"][0] | {"content": "<|im_end|>", "id": token})
    path = tmp_path / "t.json"
    path.write_text(json.dumps(plain))
    message = rf"t\.json' gives the added token '<\|im_end\|>' the id {token}, and .* gives it 700"
    with pytest.raises(UsageError, match=message):
        Tokenizer(str(path)).token_bytes()


def test_two_pieces_with_one_id_are_refused(texts, tmp_path):
    plain = trained(texts, "gpt 2")
    first, second = list(plain["model"]["vocab"])[-2:]
    plain["model"]["vocab"][second] = plain["model"]["vocab"][first]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(UsageError, match=r"t\.json' gives the id \d+ to two pieces"):
        Tokenizer(str(path)).token_bytes()


def test_a_byte_order_mark_is_no_part_of_a_json(texts, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(trained(texts, "gpt 2")), encoding="utf-8-sig")
    assert Tokenizer(str(path)).vocab_size == 700


def test_the_unknown_token_stands_for_no_bytes(texts, tmp_path):
    """A vocabulary without the bytes, whose unknown token is no added token."""
    plain = trained(texts, "metaspace")
    plain["added_tokens"] = [item for item in plain["added_tokens"] if item["content"] != "<unk>"]
    plain["model"]["byte_fallback"] = False
    plain["model"]["vocab"] = {
        piece: token for piece, token in plain["model"]["vocab"].items() if piece[:3] != "<0x"
    }
    path = tmp_path / "t.json"
    path.write_text(json.dumps(plain))
    tokenizer = Tokenizer(str(path))
    ids = tokenizer.encode("of漢")
    assert tokenizer.piece(ids[-1]) == "<unk>"
    assert tokenizer.token_bytes()[ids].tolist() == [2, 0]


def test_the_end_of_a_document_is_found_or_asked_for(texts, tmp_path):
    names = ["<|endoftext|>", "</s>", "<|im_end|>"]
    path = tmp_path / "t.json"
    path.write_text(json.dumps(trained(texts, "gpt 2", names)))
    with pytest.raises(
        UsageError, match=r"more than one token known to end.*eos, among '</s>', '<\|endoftext\|>'$"
    ):
        Tokenizer(str(path)).eos_id  # noqa: B018
    with pytest.raises(UsageError, match=r"eos = '<\|im_ends\|>' is not.*did you mean '<\|im_end"):
        Tokenizer(str(path), "<|im_ends|>").eos_id  # noqa: B018
    chosen = Tokenizer(str(path), "<|im_end|>")
    assert chosen.piece(chosen.eos_id) == "<|im_end|>"
    assert chosen.hash != Tokenizer(str(path), "</s>").hash, "a store is bound to its EOS too"
    path.write_text(json.dumps(trained(texts, "gpt 2", ["<|im_end|>"])))
    with pytest.raises(UsageError, match=r"has no token known to end.*among '<\|im_end\|>'"):
        Tokenizer(str(path)).eos_id  # noqa: B018


def test_files_that_cannot_be_used(texts, tmp_path):
    path = tmp_path / "t.json"
    word_pieces = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    for content, message in (
        ("{", "not a tokenizer.json: JSONDecodeError"),
        ("{}", "not a tokenizer.json: KeyError: 'added_tokens'"),
        (
            json.dumps(trained(texts, "gpt 2") | {"decoder": word_pieces}),
            "decodes by WordPiece, for which the bytes of a piece",
        ),
        (json.dumps(trained(texts, "gpt 2") | {"model": {"type": "BPF"}}), "not a tokenizer.json"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError, match=message):
            Tokenizer(str(path)).encode("x")
    for wrong, message in (
        ("vocabulary.txt", "neither a sentencepiece '.model', nor a tokenizers '.json', nor"),
        ("byte", "did you mean 'bytes'"),
    ):
        with pytest.raises(UsageError, match=message):
            Tokenizer(wrong)
    with pytest.raises(UsageError, match=r"eos = '</s>': only a '\.json' has"):
        Tokenizer("bytes", "</s>")


def test_a_json_without_the_library_names_the_extra(json_tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UsageError, match=r"install the extra t5x_style\[hf\]"):
        Tokenizer(json_tokenizer.path).encode("x")


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(text=strategies.text())
def test_bytes_are_those_of_byt5(text):
    tokenizer = Tokenizer("bytes")
    ids = check_bytes(tokenizer, text)
    assert ids.tolist() == [byte + 3 for byte in text.encode()]
    assert tokenizer.decode([0, *ids, 1, 2]) == text


def test_what_the_bytes_say_of_themselves():
    tokenizer = Tokenizer("bytes")
    assert (tokenizer.vocab_size, tokenizer.eos_id) == (259, 1)
    assert list(map(tokenizer.piece, (0, 1, 2, 68))) == ["<pad>", "</s>", "<unk>", "<0x41>"]
    assert tokenizer.decode([3 + 0xC3]) == "\ufffd"


def test_pieces_of_sentencepiece(tokenizer):
    assert list(map(tokenizer.piece, (0, 1, 2, 68))) == ["<pad>", "</s>", "<unk>", "<0x41>"]
    assert "".join(map(tokenizer.piece, tokenizer.encode(" of the"))) == "▁of▁the"
