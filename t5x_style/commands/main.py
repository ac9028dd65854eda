"""The entry point: finds the verb, checks its configuration, runs it, returns the exit status.

`t5x-style --help` imports no verb. `t5x-style VERB --help` imports the module of that verb alone.
Every file and flag is read and checked before anything is configured.
"""

import contextlib
import faulthandler
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO

from t5x_style.errors import (
    EXIT_FAULT,
    EXIT_USAGE,
    Fault,
    Preempted,
    UsageError,
    did_you_mean,
    exit_status,
)
from t5x_style.signals import heard

if TYPE_CHECKING:
    from t5x_style.config.flags import Flags

VERBS = {
    "plan": "turn a budget and its data into a run: model size, tokens, blend, hours, loss",
    "tokenizer": "train a vocabulary on the blend, and compare its tokens per word with others",
    "cache": "build, verify and describe token stores",
    "compile": "compile a run's step for any slice: bytes, FLOPs, traffic, estimated seconds",
    "train": "pretrain a model, or continue a run",
    "evaluate": "measure loss, bits per byte and perplexity of every source",
    "generate": "sample text from a checkpoint",
    "export": "write the parameters of a checkpoint alone",
    "sweep": "run every combination of a grid of settings, and tabulate the results",
    "fit": "fit a scaling law to the final losses of runs, or to a CSV file",
    "report": "write one self-contained HTML page about a run, or comparing several",
    "compare": "find the step at which two runs part, and the settings that differ",
    "config": "list the configurables, show a resolved configuration, or compare two",
}

# Folder of commands/ -> its verbs. The other verbs are in commands/ itself.
FOLDERS = {
    "corpora": ("tokenizer", "cache"),
    "runs": ("compile", "train", "evaluate", "generate", "export"),
    "studies": ("plan", "sweep", "fit", "report", "compare"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit status (see the table in the README)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    lasts = arguments[:1] == ["train"]
    try:
        # The last line of a run is printed in here too.
        with _lasting() if lasts else contextlib.nullcontext():
            return _status(arguments, heard() if lasts else contextlib.nullcontext())
    finally:
        _let_go(sys.stdout)
        _let_go(sys.stderr)


def _status(arguments: list[str], listening: contextlib.AbstractContextManager) -> int:
    try:
        with listening:
            status = _run(arguments)
        _flush()
        return status
    except (UsageError, Fault) as error:
        print(f"error: {_message(error)}", file=sys.stderr)
        return exit_status(error)
    except Preempted as error:
        print(f"preempted: {_message(error)}", file=sys.stderr)
        return exit_status(error)
    except KeyboardInterrupt as error:
        print("interrupted", file=sys.stderr)
        return exit_status(error)
    except BrokenPipeError:  # the reader (`| head`) has left
        return EXIT_FAULT
    except Exception as error:
        traceback.print_exc()
        cause = next((line for line in _message(error).splitlines() if line.strip()), "")
        print(f"error: {type(error).__name__}: {cause}", file=sys.stderr)
        return EXIT_FAULT


def _flush() -> None:
    """Notices here what the interpreter would at its end, where no status can tell of it.

    Raises:
      BrokenPipeError: nobody reads standard output any more.
      Fault: it cannot be written.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Fault(f"cannot write standard output: {error}") from error


def _let_go(stream: TextIO | None) -> None:
    """Sends nowhere what cannot be written: the interpreter would try again, and end with 120."""
    if stream is None:
        return
    try:
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_overview())
        return 0 if arguments else EXIT_USAGE
    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        raise UsageError(
            f"{verb!r} is not a verb{did_you_mean(verb, VERBS)}"
            f" (verbs: {', '.join(VERBS)}; see t5x-style --help)"
        )
    module = verb_module(verb)
    function = getattr(module, verb)

    from t5x_style.config.flags import parse_flags
    from t5x_style.config.help import signature_of, verb_help

    flags = parse_flags(verb, rest, signature_of(function))
    if flags.help:
        print(verb_help(verb, function))
        return 0
    with _standard_output_to_error() if flags.json else contextlib.nullcontext():
        result = _call(verb, function, flags)
    if flags.json:
        print(as_json(result if result is not None else {}))
    return 0


def _call(verb: str, function: Callable, flags: "Flags") -> object:
    from t5x_style.config import checks

    module = load_verb(verb)
    checks.parse(
        flags.gin_files,
        flags.bindings,
        search_paths=flags.search_paths,
        load=load_named,
    )
    if (source_verb := getattr(module, "BINDINGS_OF", None)) is not None:
        checks.share_bindings(function, getattr(load_verb(source_verb), source_verb))
    if verb != "config":  # this verb shows any configuration, with its mistakes
        checks.check(function, verbs=selectors())
    try:
        return function(dry_run=flags.dry_run)
    except UsageError as error:
        message = _message(error)
        raise UsageError(message + checks.origins(message)) from error


def module_name(verb: str) -> str:
    """The module of a verb; its function has the verb's name."""
    folder = next((name for name, verbs in FOLDERS.items() if verb in verbs), None)
    return ".".join(filter(None, ("t5x_style.commands", folder, verb)))


def selectors() -> list[str]:
    """gin's full name of every verb."""
    return [f"{module_name(verb)}.{verb}" for verb in VERBS]


def verb_module(verb: str) -> ModuleType:
    """The module of a verb, imported."""
    return importlib.import_module(module_name(verb))


def load_named(selector: str) -> None:
    """Imports the modules that may define a name in a gin file: a verb's, or all of them."""
    verb = selector.rpartition(".")[2]
    if verb in VERBS:
        load_verb(verb)
    else:
        load_everything()


def load_verb(verb: str) -> ModuleType:
    """Imports a verb's module, and the modules of its configurables."""
    module = verb_module(verb)
    for name in module.CONFIGURABLES:
        importlib.import_module(name)
    return module


def load_everything() -> None:
    """Imports every verb and all configurables, so that gin knows every name."""
    for verb in VERBS:
        load_verb(verb)


def as_json(result: object) -> str:
    """`result` as one JSON object. JSON has no nan and no infinity: they become null."""
    import json
    import math

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        if hasattr(value, "item") and not getattr(value, "shape", ()):
            value = value.item()  # a numpy scalar
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return value

    return json.dumps(plain(result), allow_nan=False)


@contextlib.contextmanager
def _lasting() -> Iterator[None]:
    """What a run of weeks has more than other verbs, besides signals that ask it to leave.

    A fatal signal, such as SIGBUS for a mapped file that was cut, leaves the stacks of all threads
    on standard error. No line that cannot be printed ends it, or changes its status: Ctrl-C ends
    `tee` at once, and the run behind it still has to save.
    """
    faulthandler.enable(sys.__stderr__ or 2)
    with open(os.devnull, "w") as nowhere:
        # Python has None for a stream that was closed before it started.
        output, errors = (_Unbreakable(stream or nowhere) for stream in (sys.stdout, sys.stderr))
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            yield


class _Unbreakable:
    """A stream whose lines are dropped if they cannot be written."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """As of a text stream."""
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As of a text stream."""
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _standard_output_to_error() -> Iterator[None]:
    """Sends standard output to standard error, also that of libraries and child processes."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _overview() -> str:
    verbs = "\n".join(f"  {verb:10} {summary}" for verb, summary in VERBS.items())
    return (
        "usage: t5x-style VERB [--gin_file=FILE]… [--gin.NAME=VALUE]… [--NAME=VALUE]…"
        " [--dry_run] [--json]\n\n"
        "Pretrain domain language models on JAX and TPU, with every token and FLOP accounted for."
        f"\n\nVerbs:\n{verbs}\n\n"
        "t5x-style VERB --help lists the parameters of a verb.\n"
        "t5x-style config lists everything that a gin file can set."
    )


def _message(error: BaseException) -> str:
    # gin appends the chain of configurables to every exception that passes through them.
    return str(error).split("\n  In call to configurable")[0].strip()
