"""seqio Tasks and Mixtures, on both sides: ours made into them, a user's module read from them.

Everything here imports seqio, and with it TensorFlow, when it is called: only the process that
builds stores does.
"""

import importlib
from collections.abc import Iterator

import numpy as np

from t5x_style.data.corpus import Corpus
from t5x_style.data.records import documents
from t5x_style.data.sources import Source
from t5x_style.data.tokenizer import Tokenizer
from t5x_style.errors import Fault, UsageError, did_you_mean

FEATURE = "targets"


def vocabulary(tokenizer: Tokenizer):
    """`tokenizer` as a seqio Vocabulary.

    TensorFlow's own op would write a U+2581 of the text as a space, and holds a lattice over the
    whole of a long document; so ids come from `Tokenizer.encode`.
    """
    import seqio
    import tensorflow as tf

    class TokenizerVocabulary(seqio.SentencePieceVocabulary):
        def _encode(self, s):
            return tokenizer.encode(s)

        def _encode_tf(self, s):
            ids = tf.numpy_function(
                lambda text: tokenizer.encode_array(text.decode()), [s], tf.int32
            )
            ids.set_shape([None])
            return ids

    return TokenizerVocabulary(tokenizer.path)


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
    """Makes each mixture of `corpus` a seqio Mixture; its tasks must be there."""
    import seqio

    for name, shares in corpus.mixtures.items():
        for task in shares:
            if task not in seqio.TaskRegistry.names():
                raise _unknown(f"Corpus.mixtures[{name!r}]", task, seqio.TaskRegistry.names())
        seqio.MixtureRegistry.remove(name)
        seqio.MixtureRegistry.add(name, list(shares.items()))


def _dataset_fn(source: Source):
    def dataset(split, shuffle_files, seed=None):
        del shuffle_files, seed  # the store shuffles documents, whatever file they lie in
        import tensorflow as tf

        return tf.data.Dataset.from_generator(
            lambda: ({FEATURE: text} for text in documents(source, split)),
            output_signature={FEATURE: tf.TensorSpec([], tf.string)},
        )

    return dataset


def load_module(corpus: Corpus) -> None:
    """Registers what gin declares, then imports the module that declares the rest.

    Raises:
      UsageError: the module cannot be imported.
    """
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

    The rates of a seqio Mixture, which seqio itself would draw examples by, are taken as shares of
    tokens.

    Raises:
      UsageError: no Task or Mixture of that name, or one that cannot be learnt from here.
    """
    import seqio

    known = [*seqio.MixtureRegistry.names(), *seqio.TaskRegistry.names()]
    if name not in known:
        raise _unknown("MIXTURE_OR_TASK_NAME", name, known)
    if name in seqio.MixtureRegistry.names():
        mixture = seqio.MixtureRegistry.get(name)
        rates = {task.name: float(mixture.get_rate(task)) for task in mixture.tasks}
        total = sum(rates.values())
        shares = {task: rate / total for task, rate in rates.items() if rate > 0}
    else:
        shares = {name: 1.0}
    splits = {}
    for task_name in shares:
        task = seqio.TaskRegistry.get(task_name)
        _check_features(task, corpus.tokenizer)
        splits[task_name] = [split for split in ("train", "validation") if split in task.splits]
        if "train" not in splits[task_name]:
            raise UsageError(
                f"seqio Task {task_name!r} has no split 'train'; it has {sorted(task.splits)}"
            )
    return shares, splits


def _check_features(task, tokenizer: Tokenizer) -> None:
    import hashlib

    import seqio

    if set(task.output_features) != {FEATURE}:
        raise UsageError(
            f"seqio Task {task.name!r} has the features {sorted(task.output_features)}; a decoder "
            f"learns from {FEATURE!r} alone: join them in a preprocessor"
        )
    vocabulary = task.output_features[FEATURE].vocabulary
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        raise UsageError(
            f"seqio Task {task.name!r} has a {type(vocabulary).__name__}; here it must be the "
            f"run's: t5x_style.data.Tokenizer({tokenizer.path!r}).seqio_vocabulary()"
        )
    if vocabulary.extra_ids:
        raise UsageError(
            f"seqio Task {task.name!r} adds {vocabulary.extra_ids} ids to its vocabulary; the "
            f"model knows the {tokenizer.vocab_size} of {tokenizer.path!r}: set extra_ids=0"
        )
    if hashlib.sha256(vocabulary.sp_model).hexdigest() != tokenizer.hash:
        raise UsageError(
            f"seqio Task {task.name!r} has another vocabulary than Tokenizer.path = "
            f"{tokenizer.path!r}"
        )


def task_tokens(name: str, split: str, tokenizer: Tokenizer) -> Iterator[np.ndarray]:
    """The examples of a Task in order, whole (nothing is trimmed), each ended by one EOS.

    Yields:
      int64 [tokens].

    Raises:
      Fault: an id that the tokenizer does not have.
    """
    import seqio

    dataset = seqio.TaskRegistry.get(name).get_dataset(None, split, shuffle=False)
    for number, example in enumerate(dataset.as_numpy_iterator()):
        tokens = np.asarray(example[FEATURE], np.int64)
        if len(tokens) and not 0 <= tokens.min() <= tokens.max() < tokenizer.vocab_size:
            raise Fault(
                f"seqio Task {name!r}, split {split!r}, example {number}: ids from {tokens.min()} "
                f"to {tokens.max()}, the tokenizer has 0 to {tokenizer.vocab_size - 1}"
            )
        if not len(tokens) or tokens[-1] != tokenizer.eos_id:
            tokens = np.append(tokens, tokenizer.eos_id)
        yield tokens


def task_files(name: str, split: str) -> list[list]:
    """[path, size, time of change in ns] of the files that a Task's source says it reads."""
    import os

    import seqio

    source = seqio.TaskRegistry.get(name).source
    if not isinstance(source, seqio.FileDataSource):
        return []
    stamps = [(path, os.stat(path)) for path in source.list_shards(split)]
    return [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stamps]


def tfds_texts(source: Source, split: str) -> Iterator[bytes]:
    """The text field of each example of a prepared TFDS dataset, in order.

    Raises:
      UsageError: no such split or field.
    """
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(source.tfds_folder())
    fields = list(builder.info.features)
    if source.text_field not in fields:
        raise UsageError(
            f"source {source.name!r}: the TFDS dataset has no field {source.text_field!r}; it has "
            f"{', '.join(fields)}{did_you_mean(source.text_field, fields)}"
        )
    try:
        dataset = builder.as_dataset(
            split=source.where(split),
            shuffle_files=False,
            decoders=tfds.decode.PartialDecoding({source.text_field: True}),
        )
    except ValueError as error:
        raise UsageError(
            f"Source.splits[{split!r}] = {source.where(split)!r} of {source.name!r}: {error}"
        ) from None
    for example in dataset.as_numpy_iterator():
        yield example[source.text_field]


def _unknown(where: str, name: str, known) -> UsageError:
    return UsageError(
        f"{where} = {name!r} is not among {', '.join(sorted(known))}{did_you_mean(name, known)}"
    )
