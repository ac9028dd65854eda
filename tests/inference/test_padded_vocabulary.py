"""Only what a text can be made of is drawn, also from a model with more ids than its vocabulary."""

import dataclasses

import numpy as np
import pytest
import sentencepiece

from t5x_style.accounting import Topology
from t5x_style.data import Source, Tokenizer
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.train import train_tokenizer
from t5x_style.inference import RestoredModel, sample, sampling
from t5x_style.partitioning import in_force, make_mesh
from t5x_style.step.model_state import bind_model
from tests.data import tokenizer_json
from tests.training.runs import ARCHITECTURE

TEXTS = ["The licensee shall not sublicense the licence. ", "Les clauses du bail. "] * 20


def bytes_alone(folder) -> tuple[Tokenizer, set[int]]:
    # The ids of ByT5: padding 0, the end 1, unknown 2, and 256 bytes.
    return Tokenizer("bytes"), {1, *range(3, 259)}


def sentencepiece_model(folder) -> tuple[Tokenizer, set[int]]:
    source = Source(name="a", splits={"train": "package:legal.validation.jsonl.gz"})
    tokenizer = train_tokenizer(
        {"a": documents(source, "train")},
        {"a": 1.0},
        vocab_size=330,
        path=folder / "a.model",
        sample_bytes=20_000,
        control_symbols=["<cls>"],
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)
    text = {
        token
        for token in range(theirs.vocab_size())
        if not (theirs.is_control(token) or theirs.is_unknown(token))
    }
    return tokenizer, {theirs.eos_id(), *text}


def json_with_a_gap(folder) -> tuple[Tokenizer, set[int]]:
    """As published files have it: control tokens besides the end, and ids without a token."""
    pytest.importorskip("tokenizers")
    plain = tokenizer_json.trained(TEXTS, "bytes", ("<|endoftext|>", "<|reserved|>"))
    first, last = 2, len(plain["model"]["vocab"]) - 1
    file = folder / "tokenizer.json"
    file.write_text(tokenizer_json.json.dumps(plain))
    return Tokenizer(str(file)), {0, *range(first, last + 1)}


@pytest.fixture(params=[bytes_alone, sentencepiece_model, json_with_a_gap])
def padded(request, tmp_path) -> tuple[RestoredModel, set[int]]:
    """A model without training that has 60 ids too many; and the ids that a text may have."""
    tokenizer, allowed = request.param(tmp_path)
    words = tokenizer.vocab_size + 60
    architecture = dataclasses.replace(ARCHITECTURE, vocab_size=words, layers=1)
    topology = Topology()
    mesh = make_mesh(topology)
    with in_force(topology, mesh):
        model = bind_model(architecture, topology, mesh, "float32")
        parameters = model.fresh_parameters(0)
    return RestoredModel(None, tokenizer, topology, mesh, model, parameters, 0, None), allowed


def test_thousands_of_tokens_are_all_of_the_vocabulary(padded, monkeypatch):
    restored, allowed = padded
    rows = []
    up_to_end = sampling._up_to_end
    monkeypatch.setattr(
        sampling, "_up_to_end", lambda row, eos: (rows.append(row), up_to_end(row, eos))[1]
    )
    options = {"temperature": 1.0, "top_p": 1.0, "seed": 0}
    assert len(sample(restored, "a", samples=128, max_tokens=32, **options)) == 128
    drawn = set(np.concatenate(rows).tolist())
    # A model without training draws each of them, also the end; and there was more to draw.
    assert drawn <= allowed
    assert len(drawn) > 0.9 * len(allowed)
    assert restored.tokenizer.eos_id in drawn
    assert len(allowed) < restored.model.architecture.vocab_size - 60


@pytest.mark.parametrize("padded", [bytes_alone], indirect=True)
def test_a_continuation_begins_with_its_space(padded, monkeypatch, tmp_path):
    """Published vocabularies put a space before a text, and their decoders drop the first one."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_prefix=str(tmp_path / "theirs"),
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = Tokenizer(str(tmp_path / "theirs.model"))
    prompt, text = "The licensee", "The licensee shall not sublicense"
    rest = tokenizer.encode(text)[len(tokenizer.encode(prompt)) :]
    assert not tokenizer.decode(rest).startswith(" ")
    drawn = [[*rest, tokenizer.eos_id, *rest]]
    monkeypatch.setattr(sampling, "_sample", lambda *_, **__: np.array(drawn))
    monkeypatch.setattr(sampling.jax, "jit", lambda function: function)
    restored = dataclasses.replace(padded[0], tokenizer=tokenizer)
    options = {"samples": 1, "max_tokens": 99, "temperature": 1.0, "top_p": 1.0, "seed": 0}
    assert sample(restored, prompt, **options) == [" shall not sublicense"]
    # A document of its own begins without.
    assert sample(restored, "", **options) == ["shall not sublicense"]
