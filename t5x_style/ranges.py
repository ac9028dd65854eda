"""The numbers that a field may have, declared in its annotation and checked from there; seeds.

    patience_tokens: PositiveInt
    top_p: Annotated[float, Range(above=0, most=1)]

gin's values are checked before a verb is called (`config/types.py`), with file and line. A
dataclass calls `check_ranges` in its `__post_init__`, so plain Python meets the same check.
"""

import dataclasses
import functools
import hashlib
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any

from t5x_style.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of finite numbers.

    Attributes:
      least, most: bounds that are allowed themselves.
      above, below: bounds that are not.
      hint: what a number outside of it may have been meant for.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None
    hint: str = ""

    def __str__(self) -> str:
        """The interval in words: `1 or more`, `above 0 and at most 1`."""
        bounds = (
            ("{:g} or more", self.least),
            ("above {:g}", self.above),
            ("at most {:g}", self.most),
            ("below {:g}", self.below),
        )
        words = [text.format(bound) for text, bound in bounds if bound is not None]
        return " and ".join(words) or "finite"

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def problem(self, value: float) -> str | None:
        """What is wrong with `value`, after its name: `must be 1 or more`; None if nothing is."""
        return None if value in self else f"must be {self}{self.hint}"


PositiveInt = Annotated[int, Range(least=1)]
# Of these 0 is none, or switches off.
NonNegativeInt = Annotated[int, Range(least=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(least=0)]
# A share of a whole.
Share = Annotated[float, Range(least=0, most=1)]
Mfu = Annotated[float, Range(above=0, most=1, hint=": a share of the peak, so 40 % is 0.4")]
EvalTokens = Annotated[int, Range(least=1, hint=" (None evaluates all of them)")]
EvalPeriod = Annotated[int, Range(least=1, hint=" (train.eval_tokens = 0 switches evaluation off)")]


def range_problem(value: Any, annotation: Any) -> str | None:
    """What is wrong with the numbers in a value, by the ranges in its annotation.

    Args:
      value: a number; None; or lists and mappings, which are looked through.
      annotation: a type, with ranges as in `PositiveInt | None` or `Mapping[str, PositiveFloat]`.

    Returns:
      Words to follow the value; None if every number lies in its range. A value of another kind
      than the annotation's is no concern of this function.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        ranges = [part for part in arguments[1:] if isinstance(part, Range)]
        number = isinstance(value, int | float) and not isinstance(value, bool)
        problems = [limits.problem(value) for limits in ranges if number]
    elif origin in (typing.Union, types.UnionType):
        problems = [range_problem(value, alternative) for alternative in arguments]
    elif isinstance(value, Mapping) and isinstance(origin, type) and issubclass(origin, Mapping):
        problems = [
            f"has an entry {key!r}: {item!r} that {problem}"
            for key, item in value.items()
            if (problem := range_problem(item, arguments[-1]))
        ]
    elif isinstance(value, list | tuple) and arguments and origin is not tuple:
        problems = [
            f"has an element {index}, {item!r}, that {problem}"
            for index, item in enumerate(value)
            if (problem := range_problem(item, arguments[0]))
        ]
    else:
        problems = []
    return next((problem for problem in problems if problem), None)


def ranges_of(annotation: Any) -> list[Range]:
    """The ranges in an annotation, in order, those of the entries of containers too."""
    parts = typing.get_args(annotation)
    return [part for part in parts if isinstance(part, Range)] + [
        found for part in parts for found in ranges_of(part)
    ]


def check_ranges(holder: Any, name: str | None = None) -> None:
    """Check every field of a dataclass whose annotation has a range.

    Args:
      holder: the object, in its `__post_init__`.
      name: what a message calls it; by default that of its class.

    Raises:
      UsageError: a number lies outside, or is not finite; names the field, the value and the range.
    """
    for field, annotation, only in _ranged_fields(holder.__class__):
        value = getattr(holder, field)
        # The usual cases first: a search of meshes makes thousands of topologies.
        if value is None or (only is not None and type(value) in (int, float) and value in only):
            continue
        if (problem := range_problem(value, annotation)) is not None:
            raise UsageError(f"{name or type(holder).__name__}.{field} = {value!r}: {problem}")


@functools.cache
def _ranged_fields(kind: type) -> list[tuple[str, Any, Range | None]]:
    """(name, annotation, its range if it has just one) of the fields of a dataclass with ranges."""
    annotations = typing.get_type_hints(kind, include_extras=True)
    names = [field.name for field in dataclasses.fields(kind) if field.init]
    found = {name: ranges_of(annotations[name]) for name in names}
    return [
        (name, annotations[name], ranges[0] if len(ranges) == 1 else None)
        for name, ranges in found.items()
        if ranges
    ]


def folded_seed(seed: int) -> int:
    """A number from 0 to 2^63 - 1 for generators that take no other; any integer may be a seed.

    Seeds from 0 to 2^32 - 1 stay as they are. Others become 63 bits of their digest, so that two
    seeds share their numbers by chance alone.
    """
    if 0 <= seed < 2**32:
        return seed
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:8], "little") >> 1
