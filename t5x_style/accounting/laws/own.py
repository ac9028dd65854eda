"""A user's own law in a file: L(N, D) = E + A / N^alpha + B / D^beta with other coefficients.

The absolute loss of a law belongs to its corpus and vocabulary, so a law fitted to one's own runs
predicts the next run better than any paper's. `t5x-style fit` writes such
a file; one may also be written by hand. It holds one JSON object. Every key but `fit` is required:

    name                      the law's name in tables and metrics: a letter, then letters, digits,
                              '_', '-' or '.'; not the name of a law that ships
    irreducible               E, nats per token
    params_scale              A
    tokens_scale              B
    params_exponent           alpha
    tokens_exponent           beta
    source                    whose runs, in words
    fitted_flops              [least, greatest] C = 6 N D of the runs, or null
    params_exponent_interval  [10 %, 90 %] of a = beta / (alpha + beta), where N ~ C^a, or null
    fit                       how good the fit was; for people, never read
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping
from typing import Any

from t5x_style.accounting.laws.chinchilla import (
    APPROACH_3,
    HOFFMANN_PRINTED,
    LAWS,
    ParametricLaw,
)
from t5x_style.accounting.laws.kaplan import KAPLAN
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import MARK, local_path, read_text, write_whole

_TAKEN = (*LAWS, APPROACH_3.name, HOFFMANN_PRINTED.name, KAPLAN.name)
_COEFFICIENTS = (
    "irreducible",
    "params_scale",
    "tokens_scale",
    "params_exponent",
    "tokens_exponent",
)
_RANGES = ("fitted_flops", "params_exponent_interval")
_KEYS = ("name", *_COEFFICIENTS, "source", *_RANGES)
_FIT = "fit"


def write_law(
    path: str | os.PathLike, law: ParametricLaw, fit: Mapping[str, object] | None = None
) -> None:
    """Writes a law that read_law reads.

    Args:
      path: a missing folder is made; an existing file is replaced.
      law: under a name of its own.
      fit: JSON values that describe how good the fit was. They stand beside `made`, the mark of
        the files that t5x-style may replace.

    Raises:
      UsageError: the name is refused (see check_law_name), or the file cannot be written.
    """
    path = local_path(path, "the law's file")
    check_law_name(law.name, f"{path}: name")
    content = dataclasses.asdict(law) | {_FIT: {"made": MARK, **(fit or {})}}
    try:
        write_whole(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error


def read_law(path: str | os.PathLike) -> ParametricLaw:
    """Reads a user's own law.

    Raises:
      UsageError: no such file, no JSON object, an unknown or missing key, a value of the wrong
        kind, or the name of a law that ships; the message names the file.
    """
    path = local_path(path, "the law's file")
    content = _object(path)
    for key in content:
        if key not in (*_KEYS, _FIT):
            raise UsageError(f"{path}: {key!r} is no key of a law{did_you_mean(key, _KEYS)}")
    if missing := [key for key in _KEYS if key not in content]:
        raise UsageError(f"{path}: {', '.join(missing)} missing: a law needs {', '.join(_KEYS)}")
    for key in ("name", "source"):
        if not isinstance(content[key], str):
            raise UsageError(f"{path}: {key} = {content[key]!r} is not a string")
    check_law_name(content["name"], f"{path}: name")
    for key in _COEFFICIENTS:
        # A law that does not fall with N and with D has no optimum.
        if not (_finite(content[key]) and content[key] > 0):
            raise UsageError(f"{path}: {key} = {content[key]!r} is not a positive number")
    for key in _RANGES:
        if content[key] is not None and not _is_range(content[key]):
            raise UsageError(
                f"{path}: {key} = {content[key]!r} is not [least, greatest], two numbers, or null"
            )
        content[key] = content[key] and tuple(content[key])
    content.pop(_FIT, None)
    return ParametricLaw(**content)


def check_law_name(name: str, where: str) -> None:
    """Checks the name of a user's own law.

    Args:
      where: the flag, binding or file that gave the name, for the message.

    Raises:
      UsageError: a law of that name ships, or the name cannot be part of a metric's key.
    """
    if name in _TAKEN:
        raise UsageError(
            f"{where} = {name!r} is a law that ships ({', '.join(_TAKEN)}): take another name"
        )
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name, re.ASCII):
        raise UsageError(
            f"{where} = {name!r}: a law's name is a letter, then letters, digits, '_', '-' or '.'"
        )


def _object(path: pathlib.Path) -> dict:
    if not path.is_file():
        siblings = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UsageError(f"no law in {path}: no such file{did_you_mean(path.name, siblings)}")

    def unique(pairs: list[tuple[str, Any]]) -> dict:
        for key, count in collections.Counter(key for key, _ in pairs).items():
            if count > 1:
                raise UsageError(f"{path}: {key!r} is there twice: keep one of them")
        return dict(pairs)

    try:
        content = json.loads(read_text(path, str(path)), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a law is one JSON object, not a {type(content).__name__}")
    return content


def _finite(value: object) -> bool:
    # Compared, not converted: a whole number of JSON may be too large for a float.
    largest = sys.float_info.max
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and -largest <= value <= largest
    )


def _is_range(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 2
        and all(map(_finite, value))
        and value[0] <= value[1]
    )
