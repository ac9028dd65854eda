"""The index of text that must not be trained on. It is made once for all stores that need it."""

from __future__ import annotations

import pathlib
import shutil
import sys
from collections.abc import Iterator, Sequence

from t5x_style.data.cleaning.contamination import (
    LEAST_WORDS,
    Contamination,
    EvaluationText,
    Unseen,
    is_whole,
    write_index,
)
from t5x_style.data.sources.documents import kept_documents
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.planned import index_folder
from t5x_style.data.stores.token_store import TokenStore, store_lock
from t5x_style.files import publish_folder


def ensure_index(against: Sequence[pathlib.Path], corpus: Corpus) -> pathlib.Path:
    """The folder of the index over these stores and the evaluation sets of the corpus.

    Its name depends on all that it is made from. It is whole or absent.

    Args:
      against: validation stores that are built.
      corpus: with `contamination`.

    Raises:
      Fault: a record of an evaluation set cannot be read.
    """
    contamination = corpus.contamination
    assert contamination is not None
    folder = index_folder(against, corpus, remember=True)
    with store_lock(folder):
        if folder.is_dir():
            if is_whole(folder):
                return folder
            print(f"{folder} is broken, and is made again", file=sys.stderr)
            shutil.rmtree(folder)
        building = folder.with_name(f".building-{folder.name}")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        texts = _texts(against, corpus, contamination)
        for name, unseen in write_index(building, contamination.ngram, texts).items():
            if unseen.too_short:
                print(f"contamination: {_unseen_line(name, unseen)}", file=sys.stderr)
        publish_folder(building, folder)
    return folder


def _unseen_line(name: str, unseen: Unseen) -> str:
    wordless = f", {unseen.wordless:,} of them have none" if unseen.wordless else ""
    return (
        f"{unseen.too_short:,} of the {unseen.documents:,} documents of {name} are not looked for: "
        f"they have fewer than {LEAST_WORDS} words{wordless}"
    )


def _texts(
    against: Sequence[pathlib.Path], corpus: Corpus, contamination: Contamination
) -> Iterator[EvaluationText]:
    for path in against:
        store = TokenStore.open(path)
        source = corpus.source(store.meta["source"])
        if source is not None:
            # The text itself, which a vocabulary may change.
            for document in kept_documents(source, "validation"):
                yield EvaluationText(
                    f"{source.name} validation", document.id or document.where, document.text
                )
            continue
        start = 0
        for number, end in enumerate(store.document_ends.tolist()):
            text = corpus.tokenizer.decode(store.tokens[start : end - 1])
            name = f"{store.meta['source']} validation"
            yield EvaluationText(name, f"document {number} of the store", text)
            start = end
    for source in contamination.evaluation_sets:
        for split in source.split_names():
            bad: list[str] = []
            for document in kept_documents(source, split, bad.append):
                yield EvaluationText(source.name, document.id or document.where, document.text)
            if bad:
                print(
                    f"contamination: bad records of {source.name} {split} skipped, and not looked "
                    f"for: {len(bad):,}, the first of them {bad[0]}",
                    file=sys.stderr,
                )
