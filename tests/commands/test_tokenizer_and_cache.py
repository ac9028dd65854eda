"""The verbs of the data room, from the command line to the files."""

import contextlib
import gzip
import importlib.util
import itertools
import json
import math
import pathlib

import pytest

from t5x_style.__main__ import main
from t5x_style.commands.corpora.tokenizer import _read_terms
from t5x_style.data import Tokenizer
from t5x_style.data.formats.files import EMBEDDED
from t5x_style.data.tokenizers import made_from
from t5x_style.data.tokenizers.extend import read_extension

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
                "--gin.legal/Source.splits={'train': ['legal.jsonl', './legal.*']}",
                "--gin.general/Source.splits={'train': 'general.jsonl'}",
                "--gin.Corpus.workers=1",
                *flags,
            ]
        )
        captured = capsys.readouterr()
        return status, captured.out, captured.err

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
    assert "is there already" in out
    status, out, _ = call(
        "tokenizer", "--json", "--vocab_sizes=[512, 600]", "--compare=['small.model']"
    )
    result = json.loads(out)
    assert result["trained"] == ["small_512.model", "small_600.model"]
    pieces = [row["pieces"] for row in result["fertility"] if row["source"] == "legal"]
    assert pieces == [512, 600, 512]
    assert pathlib.Path("small_512.model").read_bytes() == model
    assert all(row["lossless"] == 1 for row in result["fertility"])
    assert pathlib.Path("small.model").read_bytes() == model
    status, out, _ = call("tokenizer", "--seed=1")
    assert "trained in" in out, "other arguments, another vocabulary"


def test_a_source_that_is_split_by_date_is_trained_on_once(call):
    lines = map(json.loads, pathlib.Path("legal.jsonl").read_text().splitlines())
    dated = [json.dumps(line | {"day": f"2020-0{1 + n % 9}"}) for n, line in enumerate(lines)]
    pathlib.Path("legal.jsonl").write_text("\n".join(dated))
    split = ["--gin.legal/Source.date_field='day'", "--gin.legal/Source.validation_from='2020-08'"]
    assert "512 pieces trained" in call("tokenizer", *split)[1]
    assert "is there already" in call("tokenizer", *split)[1]


def test_paths_that_are_not_of_this_machine_are_refused(call):
    assert call("tokenizer")[0] == 0
    for verb, flag, binding in (
        ("cache", "--gin.CACHE_DIR=gs://bucket/stores", "Corpus.cache_dir"),
        ("cache", "--gin.TOKENIZER=gs://bucket/a.model", "Tokenizer.path"),
        (
            "cache",
            "--gin.legal/Source.splits={'train': 's3://bucket/*.jsonl'}",
            "Source.splits['train'] of 'legal'",
        ),
        ("tokenizer", "--output=gs://bucket/a.model", "tokenizer.output"),
        ("tokenizer", "--terms_file=gs://bucket/terms.txt", "tokenizer.terms_file"),
    ):
        status, _, err = call(verb, flag)
        assert status == 2, flag
        assert f"{binding} = " in err
        assert ":// is not a file system that can be read" in err
    assert not list(pathlib.Path().glob("*:"))


def test_the_size_that_writes_the_blend_in_fewest_bits(call):
    """Tokens x log2(size), recomputed from the table that is printed beside it."""
    status, out, _ = call("tokenizer", "--json", "--vocab_sizes=[350, 1000]", "--round_to=128")
    assert status == 0
    result = json.loads(out)
    bits = {}
    for size in (384, 1024):
        rows = [row for row in result["fertility"] if row["pieces"] == size]
        tokens = sum(
            {"legal": 0.51, "general": 0.49}[row["source"]] / row["bytes_per_token"] for row in rows
        )
        bits[f"small_{size}.model"] = tokens * math.log2(size)
    encoded = {row["vocabulary"]: row["bits_per_byte"] for row in result["encoded"]}
    assert encoded == pytest.approx(bits)
    assert result["best"] == min(bits, key=bits.get)
    status, out, _ = call("tokenizer", "--vocab_sizes=[350, 1000]", "--round_to=128")
    (marked,) = [line for line in out.splitlines() if "<- fewest" in line]
    assert marked.split()[0] == result["best"]


def test_terms_and_the_words_that_cost_most_are_shown(call):
    pathlib.Path("terms.txt").write_bytes("\ufeffres judicata\r\n\nEBITDA".encode())
    terms = ["--terms=['mens rea']", "--terms_file=terms.txt", "--compare=['bytes']"]
    status, out, _ = call("tokenizer", "--json", *terms)
    assert status == 0
    result = json.loads(out)
    assert list(result["terms"]) == ["mens rea", "res judicata", "EBITDA"]
    for term, pieces in result["terms"].items():
        assert pieces["small.model"].replace(" ", "") == "▁" + term.replace(" ", "▁")
        assert len(pieces["bytes"].split()) == len(term) + 1
    worst = {row["word"]: row["source"] for row in result["worst_words"]}
    print(worst)
    assert not set(worst) & {"the", "and", "of"}
    _, out, _ = call("tokenizer", *terms)
    assert "res judicata" in out
    status, _, err = call("tokenizer", "--terms_file=nowhere.txt")
    assert status == 2
    assert "nowhere.txt" in err
    pathlib.Path("terms.txt").write_bytes(b"one\nf\xfcr\n")
    status, _, err = call("tokenizer", "--terms_file=terms.txt")
    assert status == 2
    assert "tokenizer.terms_file = 'terms.txt': not UTF-8 text: byte 5 (line 2) is 0xfc" in err


def test_a_term_may_hold_what_ends_a_line_elsewhere(tmp_path):
    (tmp_path / "terms.txt").write_bytes("a\u2028b\r\n c\u0085d\x0ce \n\n".encode())
    assert _read_terms(str(tmp_path / "terms.txt")) == ["a\u2028b", "c\u0085d\x0ce"]


def test_a_vocabulary_is_extended(call):
    assert call("tokenizer")[0] == 0
    base = Tokenizer("small.model")
    grow = ["--extend=small.model", "--output=grown.model", "--gin.VOCAB_SIZE=600"]
    grow += ["--added_terms=['mens rea']"]
    status, out, _ = call("tokenizer", "--dry_run", *grow)
    assert "grown.model: 600 pieces, would be extended" in out
    status, out, _ = call("tokenizer", *grow, "--compare=['small.model']")
    assert status == 0
    assert "600 pieces (88 of them new) extended from small.model" in out
    grown = Tokenizer("grown.model")
    assert len(grown.encode(" mens rea")) == 1
    extension = read_extension(grown)
    assert (extension.base_hash, extension.base_size) == (base.hash, 512)
    assert sorted(extension.sub_pieces) == list(range(512, 600))
    assert "is there already" in call("tokenizer", *grow)[1]
    for flags, message in (
        (["--extend=small.model"], "is the file to write"),
        ([*grow, "--model_type=bpe"], "cannot be with tokenizer.extend"),
        (["--added_terms=['x']"], "are for tokenizer.extend"),
        (["--round_to=0"], "must be 1 or more"),
        (["--extend=bytes", "--output=grown.model"], "only sentencepiece's .model files can"),
    ):
        status, _, err = call("tokenizer", *flags)
        assert status == 2, flags
        assert message in err
    assert Tokenizer("small.model").hash == base.hash


def test_a_vocabulary_of_somebody_else_is_not_written_over(call):
    pathlib.Path("small.model").write_bytes(b"theirs")
    status, _, err = call("tokenizer")
    assert status == 2
    assert "small.model is there and was not made here" in err
    pathlib.Path("small.json").write_text('{"model": {"type": "BPE"}}')
    status, _, err = call("tokenizer")
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
    assert result["phases"][0]["start"] == {"legal": 0.51, "general": 0.49}
    status, out, _ = call("cache", "--describe", "--verify")
    assert status == 0
    assert "legal 51 %, general 49 %" in out
    assert "every byte is as it was built" in out
    assert "longest" in out
    assert "documents dropped: none" in out
    digest = json.loads(pathlib.Path(result["stores"][0]["path"], "meta.json").read_text())
    assert digest["checksums"]["tokens.bin"] in out
    tokens = pathlib.Path(result["stores"][0]["path"], "tokens.bin")
    content = bytearray(tokens.read_bytes())
    content[7] ^= 1
    tokens.write_bytes(content)
    status, _, err = call("cache", "--verify")
    assert status == 1
    assert "tokens.bin has changed" in err


def test_what_was_dropped_is_described(call):
    assert call("tokenizer")[0] == 0
    lines = pathlib.Path("legal.jsonl").read_text().splitlines()
    lines[3], lines[5] = '{"text": "too short"}', '{"text": '
    pathlib.Path("legal.jsonl").write_text("\n".join(lines))
    flags = (
        "--gin.legal/Source.filters=[@Length()]",
        "--gin.Length.min_characters=20",
        "--gin.legal/Source.on_bad_record='skip'",
    )
    status, out, err = call("cache", "--describe", *flags)
    assert status == 0, err
    assert "documents dropped: bad records 1, length 1" in out


@pytest.mark.skipif(importlib.util.find_spec("apache_beam"), reason="Apache Beam is here")
def test_beam_that_is_not_installed_is_named_before_the_work(call):
    assert call("tokenizer")[0] == 0
    status, _, err = call("cache", "--beam_options=['--runner=DirectRunner']")
    assert status == 2
    assert "cache.beam_options = ['--runner=DirectRunner']: Apache Beam is not installed" in err
    assert "t5x_style[beam]" in err
    assert not pathlib.Path("runs").exists()


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


def test_every_file_to_write_is_checked_before_the_first_is_trained(call):
    """Of two sizes the second is somebody's, and so is the grown.json beside a vocabulary."""
    pathlib.Path("small_600.model").write_bytes(b"theirs")
    status, _, err = call("tokenizer", "--vocab_sizes=[512, 600]")
    assert status == 2
    assert "small_600.model is there and was not made here" in err
    assert not pathlib.Path("small_512.model").exists()
    assert call("tokenizer", "--dry_run", "--vocab_sizes=[512, 600]")[0] == 2
    assert call("tokenizer")[0] == 0
    pathlib.Path("grown.json").write_text("theirs")
    grow = ["--extend=small.model", "--output=grown.model", "--gin.VOCAB_SIZE=520"]
    assert call("tokenizer", *grow)[0] == 0
    assert pathlib.Path("grown.json").read_text() == "theirs"
    assert len(read_extension(Tokenizer("grown.model")).sub_pieces) == 8


def test_what_another_process_made_meanwhile_is_not_made_again(call, monkeypatch):
    """The lock is held by a process that trains the same vocabulary."""
    assert call("tokenizer", "--output=theirs.model")[0] == 0

    @contextlib.contextmanager
    def waits(file):
        for suffix in ("", ".made_from.json"):
            pathlib.Path(f"theirs.model{suffix}").rename(f"{file}{suffix}")
        yield

    monkeypatch.setattr(made_from, "lock", waits)
    status, out, _ = call("tokenizer")
    assert status == 0
    assert "small.model: is there already" in out


def test_a_vocabulary_is_not_trained_on_a_file_that_is_held_out(call):
    both = ["--gin.general/Source.splits={'train': '*.jsonl', 'validation': 'legal.jsonl'}"]
    status, _, err = call("tokenizer", *both)
    assert status == 2
    assert "'legal' train and 'general' validation both have the file legal.jsonl" in err
    assert not pathlib.Path("small.model").exists()
    status, out, _ = call("tokenizer", "--gin.general/Source.splits={'train': '*l.jsonl'}")
    assert status == 0
    assert "'legal' train and 'general' train both have the file legal.jsonl" in out
