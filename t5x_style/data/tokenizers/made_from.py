"""The JSON beside a vocabulary that was made here: what it was made from, and which file it is of.

`legal.model` has `legal.model.made_from.json`. A `tokenizer.json` is a vocabulary of its own, of
another program, so no name is derived from `legal` alone.
"""

import contextlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from t5x_style.errors import UsageError
from t5x_style.files import file_digest, owned, write_whole

SUFFIX = ".made_from.json"


def json_file(file: pathlib.Path) -> pathlib.Path:
    """The JSON beside the vocabulary `file`."""
    return file.with_name(file.name + SUFFIX)


def read(file: pathlib.Path) -> dict[str, Any] | None:
    """The JSON beside the vocabulary `file`; {} where there is none, None where it is broken."""
    beside = json_file(file)
    if not beside.is_file():
        return {}
    try:
        known = json.loads(beside.read_bytes())
    except ValueError:
        return None
    return known if isinstance(known, dict) and isinstance(known.get("model"), str) else None


def check_writable(file: pathlib.Path) -> None:
    """Check that there is no vocabulary at `file`, or one that was made here.

    Beside a broken JSON that cannot be known: `write` compares.

    Raises:
      UsageError: the file is there and was not made here, or has changed since.
    """
    known = read(file)
    if not file.exists() or known is None:
        return
    if not file.is_file() or file_digest(file) not in (known.get("model"), known.get("replaces")):
        raise UsageError(
            f"{file} is there and was not made here ({json_file(file).name} is not of this file): "
            f"name another file to write"
        )


def write(file: pathlib.Path, model: bytes, digest: str, plain: Mapping[str, Any]) -> None:
    """Writes the JSON, then the vocabulary.

    The JSON names the digests of both the new vocabulary and the one before. So after a kill
    between the two, the one that is there is still known as made here.

    Args:
      file: the vocabulary.
      model: its content.
      digest: SHA-256 of `model`.
      plain: what it was made from.

    Raises:
      UsageError: the JSON that was there is broken, and the vocabulary beside it is another one.
    """
    check_writable(file)
    before = file_digest(file) if file.is_file() else None
    if read(file) is None and before not in (None, digest):
        raise UsageError(
            f"{json_file(file)} is broken, and {file} is not what these arguments and texts make: "
            f"name another file to write, or remove both"
        )
    entries = {**plain, "model": digest, "replaces": before}
    write_whole(json_file(file), json.dumps(entries, indent=1) + "\n")
    write_whole(file, model)


def lock(file: pathlib.Path) -> contextlib.AbstractContextManager[None]:
    """Being the one process that makes a vocabulary; raises as `files.owned`."""
    return owned(file.with_name(f".lock-{file.name}"), f"the vocabulary {file}")
