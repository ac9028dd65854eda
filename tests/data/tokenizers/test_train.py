"""Training a vocabulary: the same every time, on the blend, and refused where it cannot be."""

import pytest

from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.train import sampled, train_tokenizer, units
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
    seeds = (0, 1, -1, 2, -2, 2**32, 2**32 + 1, 2**64, 2**64 + 1, -(2**64), 10**60)
    orders = {tuple(sampled("a", texts, 1000, seed)) for seed in seeds}
    assert len(orders) == len(seeds), "seeds of any size are all different"


def test_every_text_may_be_in_the_order(embedded):
    """The last of a thousand as well as the first: a corpus is sorted by something."""
    texts = [str(n) * 4 for n in range(1000, 2000)]
    chosen = [n for seed in range(20) for n in sampled("a", texts, 160, seed)]
    assert min(map(int, chosen)) < 1100_1100_1100_1100
    assert max(map(int, chosen)) > 1900_1900_1900_1900


def test_units_of_a_text_are_cut_before_a_newline_or_a_space():
    """Of at most 2,000 characters, and whole where they fit."""
    for text in ("", "x" * 1999, "x" * 2000, "a b\n" * 500):
        assert list(units(text)) == [text] * (text != "")
    assert list(map(len, units("x" * 2001))) == [2000, 1]
    assert list(units("x" * 1500 + "\n" + "y" * 1000)) == ["x" * 1500, "\n" + "y" * 1000]
    assert list(units("x" * 1500 + " " + "y" * 1000)) == ["x" * 1500, " " + "y" * 1000]
    # A newline is better than a later space, and the last one is taken.
    text = "a\nb\n" + "x" * 100 + " " + "y" * 3000
    assert next(units(text)) == "a\nb"
    # A unit that begins with the cut of the one before is not empty.
    assert list(map(len, units("\n" + "x" * 2500))) == [2000, 501]
    text = "x" * 1500 + "\n" + "y" * 1000 + " " + "z" * 1500
    assert list(map(len, units(text))) == [1500, 1001, 1501]


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
@pytest.mark.parametrize("spaces", [False, True])
def test_every_kind_loses_nothing_and_keeps_digits_alone(embedded, tmp_path, model_type, spaces):
    form = {"model_type": model_type, "spaces_inside_words": spaces, "sample_bytes": 50_000}
    vocabulary = train(embedded, tmp_path / "t.model", **form)
    pieces = [vocabulary.piece(token) for token in range(259, vocabulary.vocab_size)]
    for text in ["a  b\n\n\tc 1234 é漢\0", " of the ", "<0x41></s>"]:
        assert vocabulary.decode(vocabulary.encode(text)) == text
    assert len(vocabulary.encode("2024")) == 4
    phrases = [piece for piece in pieces if "▁" in piece[1:].strip("▁")]
    assert bool(phrases) == spaces
    again = train(embedded, tmp_path / "again.model", **form)
    assert again.hash == vocabulary.hash


def test_symbols(embedded, tmp_path):
    vocabulary = train(
        embedded, tmp_path / "t.model", text_symbols=["<|case|>", "§"], control_symbols=["<|doc|>"]
    )
    assert [vocabulary.piece(token) for token in range(3, 8)] == [
        "<|doc|>", "<|case|>", "§", "<0x00>", "<0x01>",
    ]  # fmt: skip
    text = "a<|case|>b § <|doc|>"
    ids = vocabulary.encode(text)
    assert ids.count(4) == ids.count(5) == 1
    assert 3 not in ids, "a control symbol is not to be had by writing it"
    assert vocabulary.decode(ids) == text
    assert vocabulary.decode([3]) == ""
    assert list(vocabulary.token_bytes()[3:7]) == [0, 8, 2, 1]


def test_options_that_cannot_be(embedded, tmp_path):
    for options, message in (
        ({"model_type": "unigramm"}, "did you mean 'unigram'"),
        ({"text_symbols": ["a b"]}, "has white space"),
        ({"text_symbols": ["x"], "control_symbols": ["x"]}, "given twice"),
        ({"text_symbols": ["<0x0A>"]}, "a piece of every vocabulary"),
        ({"vocab_size": 321, "text_symbols": ["x", "y"]}, "322 is the least"),
    ):
        with pytest.raises(UsageError, match=message):
            train(embedded, tmp_path / "t.model", **options)
    assert list(tmp_path.iterdir()) == []
