"""The verb `tokenizer`: a vocabulary trained on the blend, and what it makes of each source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gin

from t5x_style.commands.configuration import refuse_unconsumed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from t5x_style.data import Corpus, Tokenizer

# The mixture files bind both verbs of the data room.
CONFIGURABLES = ("t5x_style.data", "t5x_style.commands.cache")
FERTILITY_CHARACTERS = 1_000_000


@gin.configurable
def tokenizer(
    *,
    corpus: Corpus,
    vocab_size: int = 4096,
    also_sizes: Sequence[int] = (),
    output: str | None = None,
    sample_bytes: int = 4_000_000,
    seed: int = 0,
    compare: Sequence[str] = (),
    dry_run: bool = False,
) -> dict[str, Any]:
    """Trains a Unigram vocabulary with byte fallback on the blend, and prints its fertility.

    The sample has the blend's shares, by byte. A vocabulary that was trained with the same
    arguments on the same files is left as it is.

    Args:
      corpus: sources and blend, @Corpus(); its tokenizer names the file to write.
      vocab_size: pieces, control ids and bytes included.
      also_sizes: train these sizes as well, as OUTPUT with the size in its name, to compare.
      output: the .model file to write; that of corpus.tokenizer if not given.
      sample_bytes: text to train on.
      seed: of the choice of documents.
      compare: other vocabularies to put into the table: .model or .json files, or 'bytes'.
      dry_run: say what would be trained, and stop.
    """
    refuse_unconsumed()
    import dataclasses
    import pathlib

    from t5x_style.data import Tokenizer
    from t5x_style.data.vocabulary import fertility
    from t5x_style.errors import UsageError
    from t5x_style.reporting import table

    shares = _declared(corpus)
    path = pathlib.Path(output or corpus.tokenizer.path)
    if path.suffix != ".model":
        raise UsageError(f"a vocabulary is trained into a '.model' file; {str(path)!r} is none")
    paths = {vocab_size: path}
    for size in also_sizes:
        paths.setdefault(size, path.with_stem(f"{path.stem}-{size}"))
    others = {name: Tokenizer(name) for name in compare}
    for other in others.values():
        other.hash  # noqa: B018  a file that is not there is refused before the training
    trained = []
    for size, file in paths.items():
        made_from = _made_from(corpus, shares, size, sample_bytes, seed)
        if dry_run:
            state = "is there" if _is_trained(file, made_from) else "would be trained"
            print(f"{file}: {size:,} pieces, {state}")
        elif _train(corpus, shares, size, file, made_from, sample_bytes, seed):
            trained.append(str(file))
    if dry_run:
        return {"vocabularies": [str(file) for file in paths.values()]}
    vocabularies: dict[str, Tokenizer] = {
        str(file): Tokenizer(str(file)) for file in paths.values()
    }
    rows = []
    for task in shares:
        texts = list(_some_texts(corpus, task))
        for name, vocabulary in (vocabularies | others).items():
            measured = dataclasses.asdict(fertility(vocabulary, texts))
            rows.append(
                {"source": task, "vocabulary": name, "pieces": vocabulary.vocab_size} | measured
            )
    print(table([list(row.values()) for row in rows], [key.replace("_", " ") for key in rows[0]]))
    return {"trained": trained, "fertility": rows}


def _declared(corpus: Corpus) -> dict[str, float]:
    from t5x_style.errors import UsageError

    # Of several phases, the blend that the run ends with.
    shares = corpus.declared_shares(corpus.blend_names()[-1])
    if shares is None or not all(corpus.source(task) for task in shares):
        raise UsageError(
            f"{corpus.mixture_or_task_name!r} is made of Tasks of "
            f"{corpus.mixture_or_task_module!r}, which come with a vocabulary: one is trained on "
            f"sources declared in gin"
        )
    return shares


def _made_from(
    corpus: Corpus, shares: dict[str, float], size: int, sample_bytes: int, seed: int
) -> dict[str, Any]:
    """All that the vocabulary follows from, as it is kept beside it."""
    import pathlib

    from t5x_style.data import filters
    from t5x_style.data.files import content_digests

    cache_dir = pathlib.Path(corpus.cache_dir)
    sources = [source for source in corpus.sources if source.name in shares]
    return {
        "vocab_size": size,
        "sample_bytes": sample_bytes,
        "seed": seed,
        "sources": [
            {
                "name": source.name,
                "share": shares[source.name],
                "format": source.format,
                "text_field": source.text_field,
                "on_bad_record": source.on_bad_record,
                "filters": filters.made_from(source.filters, cache_dir, remember=False),
                "files": content_digests(source.files("train"), cache_dir, remember=False),
            }
            for source in sources
        ],
    }


def _is_trained(file: Any, made_from: dict[str, Any]) -> bool:
    import json

    from t5x_style.data.store import file_digest

    beside = file.with_suffix(".json")
    if not (file.is_file() and beside.is_file()):
        return False
    known = json.loads(beside.read_text())
    return known == made_from | {"model": file_digest(file)}


def _train(
    corpus: Corpus,
    shares: dict[str, float],
    size: int,
    file: Any,
    made_from: dict[str, Any],
    sample_bytes: int,
    seed: int,
) -> bool:
    """Trains unless that was done; refuses to write over a vocabulary that something else made."""
    import json
    import time

    from t5x_style.data.files import write_atomically
    from t5x_style.data.sources import documents
    from t5x_style.data.store import file_digest
    from t5x_style.data.vocabulary import train_tokenizer
    from t5x_style.errors import UsageError

    if _is_trained(file, made_from):
        print(f"{file}: trained already, with the same arguments on the same files")
        return False
    if file.exists() and not file.with_suffix(".json").exists():
        raise UsageError(f"{file} is there and was not made here: name another file to write")
    begun = time.monotonic()
    texts = {task: documents(source, "train") for task in shares if (source := corpus.source(task))}
    train_tokenizer(texts, shares, vocab_size=size, path=file, seed=seed, sample_bytes=sample_bytes)
    write_atomically(
        file.with_suffix(".json"),
        json.dumps(made_from | {"model": file_digest(file)}, indent=1) + "\n",
    )
    print(f"{file}: {size:,} pieces trained in {time.monotonic() - begun:.1f} s")
    return True


def _some_texts(corpus: Corpus, task: str) -> Any:
    """The first documents of a source's validation split; of its train split if it has none."""
    from t5x_style.data.sources import documents

    source = corpus.source(task)
    assert source is not None
    characters = 0
    for text in documents(source, "validation" if "validation" in source.splits else "train"):
        yield text
        characters += len(text)
        if characters >= FERTILITY_CHARACTERS:
            return
