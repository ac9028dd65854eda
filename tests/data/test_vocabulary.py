"""Training a vocabulary: the same every time, on the blend, and refused where it cannot be."""

import pytest

from t5x_style.data import Tokenizer
from t5x_style.data.sources import documents
from t5x_style.data.vocabulary import fertility, sampled, train_tokenizer
from t5x_style.errors import Fault, UsageError

SHARES = {"legal": 0.51, "general": 0.49}


def train(embedded, path, **options):
    texts = {name: documents(source, "validation") for name, source in embedded.items()}
    options = {"vocab_size": 512, "sample_bytes": 200_000} | options
    return train_tokenizer(texts, SHARES, path=path, **options)


def test_the_same_arguments_make_the_same_file(embedded, tokenizer, tmp_path):
    assert train(embedded, tmp_path / "again.model").hash == tokenizer.hash
    assert train(embedded, tmp_path / "other.model", seed=1).hash != tokenizer.hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.model", "other.model"]


def test_pieces_across_line_ends(embedded, tmp_path):
    """The trainer strips newlines from what it is given; licences are full of them."""
    vocabulary = train(embedded, tmp_path / "t.model", vocab_size=1500, sample_bytes=800_000)
    pieces = [vocabulary.decode([token]) for token in range(259, vocabulary.vocab_size)]
    assert "\n" in pieces
    assert any(piece.endswith("\n") and len(piece) > 1 for piece in pieces)


def test_sizes_that_cannot_be(embedded, tmp_path):
    with pytest.raises(UsageError, match="320 is the least"):
        train(embedded, tmp_path / "t.model", vocab_size=100)
    with pytest.raises(UsageError, match=r"vocab_size = 60000 .* \d+ at most"):
        train(embedded, tmp_path / "t.model", vocab_size=60_000)
    many = "".join(map(chr, range(0x4E00, 0x4E00 + 600))) * 3
    with pytest.raises(UsageError, match=r"vocab_size = 400 cannot hold .* \d+ at least"):
        train_tokenizer({"a": [many]}, {"a": 1.0}, vocab_size=400, path=tmp_path / "t.model")
    with pytest.raises(Fault, match="'a' has no text"):
        train_tokenizer({"a": []}, {"a": 1.0}, vocab_size=400, path=tmp_path / "t.model")
    assert list(tmp_path.iterdir()) == []


def test_a_sample_has_the_wanted_bytes():
    texts = ["é" * 10 + str(i) for i in range(100)]
    for wanted in (100, 1000, 10_000):
        sample = list(sampled("a", texts, wanted, seed=0))
        assert abs(sum(len(text.encode()) for text in sample) - wanted) <= 1
    assert len(set(sampled("a", texts, 1000, seed=0))) > 40, (
        "no document twice while there are others"
    )
    endless = ("x" * 1000 for _ in iter(int, 1))
    assert sum(map(len, sampled("a", endless, 5000, seed=0))) == 5000


def test_fertility_by_hand(tokenizer):
    measured = fertility(tokenizer, ["the the zyxwvutsrq", ""])
    ids = tokenizer.encode("the the zyxwvutsrq")
    assert measured.tokens_per_word == pytest.approx(len(ids) / 3)
    assert measured.bytes_per_token == pytest.approx(18 / len(ids))
    assert measured.whole_words == pytest.approx(2 / 3)
    assert measured.lossless == 1


def test_a_vocabulary_of_another_kind_shows_its_losses(tmp_path):
    """T5's own way: normalised, white space folded, no bytes."""
    import sentencepiece

    path = tmp_path / "lossy.model"
    with open(path, "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the quick brown fox " * 20] * 20),
            model_writer=file,
            vocab_size=20,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            minloglevel=2,
        )
    measured = fertility(Tokenizer(str(path)), ["the quick brown fox", "the  quick\nfox", "É"])
    assert measured.lossless == pytest.approx(1 / 3)
