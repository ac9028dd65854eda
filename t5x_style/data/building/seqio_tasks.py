"""seqio Tasks and Mixtures: sources are made into them, and those of a user's module are read.

The functions import seqio, and with it TensorFlow: call them in the process that builds stores.
"""

import gzip
import importlib
import itertools
import json
import math
import os
import re
import sys
import zlib
from collections.abc import Iterator

import numpy as np

from t5x_style.data.sources.documents import documents
from t5x_style.data.sources.source import Source
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.tokenizers.seqio_vocabulary import check_vocabulary, vocabulary
from t5x_style.data.tokenizers.tokenizer import Tokenizer
from t5x_style.errors import Fault, UsageError, did_you_mean
from t5x_style.ranges import folded_seed

FEATURE = "targets"


def register(corpus: Corpus) -> None:
    """Makes each source of `corpus` a seqio Task and each mixture a seqio Mixture, by name."""
    import seqio

    feature = seqio.Feature(vocabulary(corpus.tokenizer), add_eos=True, rank=1)
    for source in corpus.sources:
        seqio.TaskRegistry.remove(source.name)
        seqio.TaskRegistry.add(
            source.name,
            source=seqio.FunctionDataSource(_dataset_fn(source), splits=source.split_names()),
            preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
            output_features={FEATURE: feature},
        )


def register_mixtures(corpus: Corpus) -> None:
    """Makes each mixture of `corpus` a seqio Mixture. Its tasks must be registered."""
    import seqio

    for name in corpus.mixtures_in_order():
        seqio.MixtureRegistry.remove(name)
        known = [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]
        for child in corpus.mixtures[name]:
            if child not in known:
                raise _unknown(f"Corpus.mixtures[{name!r}]", child, known)
        seqio.MixtureRegistry.add(name, list(corpus.mixtures[name].items()))


def _dataset_fn(source: Source):
    def dataset(split, shuffle_files, seed=None):
        del shuffle_files, seed  # the store shuffles documents across files
        import tensorflow as tf

        return tf.data.Dataset.from_generator(
            lambda: ({FEATURE: text} for text in documents(source, split)),
            output_signature={FEATURE: tf.TensorSpec([], tf.string)},
        )

    return dataset


def load_module(corpus: Corpus) -> None:
    """Registers the sources and mixtures of gin, and imports the module that declares the rest.

    Raises:
      UsageError: no such folder of caches, or the module cannot be imported.
    """
    import seqio
    import tensorflow as tf

    for folder in corpus.cached_task_dirs:
        if not tf.io.gfile.isdir(folder):
            raise UsageError(f"Corpus.cached_task_dirs: there is no folder {folder!r}")
    seqio.add_global_cache_dirs(corpus.cached_task_dirs)
    register(corpus)
    module = str(corpus.mixture_or_task_module)
    try:
        importlib.import_module(module)
    except Exception as error:
        raise UsageError(
            f"Corpus.mixture_or_task_module = {module!r} cannot be imported: "
            f"{type(error).__name__}: {error}"
        ) from error
    register_mixtures(corpus)


def declared_blend(corpus: Corpus, name: str) -> tuple[dict[str, float], dict[str, list[str]]]:
    """{task: share of tokens} and {task: its splits among train and validation} of one blend.

    The module must be loaded.

    The rates of a seqio Mixture, by which seqio would draw examples, are taken as shares of tokens.
    A rate that is a function is called with the Task, as seqio does.

    Raises:
      UsageError: no Task or Mixture of that name, or one that cannot be trained on here.
    """
    import seqio

    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        raise _unknown("MIXTURE_OR_TASK_NAME", name, known)
    if name in seqio.MixtureRegistry.names():
        shares = _shares(seqio.MixtureRegistry.get(name))
    else:
        shares = {name: 1.0}
    splits = {}
    for task_name in shares:
        task = seqio.TaskRegistry.get(task_name)
        splits[task_name] = [split for split in ("train", "validation") if split in task.splits]
        if corpus.source(task_name) is None:
            _check_task(task, splits[task_name], corpus, trained_on=shares[task_name] > 0)
    return shares, splits


def _shares(mixture) -> dict[str, float]:
    """{task: share}: the rates of a seqio Mixture over their sum, nested ones multiplied out."""
    rates = {}
    for task in mixture.tasks:
        try:
            rate = rates[task.name] = float(mixture.get_rate(task))
        except Exception as error:
            raise UsageError(
                f"seqio Mixture {mixture.name!r}: no rate of {task.name!r}: "
                f"{_short_message(error)}. A function of the Task needs the number of examples: "
                f"num_input_examples of its source, or a cache in Corpus.cached_task_dirs"
            ) from None
        if not (math.isfinite(rate) and rate >= 0):
            raise UsageError(
                f"seqio Mixture {mixture.name!r}: the rate of {task.name!r} is {rate:g}: it must "
                f"be 0 or more (0: evaluated and not trained on)"
            )
    total = sum(rates.values())
    if not total:
        raise UsageError(f"seqio Mixture {mixture.name!r}: every rate is 0: nothing to train on")
    return {task: rate / total for task, rate in rates.items()}


def _check_task(task, splits: list[str], corpus: Corpus, *, trained_on: bool) -> None:
    """Refuses a Task that cannot be trained on, or not evaluated, before anything is read."""
    import tensorflow as tf
    from seqio import utils

    if trained_on and "train" not in splits:
        raise UsageError(
            f"seqio Task {task.name!r} has no split 'train'; it has {sorted(task.splits)}"
        )
    if set(task.output_features) != {FEATURE}:
        raise UsageError(
            f"seqio Task {task.name!r} has the features {sorted(task.output_features)}; a decoder "
            f"learns from {FEATURE!r} alone: join them in a preprocessor"
        )
    check_vocabulary(task.name, task.output_features[FEATURE].vocabulary, corpus.tokenizer)
    if task.requires_caching and not corpus.use_cached_tasks:
        raise UsageError(
            f"seqio Task {task.name!r} can only be read from its cache: set "
            f"Corpus.use_cached_tasks = True"
        )
    if corpus.use_cached_tasks and task.supports_caching:
        if not task.cache_dir:
            raise UsageError(
                f"Corpus.use_cached_tasks: seqio Task {task.name!r} is not cached in "
                f"{', '.join(map(repr, utils.get_global_cache_dirs())) or 'any folder'} "
                f"(Corpus.cached_task_dirs), where {utils.get_task_dir_from_name(task.name)!r} "
                f"with a file COMPLETED would be"
            )
        for split in splits:
            info = utils.get_cached_info_path(task.cache_dir, split)
            if not tf.io.gfile.exists(info):
                raise UsageError(
                    f"Corpus.use_cached_tasks: the split {split!r} of seqio Task {task.name!r} is "
                    f"not in its cache: there is no {info}"
                )


def task_tokens(
    name: str, split: str, tokenizer: Tokenizer, *, use_cached: bool = False, seed: int = 0
) -> Iterator[np.ndarray]:
    """The examples of a Task in order, whole (nothing is trimmed), each ended by one EOS.

    Args:
      name: of the Task.
      split: to read.
      tokenizer: whose ids they are.
      use_cached: read the cache that seqio made. A Task without a CacheDatasetPlaceholder has none:
        it is read from its source, and a line is printed.
      seed: of preprocessors that draw at random.

    Yields:
      int64 [tokens].

    Raises:
      UsageError: the Task cannot be opened.
      Fault: it cannot be read to its end, or has an id that the tokenizer has not.
    """
    import seqio
    import tensorflow as tf

    task = seqio.TaskRegistry.get(name)
    if use_cached and not task.supports_caching:
        print(f"{name}: has no CacheDatasetPlaceholder, so it is not cached", file=sys.stderr)
        use_cached = False
    if use_cached:
        _check_cache(task, split)
    for path, *_ in task_files(name, split, use_cached=use_cached):
        if path.endswith(".gz"):
            _check_gzip(path, f"seqio Task {name!r}, split {split!r}")
    # Not the seed of get_dataset, which a function as a source would have to take too.
    tf.random.set_seed(folded_seed(seed))
    try:
        dataset = task.get_dataset(
            None, split, use_cached=use_cached, shuffle=False, try_in_mem_cache=False
        )
        examples = dataset.as_numpy_iterator()
    except Exception as error:
        raise UsageError(
            f"seqio Task {name!r}, split {split!r}, cannot be opened: {_short_message(error)} "
            f"(its preprocessors are given no sequence_length: documents are taken whole)"
        ) from error
    for number in itertools.count():
        try:
            example = next(examples, None)
        except Exception as error:
            raise Fault(
                f"seqio Task {name!r}, split {split!r}, cannot be read after {number} examples: "
                f"{_short_message(error)}"
            ) from error
        if example is None:
            return
        tokens = np.asarray(example[FEATURE], np.int64)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
            raise Fault(
                f"seqio Task {name!r}, split {split!r}, example {number}: ids from {tokens.min()} "
                f"to {tokens.max()}, the tokenizer has 0 to {tokenizer.vocab_size - 1}"
            )
        if not len(tokens) or tokens[-1] != tokenizer.eos_id:
            tokens = np.append(tokens, tokenizer.eos_id)
        yield tokens


def _check_cache(task, split: str) -> None:
    """Refuses a cache with missing shards: seqio would read the rest without a message."""
    import tensorflow as tf
    from seqio import utils

    info = utils.get_cached_info_path(task.cache_dir, split)
    with tf.io.gfile.GFile(info) as file:
        shards = json.load(file).get("num_shards", 0)
    found = len(_cached_shards(task, split))
    if found != shards:
        raise Fault(f"seqio Task {task.name!r}: {info} lists {shards} shards, {found} are there")


def _cached_shards(task, split: str) -> list[str]:
    import tensorflow as tf
    from seqio import utils

    return sorted(tf.io.gfile.glob(utils.get_cached_tfrecord_prefix(task.cache_dir, split) + "-*"))


def _check_gzip(path: str, where: str) -> None:
    """Refuses a file that was cut short: TensorFlow would read what is left without an error."""
    if not os.path.getsize(path):
        raise Fault(f"{where}: {path} is empty: an archive of nothing has a head")
    try:
        with gzip.open(path) as file:
            while file.read(1 << 20):
                pass
    except (EOFError, OSError, zlib.error) as error:
        raise Fault(f"{where}: {path}: {error}") from None


def task_files(name: str, split: str, *, use_cached: bool = False) -> list[list]:
    """[path, size, time of change in ns] of the local files that a Task lists as its source."""
    import seqio

    task = seqio.TaskRegistry.get(name)
    if use_cached and task.supports_caching:
        paths = _cached_shards(task, split)
    elif isinstance(task.source, seqio.FileDataSource | seqio.TfdsDataSource):
        paths = task.source.list_shards(split)
    else:
        return []
    local = [os.path.abspath(path) for path in paths if "://" not in path]
    stamps = [(path, os.stat(path)) for path in local if os.path.exists(path)]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stamps]


def _short_message(error: Exception) -> str:
    """An error of seqio or TensorFlow in one line."""
    kind = type(error).__name__
    lines = str(error).strip().splitlines() or [""]
    # An error in a graph begins with its place in {{}}; a trace of user code ends with the cause.
    message = re.sub(r"{{.*?}} *", "", lines[-1 if lines[0].startswith("in user code") else 0])
    return f"{kind}: {message.strip().removeprefix(f'{kind}: ').rstrip('.')}"


def _unknown(where: str, name: str, known) -> UsageError:
    return UsageError(
        f"{where} = {name!r} is not among {', '.join(sorted(known))}{did_you_mean(name, known)}"
    )
