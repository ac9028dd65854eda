"""The format 'tfds': a prepared TensorFlow dataset.

TensorFlow is imported when records are read: in the process that builds stores.
"""

import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from t5x_style.data.formats.format import OnRead, Part, Record, Split
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import local_path


class Tfds:
    """A split, or a slice of one, of a dataset that TFDS has prepared in a folder. One part."""

    source_options: Sequence[str] = ("text_field", "tfds_name", "tfds_data_dir")
    where_selects = True

    def check(self, split: Split) -> None:
        """Refuses a dataset that is not named, or not prepared, and several splits."""
        if not isinstance(split.where, str):
            raise UsageError(
                f"{split.binding}: a split of TFDS is one expression: write "
                f"{'+'.join(split.where)!r}"
            )
        _folder(split)

    def files(self, split: Split) -> list[pathlib.Path]:
        """All files of the dataset, of whatever split."""
        return sorted(path for path in _folder(split).iterdir() if path.is_file())

    def parts(self, split: Split, part_bytes: int) -> list[Part]:
        """The whole split."""
        size = sum(file.stat().st_size for file in self.files(split))
        return [Part(str(_folder(split)), 0, None, size)]

    def records(self, split: Split, part: Part, on_read: OnRead) -> Iterator[Record]:
        """The text of each example.

        Raises:
          UsageError: no such split or field.
        """
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(part.path)
        (field,) = split.fields
        known = list(builder.info.features)
        if field not in known:
            raise UsageError(
                f"{split.binding}: the TFDS dataset {split.tfds_name} has no field {field!r}; it "
                f"has {', '.join(known)}{did_you_mean(field, known)}"
            )
        try:
            dataset = builder.as_dataset(
                split=split.where,
                shuffle_files=False,
                decoders=tfds.decode.PartialDecoding({field: True}),
            )
        except ValueError as error:
            raise UsageError(f"{split.binding} = {split.where!r}: {error}") from None
        for number, example in enumerate(dataset.as_numpy_iterator()):
            yield Record(f"{split.tfds_name} {split.where} example {number}", example[field])
        on_read(part.size)

    def fields(self, record: Record) -> Mapping[str, Any] | bytes:
        """The text."""
        return record.data


def _folder(split: Split) -> pathlib.Path:
    """The folder of the prepared dataset.

    Raises:
      UsageError: no name, no version in the name, or nothing prepared there.
    """
    if not split.tfds_name or not split.tfds_data_dir:
        raise UsageError(f"{split.binding} has format 'tfds': set tfds_name and tfds_data_dir")
    name, _, version = split.tfds_name.partition(":")
    if not version:
        raise UsageError(
            f"Source.tfds_name = {split.tfds_name!r} names no version: write '{name}:1.0.0'"
        )
    folder = local_path(split.tfds_data_dir, "Source.tfds_data_dir") / name / version
    if not (folder / "dataset_info.json").is_file():
        raise UsageError(
            f"{split.binding}: no prepared TFDS dataset in {str(folder)!r} "
            f"(tfds_data_dir / tfds_name); nothing is downloaded"
        )
    return folder
