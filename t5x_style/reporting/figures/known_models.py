"""Published models to compare a plan with, from known_models.json in this folder.

A model is listed if a paper or an official card gives both its parameters and its training tokens.
Where only the tokens of a family are given, `source` notes it.
"""

import dataclasses
import json
import math
import pathlib

from t5x_style.errors import UsageError, did_you_mean

_FILE = pathlib.Path(__file__).with_name("known_models.json")


@dataclasses.dataclass(frozen=True)
class KnownModel:
    """One model.

    Attributes:
      params: N, embedding included.
      tokens: D, every epoch counted.
      year: of publication.
      source: of both numbers.
    """

    name: str
    params: float
    tokens: float
    year: int
    source: str

    @property
    def flops(self) -> float:
        """6 N D, as the laws count. The training spent more."""
        # As a float: an integer of this size does not fit numpy's integers.
        return 6.0 * self.params * self.tokens


def known_models() -> tuple[KnownModel, ...]:
    """The models of the data file, the least FLOPs first."""
    return parse_models(_FILE.read_text(encoding="utf-8"), where=_FILE.name)


def parse_models(text: str, *, where: str) -> tuple[KnownModel, ...]:
    """Models from JSON: a list of objects with the attributes of KnownModel.

    Args:
      text: the JSON.
      where: the file's name in messages.

    Returns:
      The models, the least FLOPs first.

    Raises:
      UsageError: text that is no such list, a missing or unknown key, a value of another type, or
        a name that is listed twice.
    """
    try:
        entries = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}:{error.lineno}: not JSON: {error.msg}") from error
    if not isinstance(entries, list):
        raise UsageError(f"{where}: must be a list of models, not {type(entries).__name__}")
    models = [_model(entry, f"{where}, model {place}") for place, entry in enumerate(entries, 1)]
    names = [model.name for model in models]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{where}: {name!r} is listed {names.count(name)} times")
    return tuple(sorted(models, key=lambda model: (model.flops, model.name)))


def _model(entry: object, where: str) -> KnownModel:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: must be an object, not {entry!r}")
    keys = [field.name for field in dataclasses.fields(KnownModel)]
    for key in entry:
        if key not in keys:
            raise UsageError(f"{where}: unknown key {key!r}{did_you_mean(key, keys)}")
    for key in keys:
        if key not in entry:
            raise UsageError(f"{where}: has no {key!r}")
    for key in ("name", "source"):
        if not (isinstance(entry[key], str) and entry[key].strip()):
            raise UsageError(f"{where}: {key} = {entry[key]!r}: must be text")
    for key in ("params", "tokens"):
        value = entry[key]
        # A boolean is an int to Python.
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 < value < math.inf):
            raise UsageError(f"{where}: {key} = {value!r}: must be a number above 0")
    if type(entry["year"]) is not int:
        raise UsageError(f"{where}: year = {entry['year']!r}: must be a whole number")
    return KnownModel(**entry)
