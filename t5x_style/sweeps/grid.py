"""The trials of a grid over gin macros and bindings, and the names of their run directories."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from t5x_style.errors import UsageError

# File systems allow names of 255 bytes. A name has to stay readable, and `.log` is appended.
LONGEST_NAME = 120


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point of a grid.

    Attributes:
      name: of its run directory, such as `LEARNING_RATE=0.001,d_model=64`.
      values: macro or binding -> value.
    """

    name: str
    values: Mapping[str, Any]


def grid_trials(grid: Mapping[str, Sequence[Any]]) -> list[Trial]:
    """Every combination of the values of a grid; the last name varies fastest.

    Args:
      grid: a macro (`LEARNING_RATE`) or a binding (`Architecture.d_model`) -> its values. A value
        is one that gin can write: a number, a string, a list; a reference is written as a string,
        '@adamw()' or '%OTHER'.

    Raises:
      UsageError: an empty grid, a name without values, a repeated value, or an object.
    """
    if not grid:
        raise UsageError("sweep.grid is empty: {'LEARNING_RATE': [1e-3, 2e-3]} makes two trials")
    for name, values in grid.items():
        if name == "MODEL_DIR":
            raise UsageError("sweep.grid sets MODEL_DIR, which is a folder of sweep_dir per trial")
        if isinstance(values, str) or not isinstance(values, Sequence) or not values:
            raise UsageError(f"sweep.grid[{name!r}] = {values!r} is not a list of values")
        texts = [gin_text(value, f"sweep.grid[{name!r}]") for value in values]
        if twice := next((text for text in texts if texts.count(text) > 1), None):
            raise UsageError(f"sweep.grid[{name!r}] has {twice} twice")
    labels = _labels(list(grid))
    trials = []
    for values in itertools.product(*grid.values()):
        point = dict(zip(grid, values, strict=True))
        trials.append(Trial(_name({labels[name]: point[name] for name in grid}), point))
    return trials


def gin_flag(name: str, value: Any) -> str:
    """The command-line flag that sets a macro or binding: `--gin.LEARNING_RATE=0.001`."""
    return f"--gin.{name}={gin_text(value, name)}"


def gin_text(value: Any, where: str) -> str:
    """A value as gin text; a string that begins with @ or % is a reference.

    Raises:
      UsageError: gin cannot write the value.
    """
    if isinstance(value, str) and value[:1] in ("@", "%"):
        return value
    if value is None or isinstance(value, str | bool | int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        parts = [gin_text(item, where) for item in value]
        return f"[{', '.join(parts)}]"
    if isinstance(value, Mapping):
        pairs = [f"{gin_text(k, where)}: {gin_text(v, where)}" for k, v in value.items()]
        return f"{{{', '.join(pairs)}}}"
    raise UsageError(
        f"{where} holds {value!r}, which cannot be written on a command line: write a reference as"
        " a string, such as '@adamw()'"
    )


def _labels(names: Sequence[str]) -> dict[str, str]:
    """Name -> its short form: the parameter alone, unless two names have the same one."""
    last = [name.rsplit(".", 1)[-1] for name in names]
    return {
        name: label if last.count(label) == 1 else name
        for name, label in zip(names, last, strict=True)
    }


def _name(values: Mapping[str, Any]) -> str:
    exact = ",".join(f"{label}={gin_text(value, label)}" for label, value in values.items())
    readable = re.sub(r"[^\w.=,+@%-]+", "-", exact.replace("'", ""))
    if len(readable) <= LONGEST_NAME and _is_unambiguous(values):
        return readable
    return f"{readable[: LONGEST_NAME - 9]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _is_unambiguous(values: Mapping[str, Any]) -> bool:
    """Whether different values always have different readable names."""
    return all(
        value is None
        or isinstance(value, bool | int | float)
        or (isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.-]*", value))
        for value in values.values()
    )
