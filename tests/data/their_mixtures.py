"""A user's module, copied by test_mixtures.py into the folder with its data; needs seqio."""

import functools
import pathlib

import seqio
import tensorflow as tf

FOLDER = pathlib.Path(__file__).parent
vocabulary = seqio.ByteVocabulary()
tokens = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos]


@seqio.map_over_dataset
def as_targets(example):
    return {"targets": example["text"] if isinstance(example, dict) else example}


@seqio.map_over_dataset(num_seeds=1)
def one_at_random(example, seed):
    drawn = tf.random.stateless_uniform([1], seed, 3, 259, tf.int32)
    return {"targets": drawn}


@seqio.map_over_dataset
def broken(example):
    with tf.control_dependencies([tf.debugging.assert_less(tf.strings.length(example), 12)]):
        return {"targets": tf.identity(example)}


def cut(dataset, sequence_length):
    return dataset.filter(lambda example: sequence_length["targets"] > 0)


def lines(
    name,
    file,
    *preprocessors,
    cache=(),
    count=None,
    splits=("train",),
    reader=seqio.TextLineDataSource,
    vocabulary=vocabulary,
):
    seqio.TaskRegistry.add(
        name,
        source=reader(
            dict.fromkeys(splits, f"{FOLDER}/{file}"),
            num_input_examples=None if count is None else {"train": count},
        ),
        preprocessors=[*(preprocessors or [as_targets]), tokens[0], *cache, tokens[1]],
        output_features={"targets": seqio.Feature(vocabulary)},
    )


def gzipped_lines(splits, **options):
    def read(file):
        return tf.data.TextLineDataset(file, compression_type="GZIP")

    return seqio.FileDataSource(read, splits, **options)


placeholder = seqio.CacheDatasetPlaceholder()
lines("few", "few.txt", count=3)
lines("many", "many.txt", count=27)
lines("a", "a.txt", count=1)
lines("b", "b.txt", count=4)
lines("c", "c.txt", count=9)
lines("empty", "empty.txt", count=0)
lines("cached", "few.txt", cache=[placeholder])
lines("shard_gone", "few.txt", cache=[placeholder])
lines("not_cached", "few.txt", cache=[placeholder])
lines("validation_not_cached", "few.txt", cache=[placeholder], splits=("train", "validation"))
lines("must_cache", "few.txt", cache=[seqio.CacheDatasetPlaceholder(required=True)])
lines("no_file", "absent.txt")
lines("cut", "cut.txt.gz", reader=gzipped_lines)
lines("sequence_length", "few.txt", as_targets, cut)
lines("breaks", "few.txt", broken)
lines("their_ids", "few.txt", vocabulary=seqio.PassThroughVocabulary(259))
seqio.TaskRegistry.add(
    "noisy",
    source=seqio.TextLineDataSource({"train": f"{FOLDER}/many.txt"}),
    preprocessors=[one_at_random],
    output_features={"targets": seqio.Feature(vocabulary)},
)
seqio.TaskRegistry.add(
    "small",
    source=seqio.TfdsDataSource("small:1.0.0", tfds_data_dir=f"{FOLDER}/tfds"),
    preprocessors=[as_targets, *tokens],
    output_features={"targets": seqio.Feature(vocabulary)},
)

by_examples = seqio.mixing_rate_num_examples
root = functools.partial(by_examples, temperature=2.0)
seqio.MixtureRegistry.add("inner", [("few", root), ("many", root)])
seqio.MixtureRegistry.add("outer", [("inner", 3), ("small", 1), ("gin", 2.0)])
seqio.MixtureRegistry.add("by_default", ["few", ("many", 1), "small"], default_rate=by_examples)
seqio.MixtureRegistry.add("twice", [("inner", 1), ("few", 1)])
seqio.MixtureRegistry.add(
    "by_tokens",
    [("cached", lambda task: task.get_cached_stats()["targets_tokens"]), ("few", 5)],
)
seqio.MixtureRegistry.add(
    "clipped",
    ["few", "many"],
    default_rate=functools.partial(by_examples, maximum=9, scale=2.0, temperature=2.0),
)
seqio.MixtureRegistry.add("of_function", ["cached", "few"], default_rate=by_examples)
seqio.MixtureRegistry.add("no_counts", ["few", "gin"], default_rate=by_examples)
seqio.MixtureRegistry.add("nothing_of_small", [("few", 1), ("small", 0)])
seqio.MixtureRegistry.add("less_than_nothing", [("few", 1), ("small", -1)])
seqio.MixtureRegistry.add("nothing_at_all", [("few", 0), ("small", 0)])
seqio.MixtureRegistry.add("nested_function", [("inner", by_examples), ("small", 1)])
seqio.MixtureRegistry.add("drawn", ["a", "b", "c"], default_rate=root)
seqio.MixtureRegistry.add("with_empty", [("cached", 1), ("empty", 1)])
