"""Run by test_seqio_tasks.py in a process of its own, because it imports TensorFlow.

`seqio_checks.py FOLDER`: FOLDER has corpus.json and the module their_tasks.py; a TFDS dataset
small:1.0.0 is prepared in FOLDER/tfds and added to the corpus, and what was found is written to
FOLDER/found.json.
"""

import dataclasses
import importlib.resources.abc
import json
import pathlib
import sys

import seqio
import tensorflow as tf
import tensorflow_datasets as tfds

from t5x_style.data import Corpus, Source
from t5x_style.data.building.seqio_tasks import declared_blend, load_module, task_tokens
from t5x_style.data.sources.documents import documents
from t5x_style.errors import Fault, UsageError

SMALL = ["first \u2581 text", "second  text\n", "third\u00e9"]


def prepare_tfds(folder):
    """As a user would have done, elsewhere and before."""
    # TFDS 4.9.10 prepares with this package and does not depend on it; reading needs it not.
    sys.modules.setdefault("importlib_resources", importlib.resources)

    def split(texts):
        return tf.data.Dataset.from_tensor_slices({"text": texts})

    tfds.dataset_builders.TfDataBuilder(
        name="small",
        version="1.0.0",
        split_datasets={"train": split(SMALL), "validation": split(["a fourth text"])},
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        data_dir=str(folder),
    ).download_and_prepare()
    del sys.modules["importlib_resources"]


def refused(corpus, name):
    """The refusal of a blend that cannot be."""
    try:
        load_module(corpus)
        return declared_blend(corpus, name)
    except UsageError as error:
        return str(error)


def main():
    folder = pathlib.Path(sys.argv[1])
    prepare_tfds(folder / "tfds")
    corpus = Corpus.from_json((folder / "corpus.json").read_text())
    small = Source(
        name="small",
        format="tfds",
        tfds_name="small:1.0.0",
        tfds_data_dir=str(folder / "tfds"),
        splits={"train": "train", "validation": "validation"},
    )
    corpus = dataclasses.replace(
        corpus, sources=[*corpus.sources, small], mixtures={"blend": {"legal": 0.5, "small": 0.5}}
    )
    tokenizer = corpus.tokenizer
    load_module(corpus)
    vocabulary = tokenizer.seqio_vocabulary()
    found = {
        "legal by seqio": [ids.tolist() for ids in task_tokens("legal", "train", tokenizer)],
        "small by seqio": [ids.tolist() for ids in task_tokens("small", "train", tokenizer)],
        "small texts": list(documents(small, "train")),
        "their lines": [ids.tolist() for ids in task_tokens("their_lines", "train", tokenizer)],
        "plain vocabulary": [ids.tolist() for ids in task_tokens("plain", "train", tokenizer)],
        "vocabulary": [vocabulary.vocab_size, vocabulary.eos_id, vocabulary.pad_id],
        "a mixture is seqio's too": len(
            list(
                seqio.get_mixture_or_task("blend")
                .get_dataset({"targets": 64}, "train", shuffle=False, num_epochs=None)
                .take(10)
            )
        ),
        "blend": refused(corpus, "theirs"),
        "misspelt": refused(corpus, "thiers"),
        "no module": refused(dataclasses.replace(corpus, mixture_or_task_module="broken"), "x"),
        **{
            name: refused(corpus, name)
            for name in ("two_features", "extra_ids", "bytes", "no_train", "other_vocabulary")
        },
        "no such field": "",
        "no such split": "",
        "ids out of range": "",
    }
    for check, change in (
        ("no such field", {"text_field": "txt"}),
        ("no such split", {"splits": {"train": "tran"}}),
    ):
        try:
            list(documents(dataclasses.replace(small, **change), "train"))
        except UsageError as error:
            found[check] = str(error)
    try:
        list(task_tokens("wild", "train", tokenizer))
    except Fault as error:
        found["ids out of range"] = str(error)
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
