"""Where text comes from, as it is declared in gin."""

import dataclasses
import functools
import glob
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import gin

from t5x_style.data.formats.array_record import ArrayRecord, ArrayRecordExample
from t5x_style.data.formats.files import PACKAGE_PREFIX, content_digests, module_file
from t5x_style.data.formats.format import MAX_RECORD_BYTES, Format, Split
from t5x_style.data.formats.plain_files import Jsonl, Text
from t5x_style.data.formats.tables import HuggingFace, Parquet
from t5x_style.data.formats.tfds import Tfds
from t5x_style.data.sources import filters
from t5x_style.data.sources.dates import first_day, is_bound
from t5x_style.data.sources.filters import Filter
from t5x_style.errors import UsageError, did_you_mean, one_of
from t5x_style.files import LocalPath, absolute
from t5x_style.plugins import load
from t5x_style.ranges import PositiveInt, Range, check_ranges

FORMATS: Mapping[str, Format] = {
    "jsonl": Jsonl(),
    "text": Text(),
    "parquet": Parquet(),
    "hf": HuggingFace(),
    "array_record": ArrayRecord(),
    "array_record_example": ArrayRecordExample(),
    "tfds": Tfds(),
}
# The options that some formats do not read.
FORMAT_OPTIONS = ("id_field", "date_field", "license_field", "tfds_name", "tfds_data_dir")
SPLITS = ("train", "validation")
ON_BAD_RECORD = ("refuse", "skip")
UNDATED = ("refuse", "train")


def absolute_files(where: str, others: Mapping[str, Any]) -> str:
    """`files.absolute` of a split's files. An embedded corpus and a split of TFDS are no paths."""
    reader = FORMATS.get(others.get("format", Source.format))
    if where.startswith(PACKAGE_PREFIX) or (reader and reader.where_selects):
        return where
    # A format of the user's own may read anything.
    return absolute(where, others) if reader or glob.glob(where, recursive=True) else where


LocalFiles = Annotated[str, absolute_files]


@gin.configurable
@dataclasses.dataclass(frozen=True)
class Source:
    """Documents of one kind: one task of a blend, counted and evaluated separately.

    Attributes:
      name: letters, digits, `_`, `-` and `.`; metrics carry it.
      splits: {'train': WHERE, 'validation': WHERE}; the second may be left out, and the first of a
        source with a share of 0, which is evaluated alone. WHERE is a glob of files; or a folder,
        for all files of the format in it; or `package:NAME` for an embedded corpus; or the folder
        of a split that Hugging Face's `save_to_disk` wrote; or a list of these. With TFDS it is a
        split of the dataset, such as 'train[:99%]'.
      format: 'jsonl' (one JSON object a line) or 'text' (one document a file), both plain, .gz or
        .zst; 'parquet'; 'hf' (a Hugging Face dataset on disk); 'array_record' (each record a JSON
        object) or 'array_record_example' (each a tf.train.Example); 'tfds'; or 'module.NAME', a
        class or an instance that is a `Format`. The module is found on the Python path. The content
        of its file is part of the fingerprint of a store.
      text_field: the field of a record that holds the text. 'doc.text' is the field 'text' of the
        object 'doc', unless a field has that very name. So it is for the other fields.
      id_field: the field that names a record, in messages and in the store; None: file and line
        alone.
      date_field, license_field: fields that go into the store with each document.
      dates: (from, before), each 'YYYY', 'YYYY-MM', 'YYYY-MM-DD' or None: documents of other dates
        are dropped.
      validation_from: a date. Documents of the 'train' files from that date on are the validation
        split, those before it the train split.
      validation_share: a share of the documents, above 0 and below 1. So many of the 'train' files'
        documents are the validation split, chosen by a hash of the text. So a text that is there
        twice is in one split, and sources with the same share and seed agree on every text.
      validation_seed: of that choice.
      undated: where a source is split by date, 'refuse' (a document without a date is a bad record)
        or 'train' (it is in the train split, and in no validation split).
      tfds_name: 'name:1.0.0' or 'name/config:1.0.0', with format 'tfds'.
      tfds_data_dir: the folder in which that dataset was prepared.
      on_bad_record: 'refuse' (stop, naming file and line) or 'skip' (count, and continue).
      max_record_bytes: a longer line, file of text, or text of a row is a bad record. It is read
        over without being held, so that no file can exhaust the memory.
      filters: applied to each text in order: @Length(), @Language() or @Rewrite(). The documents
        that they drop are counted in the store.
    """

    name: str
    splits: Mapping[str, LocalFiles | Sequence[LocalFiles]]
    format: str = "jsonl"
    text_field: str = "text"
    id_field: str | None = None
    date_field: str | None = None
    license_field: str | None = None
    dates: tuple[str | None, str | None] = (None, None)
    validation_from: str | None = None
    validation_share: Annotated[float, Range(above=0, below=1)] | None = None
    validation_seed: int = 0
    undated: str = "refuse"
    tfds_name: str | None = None
    tfds_data_dir: LocalPath | None = None
    on_bad_record: str = "refuse"
    max_record_bytes: PositiveInt = MAX_RECORD_BYTES
    filters: Sequence[Filter] = ()

    def __post_init__(self):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise UsageError(f"Source.name = {self.name!r}: letters, digits, '_', '-' and '.' only")
        one_of(f"Source.on_bad_record of {self.name!r}", self.on_bad_record, ON_BAD_RECORD)
        check_ranges(self)
        for split, where in self.splits.items():
            one_of(f"Source.splits of {self.name!r}", split, SPLITS)
            places = where if isinstance(where, list | tuple) else [where]
            if not places or not all(isinstance(place, str) and place for place in places):
                raise UsageError(
                    f"Source.splits[{split!r}] of {self.name!r} = {where!r}: write a glob, a "
                    f"folder, or a list of them"
                )
        if not self.splits:
            raise UsageError(f"Source.splits of {self.name!r} names no split")
        for option in FORMAT_OPTIONS:
            if getattr(self, option) and option not in self.reader.source_options:
                readers = [
                    name for name, reader in FORMATS.items() if option in reader.source_options
                ]
                raise UsageError(
                    f"Source.{option} of {self.name!r}: format {self.format!r} does not read it; "
                    f"{', '.join(readers)} do"
                )
        self._check_dates()
        self._check_division()
        for split in self.splits:
            self.reader.check(self.split(split))

    def _check_dates(self) -> None:
        if len(self.dates) != 2:
            raise UsageError(
                f"Source.dates of {self.name!r} = {self.dates!r}: write (FROM, BEFORE), None for "
                f"no bound"
            )
        for bound in self.date_bounds():
            if not is_bound(bound):
                raise UsageError(
                    f"Source {self.name!r}: {bound!r} is no date: write YYYY, YYYY-MM or YYYY-MM-DD"
                )
        after, before = self.dates
        if after is not None and before is not None and first_day(after) >= first_day(before):
            raise UsageError(
                f"Source.dates of {self.name!r} = {self.dates!r}: no day is from {after} on and "
                f"before {before}"
            )
        if self.needs_dates() and self.date_field is None:
            raise UsageError(f"Source {self.name!r} is split by date: set date_field")
        one_of(f"Source.undated of {self.name!r}", self.undated, UNDATED)
        if self.undated != "refuse" and not self.needs_dates():
            raise UsageError(
                f"Source.undated of {self.name!r} = {self.undated!r}: no date is needed without "
                f"dates or validation_from"
            )

    def _check_division(self) -> None:
        share = self.validation_share
        if share is None and self.validation_seed:
            raise UsageError(
                f"Source.validation_seed of {self.name!r} = {self.validation_seed}: it is for a "
                f"source with a validation_share"
            )
        ways = {
            "files for 'validation'": "validation" in self.splits,
            "validation_from": self.validation_from is not None,
            "validation_share": share is not None,
        }
        asked = [way for way, is_asked in ways.items() if is_asked]
        if self.is_divided and "train" not in self.splits:
            raise UsageError(f"Source {self.name!r}: {asked[-1]} divides files of 'train'")
        if len(asked) > 1:
            raise UsageError(f"Source {self.name!r} has {' and '.join(asked)}: which of them?")

    @property
    def is_divided(self) -> bool:
        """Whether the files of 'train' hold the validation split as well."""
        return self.validation_from is not None or self.validation_share is not None

    def date_bounds(self) -> list[str]:
        """The dates at which the source is cut."""
        return self._date_bounds

    @functools.cached_property
    def _date_bounds(self) -> list[str]:
        # It is asked for each document.
        return [bound for bound in (*self.dates, self.validation_from) if bound is not None]

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
        """'train' and 'validation', or the one of them that there is."""
        if self.is_divided:
            return SPLITS
        return tuple(split for split in SPLITS if split in self.splits)

    def reads_train_files(self, split: str) -> bool:
        """Whether a split is cut out of the files of 'train': a second reading of them."""
        return split != "train" and self.is_divided

    @functools.cached_property
    def reader(self) -> Format:
        """The format.

        Raises:
          UsageError: there is no such format, or its module cannot be imported.
        """
        if self.format in FORMATS:
            return FORMATS[self.format]
        where = f"Source.format of {self.name!r}"
        if "." not in self.format:
            raise UsageError(
                f"{where}: {self.format!r} is not one of {', '.join(FORMATS)}, or the dotted path "
                f"of a class, 'module.NAME'{did_you_mean(self.format, FORMATS)}"
            )
        found = load(f"{where} = {self.format!r}", self.format, object)
        reader = found() if isinstance(found, type) else found
        if not isinstance(reader, Format):
            raise UsageError(
                f"{where} = {self.format!r} is no Format: make it a subclass of "
                f"t5x_style.data.FileFormat with a method `records`"
            )
        return reader

    def split(self, name: str) -> Split:
        """A split as the format reads it."""
        files_of = "train" if self.reads_train_files(name) else name
        named = (self.text_field, self.id_field, self.date_field, self.license_field)
        where = self.splits[files_of]
        return Split(
            where=where if isinstance(where, str) else tuple(where),
            binding=f"Source.splits[{files_of!r}] of {self.name!r}",
            fields=tuple(dict.fromkeys(field for field in named if field)),
            tfds_name=self.tfds_name,
            tfds_data_dir=self.tfds_data_dir,
            max_record_bytes=self.max_record_bytes,
        )

    def files(self, split: str) -> list[pathlib.Path]:
        """The files of a split, in order.

        Raises:
          UsageError: there is none.
        """
        return self.reader.files(self.split(split))

    def made_from(self, split: str, cache_dir: pathlib.Path, *, remember: bool) -> dict[str, Any]:
        """All that the texts of a split depend on, as plain values: for fingerprints.

        The fields that only name a document are not part of it.

        Args:
          split: 'train' or 'validation'.
          cache_dir, remember: as in `content_digests`.
        """
        files = self.files(split)
        parts: dict[str, Any] = {
            "format": self.format,
            "text_field": self.text_field,
            "on_bad_record": self.on_bad_record,
            "where": self.split(split).where if self.reader.where_selects else None,
            "files": content_digests(files, cache_dir, remember=remember),
        }
        if self.on_bad_record == "skip":
            # Where bad records are refused, no store can depend on the limit.
            parts["max_record_bytes"] = self.max_record_bytes
        if self.format not in FORMATS:
            module = module_file(self.format.rpartition(".")[0], "the module of Source.format")
            parts["format_file"] = content_digests([module], cache_dir, remember=remember)[0]
        for name in ("date_field", "license_field", "validation_from"):
            if getattr(self, name) is not None:
                parts[name] = getattr(self, name)
        if self.validation_share is not None:
            parts["validation_share"] = [self.validation_share, self.validation_seed]
        if self.undated != "refuse":
            parts["undated"] = self.undated
        if any(self.dates):
            parts["dates"] = list(self.dates)
        if self.filters:
            parts["filters"] = filters.made_from(self.filters, cache_dir, remember=remember)
        return parts
