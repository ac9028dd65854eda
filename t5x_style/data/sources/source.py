"""Where text comes from, as it is declared in gin."""

import dataclasses
import datetime
import pathlib
import re
from collections.abc import Mapping, Sequence

import gin

from t5x_style.data.sources.files import matching_files
from t5x_style.data.sources.filters import Filter
from t5x_style.data.sources.tables import hf_files
from t5x_style.errors import UsageError, did_you_mean

FORMATS = ("jsonl", "text", "parquet", "hf", "array_record", "array_record_example", "tfds")
# Whose documents have nothing but a text.
PLAIN_FORMATS = ("text", "tfds")
# Whose records are JSON.
JSON_FORMATS = ("jsonl", "array_record")
SPLITS = ("train", "validation")
ON_BAD_RECORD = ("refuse", "skip")


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Source:
    """Documents of one kind: one task of a blend, counted and evaluated by itself.

    Attributes:
      name: letters, digits, `_`, `-` and `.`; metrics carry it.
      splits: {'train': WHERE, 'validation': WHERE}; the second may be left out. WHERE is a glob of
        files; or `package:NAME` for an embedded corpus; or the folder of a split that Hugging
        Face's `save_to_disk` wrote; or a split of the TFDS dataset, such as 'train[:99%]'.
      format: 'jsonl' (one JSON object a line) or 'text' (one document a file), both plain, .gz or
        .zst; 'parquet'; 'hf' (a Hugging Face dataset on disk); 'array_record' (each record a JSON
        object) or 'array_record_example' (each a tf.train.Example); or 'tfds'.
      text_field: the field of a record that holds the text.
      id_field: the field that names a record, in messages about it and in the store; None: file
        and line alone.
      date_field, license_field: fields that go into the store with each document.
      dates: (from, before), each 'YYYY', 'YYYY-MM', 'YYYY-MM-DD' or None: documents of other dates
        are dropped.
      validation_from: such a date: documents of the 'train' files from it on are the validation
        split, those before it the train split.
      tfds_name: 'name:1.0.0' or 'name/config:1.0.0', with format 'tfds'.
      tfds_data_dir: the folder in which that dataset was prepared.
      on_bad_record: 'refuse' (stop, naming file and line) or 'skip' (count, and go on).
      filters: what each text goes through in order, @Length() or @Rewrite(); what they drop is
        counted in the store.
    """

    name: str
    splits: Mapping[str, str]
    format: str = "jsonl"
    text_field: str = "text"
    id_field: str | None = None
    date_field: str | None = None
    license_field: str | None = None
    dates: tuple[str | None, str | None] = (None, None)
    validation_from: str | None = None
    tfds_name: str | None = None
    tfds_data_dir: str | None = None
    on_bad_record: str = "refuse"
    filters: Sequence[Filter] = ()

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise UsageError(f"Source.name = {self.name!r}: letters, digits, '_', '-' and '.' only")
        self._one_of("format", self.format, FORMATS)
        self._one_of("on_bad_record", self.on_bad_record, ON_BAD_RECORD)
        for split in self.splits:
            self._one_of("splits", split, SPLITS)
        if "train" not in self.splits:
            raise UsageError(f"Source.splits of {self.name!r} has no 'train'")
        self._check_metadata()
        if self.format == "tfds":
            if not self.tfds_name or not self.tfds_data_dir:
                raise UsageError(
                    f"Source {self.name!r} has format 'tfds': set tfds_name and tfds_data_dir"
                )
            self.tfds_folder()
        elif self.tfds_name or self.tfds_data_dir:
            raise UsageError(f"Source {self.name!r} names a TFDS dataset: set format = 'tfds'")

    def _one_of(self, attribute: str, value: str, allowed: tuple[str, ...]) -> None:
        if value not in allowed:
            raise UsageError(
                f"Source.{attribute} of {self.name!r}: {value!r} is not one of "
                f"{', '.join(allowed)}{did_you_mean(str(value), allowed)}"
            )

    def _check_metadata(self) -> None:
        for attribute in ("id_field", "date_field", "license_field"):
            if getattr(self, attribute) and self.format in PLAIN_FORMATS:
                raise UsageError(
                    f"Source.{attribute} of {self.name!r}: documents of format {self.format!r} "
                    f"have no fields"
                )
        if len(self.dates) != 2:
            raise UsageError(
                f"Source.dates of {self.name!r} = {self.dates!r}: write (FROM, BEFORE), None for "
                f"no bound"
            )
        for bound in self.date_bounds():
            if not _is_date(bound):
                raise UsageError(
                    f"Source {self.name!r}: {bound!r} is no date: write YYYY, YYYY-MM or YYYY-MM-DD"
                )
        if self.needs_dates() and self.date_field is None:
            raise UsageError(f"Source {self.name!r} is split by date: set date_field")
        if self.validation_from is not None and "validation" in self.splits:
            raise UsageError(
                f"Source {self.name!r} has files for 'validation' and validation_from: "
                f"which of them?"
            )

    def date_bounds(self) -> list[str]:
        """The dates at which the source is cut."""
        return [each for each in (*self.dates, self.validation_from) if each is not None]

    def needs_dates(self) -> bool:
        """Whether each document must have a date."""
        return bool(self.date_bounds())

    def date_window(self, split: str) -> tuple[str | None, str | None]:
        """(from, before) of the documents of a split."""
        after, before = self.dates
        if self.validation_from is None:
            return after, before
        if split == "validation":
            return max(after or "", self.validation_from), before
        return after, min(before or self.validation_from, self.validation_from)

    def split_names(self) -> tuple[str, ...]:
        """'train', and 'validation' if there is one."""
        if "validation" in self.splits or self.validation_from is not None:
            return SPLITS
        return SPLITS[:1]

    def where(self, split: str) -> str:
        """Where the documents of a split lie."""
        return self.splits["train" if self.validation_from is not None else split]

    def files(self, split: str) -> list[pathlib.Path]:
        """The files of a split, sorted.

        Raises:
          UsageError: there is none.
        """
        if self.format == "tfds":
            return sorted(path for path in self.tfds_folder().iterdir() if path.is_file())
        what = f"Source.splits[{split!r}] of {self.name!r}"
        if self.format == "hf":
            return hf_files(pathlib.Path(self.where(split)), what)
        return matching_files(self.where(split), what)

    def fields(self) -> list[str]:
        """The fields of a record that are read."""
        named = (self.text_field, self.id_field, self.date_field, self.license_field)
        return list(dict.fromkeys(field for field in named if field))

    def tfds_folder(self) -> pathlib.Path:
        """Where the prepared dataset lies.

        Raises:
          UsageError: no version in the name, or nothing prepared there.
        """
        name, _, version = str(self.tfds_name).partition(":")
        if not version:
            raise UsageError(
                f"Source.tfds_name = {self.tfds_name!r} of {self.name!r} names no version: "
                f"write '{name}:1.0.0'"
            )
        folder = pathlib.Path(str(self.tfds_data_dir)) / name / version
        if not (folder / "dataset_info.json").is_file():
            raise UsageError(
                f"Source {self.name!r}: no prepared TFDS dataset in {str(folder)!r} "
                f"(tfds_data_dir / tfds_name); nothing is downloaded here"
            )
        return folder


def _is_date(text: str) -> bool:
    try:
        datetime.date.fromisoformat(text + "2000-01-01"[len(text) :])
    except (TypeError, ValueError):
        return False
    return len(text) in (4, 7, 10)
