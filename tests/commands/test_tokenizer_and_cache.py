"""The verbs of the data room, from the command line to the files."""

import gzip
import itertools
import json
import pathlib

import pytest

from t5x_style.__main__ import main
from t5x_style.data.files import EMBEDDED

MIXTURE = "gin_configs/mixtures/legal_general.gin"


@pytest.fixture
def call(tmp_path, monkeypatch, capsys):
    """Runs a verb on a small copy of the mixture; gives status, standard output and error."""
    monkeypatch.chdir(tmp_path)
    for name in ("legal", "general"):
        with gzip.open(EMBEDDED / f"{name}.validation.jsonl.gz", "rt") as file:
            pathlib.Path(f"{name}.jsonl").write_text("".join(itertools.islice(file, 40)))

    def run(verb, *flags):
        status = main(
            [
                verb,
                f"--gin_file={MIXTURE}",
                "--gin.TOKENIZER=small.model",
                *(
                    ["--gin.VOCAB_SIZE=512", "--sample_bytes=100_000"]
                    if verb == "tokenizer"
                    else []
                ),
                "--gin.legal/Source.splits={'train': 'legal.jsonl'}",
                "--gin.general/Source.splits={'train': 'general.jsonl'}",
                "--gin.Corpus.workers=1",
                *flags,
            ]
        )
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def test_a_vocabulary_is_trained_once(call):
    status, out, _ = call("tokenizer", "--dry_run")
    assert status == 0
    assert "small.model: 512 pieces, would be trained" in out
    assert not pathlib.Path("small.model").exists()
    status, out, _ = call("tokenizer")
    assert status == 0
    assert "small.model: 512 pieces trained" in out
    assert "tokens per word" in out
    model = pathlib.Path("small.model").read_bytes()
    status, out, _ = call("tokenizer")
    assert "trained already" in out
    status, out, _ = call("tokenizer", "--json", "--also_sizes=[600]", "--compare=['small.model']")
    result = json.loads(out)
    assert result["trained"] == ["small-600.model"]
    pieces = [row["pieces"] for row in result["fertility"] if row["source"] == "legal"]
    assert pieces == [512, 600]
    assert all(row["lossless"] == 1 for row in result["fertility"])
    assert pathlib.Path("small.model").read_bytes() == model
    status, out, _ = call("tokenizer", "--seed=1")
    assert "trained in" in out, "other arguments, another vocabulary"


def test_a_vocabulary_of_somebody_else_is_not_written_over(call):
    pathlib.Path("small.model").write_bytes(b"theirs")
    status, _, err = call("tokenizer")
    assert status == 2
    assert "small.model is there and was not made here" in err
    status, _, err = call("tokenizer", "--compare=['absent.model']", "--output=mine.model")
    assert status == 2
    assert "absent.model" in err


def test_stores_are_built_described_and_verified(call):
    status, _, err = call("cache")
    assert status == 2
    assert "'small.model': no such file" in err
    assert call("tokenizer")[0] == 0
    status, out, _ = call("cache", "--dry_run")
    assert status == 0
    assert out.count("would build") == 2
    assert not pathlib.Path("runs").exists()
    status, out, _ = call("cache", "--json")
    result = json.loads(out)
    assert result["built"] == ["legal train", "general train"]
    assert [store["documents"] for store in result["stores"]] == [40, 40]
    assert result["shares"] == {"legal": 0.51, "general": 0.49}
    status, out, _ = call("cache", "--describe", "--verify")
    assert status == 0
    assert "legal 51 %, general 49 %" in out
    assert "every byte is as it was built" in out
    assert "longest" in out
    tokens = pathlib.Path(result["stores"][0]["path"], "tokens.bin")
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    status, _, err = call("cache", "--verify")
    assert status == 1
    assert "tokens.bin has changed" in err


def test_mistakes_are_named(call):
    assert call("tokenizer")[0] == 0
    for flag, message in (
        ("--gin.MIXTURE_OR_TASK_NAME=legal_51_genral_49", "did you mean 'legal_51_general_49'"),
        ("--gin.legal/Source.splits={'train': 'lgal.jsonl'}", "did you mean 'legal.jsonl'"),
        ("--gin.Corpus.mixtures={'legal_51_general_49': {'legal': 0.51}}", "sum to 0.51"),
    ):
        status, _, err = call("cache", flag)
        assert status == 2, flag
        assert message in err
