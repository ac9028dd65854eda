"""Pieces added to a vocabulary: old ids stay, text comes back, and the new ones are really used."""

import collections
import itertools
import json

import numpy as np
import pytest

from t5x_style.data import Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.extend import Extension, extend_vocabulary, read_extension
from t5x_style.data.tokenizers.made_from import json_file
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.errors import UsageError

BASE, GROWN = 400, 500
TERMS = ("mens rea", "q.i.d.", "merchantability")


def legal(embedded, first, last):
    return itertools.islice(documents(embedded["legal"], "validation"), first, last)


def train_base(embedded, path, **options):
    texts = {"general": itertools.islice(documents(embedded["general"], "validation"), 10)}
    options = {"vocab_size": BASE, "sample_bytes": 60_000} | options
    return train_tokenizer(texts, {"general": 1.0}, path=path, **options)


def extend(embedded, base, path, **options):
    options = {"vocab_size": GROWN, "sample_bytes": 100_000} | options
    texts = {"legal": legal(embedded, 0, 20)}
    return extend_vocabulary(base, texts, {"legal": 1.0}, path=path, **options)


def pieces(tokenizer):
    return [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]


@pytest.fixture(scope="module", params=["unigram", "bpe", "unigram phrases", "bpe phrases"])
def extended(request, embedded, tmp_path_factory):
    """(base, extended vocabulary, extension) of a model of this type."""
    folder = tmp_path_factory.mktemp("extension")
    model_type, _, phrases = request.param.partition(" ")
    base = train_base(
        embedded,
        folder / f"{request.param}.model",
        model_type=model_type,
        spaces_inside_words=bool(phrases),
    )
    extension = extend(embedded, base, folder / "grown.model", terms=TERMS)
    return base, Tokenizer(str(folder / "grown.model")), extension


def test_old_ids_keep_their_meaning(extended):
    base, grown, extension = extended
    assert grown.vocab_size == GROWN
    assert pieces(grown)[:BASE] == pieces(base)
    assert len(set(pieces(grown))) == GROWN
    assert (extension.base_hash, extension.base_size) == (base.hash, BASE)
    assert (grown.eos_id, base.eos_id) == (1, 1)
    np.testing.assert_array_equal(grown.token_bytes()[:BASE], base.token_bytes())


def test_sub_pieces_write_the_piece(extended):
    base, grown, extension = extended
    names = pieces(base)
    assert sorted(extension.sub_pieces) == list(range(BASE, GROWN))
    for token, ids in extension.sub_pieces.items():
        assert len(ids) > 1
        assert "".join(names[i] for i in ids) == pieces(grown)[token]


def test_text_that_was_not_seen_takes_fewer_tokens_and_comes_back(extended, embedded):
    base, grown, _ = extended
    texts = list(legal(embedded, 20, 60))
    uses: collections.Counter[int] = collections.Counter()
    before = after = 0
    for text in texts:
        ids = grown.encode(text)
        assert grown.decode(ids) == text
        assert grown.token_bytes()[ids].sum() == len(text.encode())
        uses.update(ids)
        before += len(base.encode(text))
        after += len(ids)
    assert after < 0.85 * before
    assert sum(uses[token] > 0 for token in range(BASE, GROWN)) > 0.8 * (GROWN - BASE)


def test_terms_are_one_piece(extended):
    base, grown, _ = extended
    for term in TERMS:
        assert len(base.encode(f"the {term} is")) > len(grown.encode(f"the {term} is"))
        (token,) = grown.encode(f" {term}")
        assert token >= BASE


def test_digits_stay_alone_and_words_apart(extended):
    base, grown, _ = extended
    added = pieces(grown)[BASE:]
    assert not any(char.isdigit() for piece in added for char in piece)
    found = [piece for piece in added if not "▁mens▁rea".startswith(piece)]
    assert any("▁" in piece.strip("▁") for piece in found) == ("phrases" in base.path)


def test_runs_of_spaces_are_joined(tmp_path):
    """Indentation, which a base of running text writes space by space."""
    filler = "".join(f" {a}{b}" for a, b in itertools.product("abcdefghij", repeat=2))
    path = tmp_path / "base.model"
    base = train_tokenizer(
        {"a": [filler * 20]}, {"a": 1.0}, vocab_size=330, path=path, model_type="bpe"
    )
    path = tmp_path / "grown.model"
    text = f"a\n{' ' * 8}b\n{' ' * 4}c" * 50
    extend_vocabulary(
        base, {"a": [text]}, {"a": 1.0}, vocab_size=332, path=path, sample_bytes=len(text)
    )
    grown = Tokenizer(str(path))
    assert len(grown.encode(" " * 8)) < len(base.encode(" " * 8))
    assert grown.decode(grown.encode(text)) == text


def test_the_pairs_are_those_of_byte_pair_encoding(tmp_path):
    """Counted again after every merge, the plain way (Sennrich et al. 2016, algorithm 1)."""
    words = {"lower": 90, "lowest": 60, "newer": 80, "widest": 40, "wider": 35}
    text = "".join(f" {word}" * count for word, count in words.items())
    filler = "".join(f" {a}{b}" for a, b in itertools.product("lowernsdit", repeat=2))
    base = train_tokenizer(
        {"a": [filler * 20]},
        {"a": 1.0},
        vocab_size=330,
        path=tmp_path / "b.model",
        model_type="bpe",
    )
    names = pieces(base)
    sample = {tuple(names[i] for i in base.encode(f" {word}")): n for word, n in words.items()}
    wanted = []
    for _ in range(6):
        pairs: collections.Counter[tuple[str, str]] = collections.Counter()
        for word, count in sample.items():
            for pair in itertools.pairwise(word):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        wanted.append("".join(best))
        joined = {}
        for word, count in sample.items():
            out: list[str] = []
            for piece in word:
                if out and (out[-1], piece) == best:
                    out[-1] += piece
                else:
                    out.append(piece)
            joined[tuple(out)] = count
        sample = joined
    path = tmp_path / "grown.model"
    extend_vocabulary(
        base, {"a": [text]}, {"a": 1.0}, vocab_size=336, path=path, sample_bytes=len(text)
    )
    assert pieces(Tokenizer(str(path)))[330:] == wanted


def test_the_same_arguments_make_the_same_file(embedded, extended, tmp_path):
    base, grown, extension = extended
    again = extend(embedded, base, tmp_path / "again.model", terms=TERMS)
    assert again == extension
    assert Tokenizer(str(tmp_path / "again.model")).hash == grown.hash


def test_what_lies_beside_a_vocabulary(embedded, tmp_path):
    base = train_base(embedded, tmp_path / "base.model")
    assert read_extension(base) is None
    extension = extend(embedded, base, tmp_path / "grown.model")
    grown = Tokenizer(str(tmp_path / "grown.model"))
    beside = {"model": grown.hash, "extension": extension.to_json()}
    json_file(tmp_path / "grown.model").write_text(json.dumps(beside))
    assert read_extension(grown) == extension
    json_file(tmp_path / "grown.model").write_text(json.dumps(beside | {"model": base.hash}))
    with pytest.raises(UsageError, match="describes another vocabulary"):
        read_extension(grown)


def test_what_cannot_be(embedded, tokenizer, tmp_path):
    out = tmp_path / "grown.model"
    with pytest.raises(UsageError, match="has 512 pieces already"):
        extend(embedded, tokenizer, out, vocab_size=512)
    with pytest.raises(UsageError, match=r"the text has \d+ pieces to add, 40000 are asked for"):
        extend(embedded, tokenizer, out, vocab_size=40_512)
    with pytest.raises(UsageError, match=r"room for 1 more pieces .* the terms need 2"):
        extend(embedded, tokenizer, out, vocab_size=513, terms=["voir dire", "res judicata"])
    with pytest.raises(UsageError, match=r"'法' cannot be a piece .* <0xE6>"):
        extend(embedded, tokenizer, out, vocab_size=513, terms=["法"])
    with pytest.raises(UsageError, match="it is empty"):
        extend(embedded, tokenizer, out, vocab_size=513, terms=[" "])
    words = tmp_path / "words.model"
    with open(words, "wb") as file:
        import sentencepiece

        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the quick brown fox " * 20] * 20),
            model_writer=file, model_type="word", vocab_size=7, pad_id=0, eos_id=1, unk_id=2,
            bos_id=-1, minloglevel=2,
        )  # fmt: skip
    with pytest.raises(UsageError, match="is a WORD model"):
        extend(embedded, Tokenizer(str(words)), out)
    assert not out.exists()
    assert Extension("h", 1, {}).to_json()["sub_pieces"] == {}
