"""The command line after the verb, parsed: gin files, bindings and switches."""

import dataclasses
import difflib
import inspect
from collections.abc import Mapping, Sequence

from t5x_style.errors import UsageError
from t5x_style.files import local_path

GLOBAL_FLAGS = {
    "gin_file": ("FILE", "read a gin file; repeat it for more files, the last one wins"),
    "gin.NAME": ("VALUE", "set the macro NAME, or a parameter such as Architecture.layers"),
    "gin_search_paths": ("DIRS", "search these folders, separated by commas, for gin files too"),
    "dry_run": (None, "check everything, print the derived values, stop before any work"),
    "json": (None, "print one JSON object; all other output goes to standard error"),
    "help": (None, "print this text"),
}


@dataclasses.dataclass(frozen=True)
class FlagBinding:
    """One value set on the command line.

    Attributes:
      name: of the macro or parameter, as in gin: `MODEL_DIR`, `adamw.b1`, `scope/adamw.b1`.
      text: the value as typed.
      flag: the whole argument as typed, for messages.
    """

    name: str
    text: str
    flag: str


@dataclasses.dataclass(frozen=True)
class Flags:
    """The command line after the verb."""

    gin_files: tuple[str, ...] = ()
    search_paths: tuple[str, ...] = ()
    bindings: tuple[FlagBinding, ...] = ()
    dry_run: bool = False
    json: bool = False
    help: bool = False


def parse_flags(
    verb: str, arguments: Sequence[str], parameters: Mapping[str, inspect.Parameter]
) -> Flags:
    """Parses the arguments after the verb.

    Args:
      verb: `--NAME=VALUE` binds a parameter of this verb.
      arguments: of the command line, after the verb.
      parameters: of the verb, by name.

    Raises:
      UsageError: an unknown flag, a missing value, an argument that is no flag, or a search path
        with a scheme such as gs://.
    """
    gin_files: list[str] = []
    search_paths: list[str] = []
    bindings: list[FlagBinding] = []
    switches = {"dry_run": False, "json": False, "help": False}
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "-h":
            argument = "--help"
        if not argument.startswith("--"):
            hint = f": did you mean --gin_file={argument}?" if argument.endswith(".gin") else ""
            raise UsageError(
                f"{argument!r} is not a flag{hint or f'; see t5x-style {verb} --help'}"
            )
        name, equals, text = argument[2:].partition("=")
        if name in switches:
            switches[name] = _switch(name, equals, text)
        elif name in ("gin_file", "gin_search_paths"):
            if not equals:
                if not waiting or waiting[0].startswith("--"):
                    raise UsageError(f"--{name} needs a value: --{name}=VALUE")
                text = waiting.pop(0)
            if not text:
                raise UsageError(f"--{name} needs a value: --{name}=VALUE")
            if name == "gin_file":
                gin_files.append(text)
            else:
                parts = (part for part in text.split(",") if part)
                search_paths.extend(str(local_path(part, f"--{name}")) for part in parts)
        elif name.startswith("gin."):
            bindings.append(_binding(name.removeprefix("gin."), equals, text, argument))
        elif name in parameters and name != "dry_run":
            if not equals and parameters[name].annotation in (bool, "bool"):
                equals, text = "=", "True"
            bindings.append(_binding(f"{verb}.{name}", equals, text, argument))
        else:
            raise UsageError(_unknown(verb, name, equals, text, parameters))
    return Flags(tuple(gin_files), tuple(search_paths), tuple(bindings), **switches)


def _switch(name: str, equals: str, text: str) -> bool:
    if equals and text.lower() not in ("true", "false"):
        raise UsageError(f"--{name}={text}: write --{name} alone, or --{name}=false")
    return not equals or text.lower() == "true"


def _binding(name: str, equals: str, text: str, argument: str) -> FlagBinding:
    if not equals or not text:
        raise UsageError(
            f"{argument}: a value is missing: {argument.rstrip('=')}=VALUE"
            f" (an empty string is {argument.rstrip('=')}=\"''\")"
        )
    if not name:
        raise UsageError(f"{argument}: a name is missing: --gin.NAME={text}")
    return FlagBinding(name, text, argument)


def _unknown(
    verb: str, name: str, equals: str, text: str, parameters: Mapping[str, inspect.Parameter]
) -> str:
    if name.isupper():
        return f"unknown flag --{name}; did you mean --gin.{name}{equals}{text}? (a macro)"
    if "." in name:
        return f"unknown flag --{name}; did you mean --gin.{name}{equals}{text}?"
    known = [flag for flag in GLOBAL_FLAGS if flag != "gin.NAME"] + list(parameters)
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.6)
    hint = f"; did you mean --{near[0]}?" if near else f"; see t5x-style {verb} --help"
    return f"unknown flag --{name}{hint}"
