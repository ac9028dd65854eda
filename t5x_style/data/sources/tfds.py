"""Documents of a prepared TensorFlow dataset.

TensorFlow is imported when it is called: only the process that builds stores does.
"""

from collections.abc import Iterator

from t5x_style.data.sources.source import Source
from t5x_style.errors import UsageError, did_you_mean


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
