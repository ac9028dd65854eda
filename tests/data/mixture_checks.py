"""Run by test_mixtures.py in a process of its own, because it imports TensorFlow.

`mixture_checks.py FOLDER`: FOLDER has corpus.json and the module user_module.py; a TFDS dataset
and a cache of the Task `cached` are made in FOLDER, and what was found is written to
FOLDER/found.json.
"""

import dataclasses
import json
import pathlib
import sys

import numpy as np
import seqio
import tensorflow as tf
from seqio_checks import prepare_tfds

from t5x_style.data import Corpus, Tokenizer
from t5x_style.data.building.seqio_tasks import declared_blend, load_module, task_files, task_tokens
from t5x_style.errors import Fault, UsageError


def write_cache(folder, split, documents):
    """What `seqio_cache_tasks` writes for a Task, in two shards, without Beam."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(2):
        name = f"{split}.tfrecord-{shard:05d}-of-00002"
        with tf.io.TFRecordWriter(str(folder / name)) as writer:
            for ids in documents[shard::2]:
                feature = tf.train.Feature(int64_list=tf.train.Int64List(value=ids))
                example = tf.train.Example(features=tf.train.Features(feature={"targets": feature}))
                writer.write(example.SerializeToString())
    info = {
        "num_shards": 2,
        "features": {"targets": {"shape": [None], "dtype": "int32"}},
        "seqio_version": seqio.__version__,
    }
    stats = {"examples": len(documents), "targets_tokens": sum(map(len, documents))}
    (folder / f"info.{split}.json").write_text(json.dumps(info))
    (folder / f"stats.{split}.json").write_text(json.dumps(stats))
    (folder / "COMPLETED").write_text("")


def refusal(function):
    """The message of what a call refuses, or what it gives."""
    try:
        return function()
    except (UsageError, Fault) as error:
        return f"{type(error).__name__}: {error}"


def tokens_of(corpus, name, **options):
    return [ids.tolist() for ids in task_tokens(name, "train", corpus.tokenizer, **options)]


def vocabulary_of(tokenizer, text):
    """A tokenizer as a seqio Vocabulary, in Python and in TensorFlow's graph."""
    vocabulary = tokenizer.seqio_vocabulary()
    dataset = tf.data.Dataset.from_tensors(text).map(vocabulary.encode_tf)
    (ids,) = dataset.as_numpy_iterator()
    return {
        "ids": [ids.tolist(), list(vocabulary.encode(text))],
        "text": [
            vocabulary.decode(ids.tolist()),
            vocabulary.decode_tf(tf.constant(ids)).numpy().decode(),
        ],
        "sizes": [vocabulary.vocab_size, vocabulary.eos_id],
        "equal to another of it": vocabulary == tokenizer.seqio_vocabulary(),
    }


def main():
    folder = pathlib.Path(sys.argv[1])
    prepare_tfds(folder / "tfds")
    corpus = Corpus.from_json((folder / "corpus.json").read_text())
    cache = pathlib.Path(corpus.cached_task_dirs[0])
    write_cache(cache / "cached", "train", [[100 + n] * (n + 1) for n in range(5)])
    write_cache(cache / "validation_not_cached", "train", [[100]])
    write_cache(cache / "shard_gone", "train", [[100], [101]])
    (cache / "shard_gone" / "train.tfrecord-00001-of-00002").unlink()
    load_module(corpus)
    cached = dataclasses.replace(corpus, use_cached_tasks=True)

    def blend(name, corpus=corpus):
        return refusal(lambda: declared_blend(corpus, name))

    noisy = [tokens_of(corpus, "noisy", seed=seed) for seed in (1, 1, 2)]
    found = {
        "blends": {
            name: blend(name)
            for name in (
                *("outer", "by_default", "twice", "by_tokens", "clipped", "of_function"),
                *("nothing_of_small", "gin_nests"),
            )
        },
        "refused": {
            name: blend(name)
            for name in (
                "no_counts",
                "less_than_nothing",
                "nothing_at_all",
                "nested_function",
                "their_ids",
                "must_cache",
            )
        },
        "refused cached": {
            name: blend(name, cached) for name in ("not_cached", "validation_not_cached")
        },
        "cached blend": blend("cached", cached),
        "no folder": refusal(
            lambda: load_module(dataclasses.replace(corpus, cached_task_dirs=["x/y"]))
        ),
        "unreadable": {
            name: refusal(lambda name=name: tokens_of(corpus, name))
            for name in ("no_file", "cut", "sequence_length", "breaks")
        },
        "shard gone": refusal(lambda: tokens_of(corpus, "shard_gone", use_cached=True)),
        "from the cache": tokens_of(corpus, "cached", use_cached=True),
        "from the source": tokens_of(corpus, "cached"),
        "never cached": tokens_of(corpus, "few", use_cached=True),
        "files of the cache": task_files("cached", "train", use_cached=True),
        "files of tfds": task_files("small", "train"),
        "noise of a seed": [noisy[0] == noisy[1], noisy[0] == noisy[2]],
        "vocabularies": {
            path: vocabulary_of(Tokenizer(path), "the licence, é\u2581 of  it")
            for path in json.loads((folder / "vocabularies.json").read_text())
        },
        "drawn by seqio": np.bincount(
            [
                int(example["targets"][0]) - 3 - ord("a")
                for example in seqio.get_mixture_or_task("drawn")
                .get_dataset(None, "train", shuffle=False, num_epochs=None, seed=0)
                .take(4000)
                .as_numpy_iterator()
            ],
            minlength=3,
        ).tolist(),
    }
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
