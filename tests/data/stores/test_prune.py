"""`cache --prune` removes what neither a corpus nor a named run needs, and nothing else."""

import dataclasses
import gc
import pathlib

import gin
import pytest

from t5x_style.commands.corpora.cache import cache
from t5x_style.config import checks
from t5x_style.data import Contamination, Corpus, Duplicates, Source, ensure_stores
from t5x_style.data.stores.token_store import TokenStore, store_lock
from t5x_style.errors import UsageError
from t5x_style.reporting.run.held_out_text import HeldOutStore, HeldOutText
from tests.data.store_helpers import write_jsonl
from tests.plans import made_up_plan, write_plan


@pytest.fixture(scope="module")
def world(tokenizer, tmp_path_factory):
    """A corpus with cleaning, and the same text with another seed and without: both are built."""
    gin.clear_config()
    checks.parse()
    folder = tmp_path_factory.mktemp("world")
    words = " ".join(f"word{i}" for i in range(30))
    train = write_jsonl(folder / "train.jsonl", [f"Clause {i} {words} {i}" for i in range(40)])
    held = write_jsonl(folder / "held.jsonl", [f"Article {i}, {words[::-1]}" for i in range(5)])
    corpus = Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="law",
        cache_dir=str(folder / "stores"),
        sources=[Source(name="law", splits={"train": train, "validation": held})],
        duplicates=Duplicates(),
        contamination=Contamination(),
        workers=1,
    )
    other = dataclasses.replace(corpus, seed=1, duplicates=None, contamination=None)
    return corpus, other


@pytest.fixture
def built(world):
    corpus, other = world
    stores = [ensure_stores(one) for one in world]
    paths = [[one.train["law"].path, one.validation["law"].path] for one in stores]
    del stores
    gc.collect()
    return corpus, other, *paths


def names(folder: str) -> set[str]:
    """Without lock files, which are empty."""
    found = pathlib.Path(folder).iterdir()
    return {path.name for path in found if not path.name.startswith(".lock-")}


def test_what_the_corpus_does_not_need_is_listed_and_then_removed(built, capsys):
    corpus, _, _, unneeded = built
    before = names(corpus.cache_dir)
    told = cache(corpus=corpus, prune=True, dry_run=True)
    assert set(told["removed"]) == set(map(str, unneeded))
    assert names(corpus.cache_dir) == before
    out = capsys.readouterr().out
    for path in unneeded:
        size = sum(file.stat().st_size for file in path.iterdir())
        assert f"would remove {path}: token store, {size / 1024:.3g} KiB" in out
    done = cache(corpus=corpus, prune=True)
    assert done == told
    assert names(corpus.cache_dir) == before - {path.name for path in unneeded}
    # All that the corpus is made with is there: nothing is tokenised or indexed again.
    assert cache(corpus=corpus)["built"] == []
    kinds = {name.partition("-")[0] for name in names(corpus.cache_dir)}
    assert {"law", "parts", "ngrams"} <= kinds
    assert cache(corpus=corpus, prune=True)["removed"] == []


def test_the_stores_of_a_named_run_stay(built, tmp_path):
    corpus, _, _, (train, validation) = built
    plan = made_up_plan({"law": 1.0})
    source = dataclasses.replace(plan.sources["law"], store=str(train))
    held_out = [HeldOutText(-1, 0, {"law": HeldOutStore(str(validation))})]
    write_plan(tmp_path, dataclasses.replace(plan, sources={"law": source}, held_out=held_out))
    assert cache(corpus=corpus, prune=True, model_dirs=str(tmp_path))["removed"] == []
    with pytest.raises(UsageError, match="no run there"):
        cache(corpus=corpus, prune=True, model_dirs=[str(tmp_path / "none")])
    assert train.is_dir()


def test_what_is_built_or_read_stays(built):
    corpus, _, _, (train, validation) = built
    store = TokenStore.open(train)
    with store_lock(validation):
        told = cache(corpus=corpus, prune=True)
    assert told["removed"] == []
    assert set(told["in_use"]) == {str(train), str(validation)}
    assert store.tokens[0] >= 0
    del store
    gc.collect()
    assert set(cache(corpus=corpus, prune=True)["removed"]) == {str(train), str(validation)}


def test_leftovers_go_and_files_of_somebody_else_stay(built):
    corpus, _, needed, _ = built
    folder = pathlib.Path(corpus.cache_dir)
    digits = "0123456789abcdef"
    ours = [f".building-law-train-{digits}", f".removing-law-train-{digits}", f"ngrams-{digits}"]
    going_on = f".building-{needed[0].name}"
    theirs = ["notes", f"mine-train-{digits}", "law-train-1", f"ngrams-{digits}.old"]
    for name in (*ours, going_on, *theirs):
        (folder / name).mkdir()
        (folder / name / "file").write_text("text")
    (folder / f"blend-{digits}.json").write_text("{}")
    (folder / "blend-mine.json").write_text("{}")
    removed = {pathlib.Path(path).name for path in cache(corpus=corpus, prune=True)["removed"]}
    assert {*ours, f"blend-{digits}.json"} <= removed
    left = names(corpus.cache_dir)
    assert not left & {*ours, f"blend-{digits}.json"}
    assert {*theirs, going_on, "blend-mine.json", "content_digests.json"} <= left


def test_describe_tells_what_is_needed(built, capsys):
    corpus, _, needed, unneeded = built
    cache(corpus=corpus, describe=True)
    out = capsys.readouterr().out
    for paths, word in ((needed, "yes"), (unneeded, "no")):
        for path in paths:
            (line,) = [line for line in out.splitlines() if line.split()[:1] == [path.name]]
            assert line.split()[-1] == word


@pytest.mark.parametrize("options", [{"model_dirs": "runs/a"}, {"prune": True, "verify": True}])
def test_flags_that_do_nothing_together_are_refused(world, options):
    with pytest.raises(UsageError, match="--prune"):
        cache(corpus=world[0], **options)
