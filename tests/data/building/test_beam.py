"""The Beam engine, where Apache Beam is: `tools/check_beam` installs it and runs this file."""

import pytest

from t5x_style.data import Corpus, Source, ensure_stores
from t5x_style.errors import Fault
from tests.data.store_helpers import write_jsonl

pytest.importorskip("apache_beam", reason="tools/check_beam has Apache Beam")

DIRECT = ["--runner=DirectRunner"]


def test_a_pipeline_builds_what_the_pool_builds(embedded, tokenizer, tmp_path):
    metas = []
    for name, options in (("pool", None), ("beam", DIRECT)):
        corpus = Corpus(tokenizer, "general", str(tmp_path / name), [embedded["general"]])
        metas.append(ensure_stores(corpus, beam_options=options).train["general"].meta)
    assert metas[0] == metas[1]


def test_what_a_part_cannot_be_made_for_is_said(tokenizer, tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", ["good", "good"])
    with open(path, "a") as file:
        file.write("{")
    source = Source(name="a", splits={"train": path})
    corpus = Corpus(tokenizer, "a", str(tmp_path / "stores"), [source])
    with pytest.raises(Fault, match=r"a\.jsonl:3: broken JSON"):
        ensure_stores(corpus, beam_options=DIRECT)


def test_a_runner_that_does_not_exist_is_said(tokenizer, tmp_path):
    source = Source(name="a", splits={"train": write_jsonl(tmp_path / "a.jsonl", ["good"])})
    corpus = Corpus(tokenizer, "a", str(tmp_path / "stores"), [source])
    with pytest.raises(Fault, match="--runner=DirctRunner failed"):
        ensure_stores(corpus, beam_options=["--runner=DirctRunner"])
