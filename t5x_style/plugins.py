"""A user's own objects: loaded by their dotted path, checked against their seam."""

import dataclasses
import importlib
from typing import TypeVar

from t5x_style.errors import UsageError, did_you_mean

T = TypeVar("T")


def load(where: str, path: str, kind: type[T]) -> T:
    """An object of a module, which is imported from the Python path.

    Args:
      where: the flag or binding and its value, for messages.
      path: dotted, 'my_team.GEGLU'.
      kind: the class of the object; `object` for any.

    Raises:
      UsageError: the module cannot be imported, or has no such attribute, or it is of another type.
    """
    module_name, _, name = path.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise UsageError(
            f"{where}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, name):
        raise UsageError(f"{where}: {module_name} has no {name!r}{did_you_mean(name, dir(module))}")
    found = getattr(module, name)
    if not isinstance(found, kind):
        raise UsageError(f"{where} must be a {kind.__module__}.{kind.__name__}, not {found!r}")
    return found


def check_fulfils(where: str, value: object, seam: type) -> None:
    """Refuse a value that lacks a member of a seam, in plain Python as under gin.

    Args:
      where: the binding, for the message.
      seam: a Protocol, such as Optimizer or Metric.

    Raises:
      UsageError: a member is missing, or the value is no dataclass and the seam asks for one.
    """
    missing = [name for name in vars(seam) if name[0] != "_" and not hasattr(value, name)]
    if "__dataclass_fields__" in seam.__annotations__ and not dataclasses.is_dataclass(value):
        missing.append("the fields of a dataclass")
    if missing:
        raise UsageError(
            f"{where} = {value!r} is no {seam.__name__}: it lacks {', '.join(missing)} "
            f"(see {seam.__module__})"
        )
