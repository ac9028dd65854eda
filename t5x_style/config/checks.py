"""The configuration of one command: read, checked before anything runs, written as consumed.

gin silently accepts a misspelt macro, a misspelt scope, a binding that nothing reads, and a string
where a number belongs. This module refuses all four and names the place.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import gin

from t5x_style.config import graph
from t5x_style.config.differences import config_differences
from t5x_style.config.files import GinReader, Origin
from t5x_style.config.flags import FlagBinding
from t5x_style.config.graph import MACRO, Node
from t5x_style.config.help import annotation_text, signature_of
from t5x_style.config.types import annotations_of, coerced, mismatch, with_absolute_paths
from t5x_style.errors import UsageError, did_you_mean

__all__ = [
    "check",
    "config_differences",
    "current",
    "evaluate_bindings",
    "operative_config",
    "origins",
    "parse",
    "refuse_unconsumed",
    "share_bindings",
]


@dataclasses.dataclass
class _Command:
    """The command that is being configured. gin's tables are global, so this is global too.

    Attributes:
      reader: the files and flags.
      verb: gin's full name of the verb.
      other_verbs: those of all other verbs.
      source_verb: the verb whose bindings `verb` shares, if there is one.
      consumed: the values consumed before the verb's first statement, defaults included.
    """

    reader: GinReader = dataclasses.field(default_factory=GinReader)
    verb: str = ""
    other_verbs: tuple[str, ...] = ()
    source_verb: str | None = None
    consumed: dict[Node, dict[str, Any]] = dataclasses.field(default_factory=dict)


_command = _Command()


def parse(
    gin_files: Sequence[str] = (),
    bindings: Sequence[FlagBinding] = (),
    *,
    search_paths: Sequence[str] = (),
    load: Callable[[str], None] = lambda selector: None,
) -> GinReader:
    """Clears gin, then reads the files and after them the flags.

    Args:
      gin_files: searched for in the current folder, `search_paths`, the checkout and the package.
      bindings: values from the command line.
      search_paths: more folders to search for gin files and includes.
      load: imports the modules that may define a selector; called for an unknown name.

    Raises:
      UsageError: a missing file, a line that gin cannot read, or an unknown name.
    """
    global _command
    gin.clear_config()
    _command = _Command(GinReader(tuple(search_paths), load))
    for name in gin_files:
        _command.reader.read_file(name)
    for binding in bindings:
        _command.reader.read_flag(binding)
    return _command.reader


def current() -> GinReader:
    """The reader of the last parse(), with the place of every binding."""
    return _command.reader


def check(verb: Callable, *, verbs: Iterable[str] = ()) -> None:
    """Refuses, in one message, every mistake that is visible before anything is called.

    Everything that a call of `verb` reaches is checked: macros and parameters without a value,
    undefined macros, and values that do not fit the parameter's annotation. Macros that nothing
    uses are refused too. Bindings that only other verbs reach are ignored.

    Args:
      verb: the configurable function that will be called.
      verbs: gin's full names of all verbs.

    Raises:
      UsageError: names every mistake with its file and line, or its flag.
    """
    _command.verb = graph.selector_of(verb)
    _command.other_verbs = tuple(set(verbs) - {_command.verb})
    live = graph.reach([("", _command.verb)])
    _refuse(
        [
            *_missing_values(live),
            *_undefined_macros(live),
            *_type_problems(live),
            *_unused_macros(),
        ]
    )


def share_bindings(verb: Callable, source_verb: Callable) -> None:
    """Binds the bindings of another verb for `verb`, for the parameters that both have.

    One gin file, or one command line with another verb in front, then configures both. A binding of
    `verb` itself wins. Bindings that only the other verb reads are allowed, in files and as flags.
    """
    target, source = ("", graph.selector_of(verb)), ("", graph.selector_of(source_verb))
    _command.source_verb = source[1]
    origins_of = _command.reader.origins
    for parameter, value in graph.bindings().get(source, {}).items():
        if parameter in signature_of(verb) and (target, parameter) not in origins_of:
            gin.bind_parameter((*target, parameter), value)
            origins_of[target, parameter] = origins_of[source, parameter]


def refuse_unconsumed() -> None:
    """Refuses every binding and macro that nothing has consumed.

    This is the first statement of a verb. By then gin has evaluated everything that the verb's
    parameters refer to. A binding that is not in gin's operative config is read by nothing: a
    misspelt macro or scope, or a configurable that is not in use. Three kinds are allowed: those
    of other verbs, those that a later binding made useless (a flag chose another optimizer), and
    those of an `@X` that the verb calls later.

    Raises:
      UsageError: names every one with its file and line or flag, and the nearest name in use.
    """
    _snapshot_consumed()
    _refuse(_unconsumed_problems())


def evaluate_bindings(verb: Callable) -> None:
    """Does everything between check() and the first statement of a verb, without calling the verb.

    Raises:
      UsageError: a constructor refuses its arguments, or refuse_unconsumed() would raise.
    """
    try:
        own = gin.get_bindings(verb)
    except UsageError as error:
        message = str(error).split("\n  In call to configurable")[0]
        raise UsageError(message + origins(message)) from None
    _snapshot_consumed()
    _command.consumed["", _command.verb] = own
    _refuse(_unconsumed_problems())


def _snapshot_consumed() -> None:
    _command.consumed = {node: dict(values) for node, values in graph.operative().items()}


def _unconsumed_problems() -> list[str]:
    live = graph.reach([("", _command.verb)]) if _command.verb else {}
    not_called_yet = [node for node, called in live.items() if not called]
    deferred = graph.reach([*not_called_yet, *_unevaluated(_command.consumed)])
    by_others = _reachable_by_other_verbs()
    by_source = graph.reach([("", _command.source_verb)]) if _command.source_verb else {}
    problems = []
    for (node, parameter), origin in _places().items():
        if _is_consumed(node, parameter) or _covered(node, deferred) or _covered(node, by_source):
            continue
        if origin.file is not None and (
            _covered(node, by_others) or _bound_to_none(node, parameter)
        ):
            continue
        problems.append(_unread_problem(node, parameter, origin))
    return problems


def operative_config(*, without: Callable | None = None) -> str:
    """The consumed values, defaults included, as gin text without includes: a run's config.gin.

    This text alone starts the same run again, from any folder, since its paths are absolute. It is
    the state at refuse_unconsumed(), so the calls that a verb makes later do not enter.

    Args:
      without: a configurable whose parameters are left out.
    """
    left_out = without and graph.selector_of(without)
    chosen = {
        node: dict(values) for node, values in _command.consumed.items() if node[1] != left_out
    }
    for node in graph.reach(_unevaluated(chosen)):
        for parameter, (bound, value) in graph.effective(node).items():
            chosen.setdefault(bound, {}).setdefault(parameter, value)
    return graph.config_text(with_absolute_paths(chosen))


def origins(message: str) -> str:
    """Lines with the places of every `Configurable.parameter` that a message names.

    Empty if the message has a place already.
    """
    places = _places()
    if any(origin.where in message for origin in places.values()):
        return ""
    lines = []
    for (node, parameter), origin in places.items():
        name = graph.binding_name(node, parameter)
        plain = name.rsplit("/", 1)[-1]
        if node[1] == MACRO or not re.search(rf"(?<![\w.]){re.escape(plain)}(?![\w.])", message):
            continue
        found = [f"{name} is set at {origin.where}"]
        for macro in graph.macros_in(graph.bindings()[node][parameter]):
            if (of_macro := places.get(((macro, MACRO), "value"))) is not None:
                found.append(f"{macro} at {of_macro.where}")
        lines.append("\n  " + ", ".join(found))
    return "".join(lines)


def _places() -> dict[tuple[Node, str], Origin]:
    """The place of every binding that gin still has; plain Python may have cleared gin."""
    bound = graph.bindings()
    return {
        (node, parameter): origin
        for (node, parameter), origin in _command.reader.origins.items()
        if parameter in bound.get(node, {})
    }


def _refuse(problems: Sequence[str]) -> None:
    if len(problems) == 1:
        raise UsageError(problems[0])
    if problems:
        listed = "".join(f"\n- {problem}" for problem in problems)
        raise UsageError(f"{len(problems)} mistakes in the configuration:{listed}")


def _place(node: Node, parameter: str) -> str:
    origin = _command.reader.origins.get((node, parameter))
    return origin.where if origin else graph.binding_name(node, parameter)


def _missing_values(live: Mapping[Node, bool]) -> list[str]:
    """One entry that lists every missing value with the flag to type."""
    needed: dict[str, str] = {}
    for node, called in live.items():
        bound = graph.effective(node)
        for parameter, (binder, value) in bound.items():
            if graph.is_required(value):
                name = graph.binding_name(binder, parameter)
                needed[name] = f"required at {_place(binder, parameter)}"
        if called and not node[1].startswith("gin."):
            for parameter, declared in _parameters(node).items():
                variadic = declared.kind in (declared.VAR_POSITIONAL, declared.VAR_KEYWORD)
                if parameter not in bound and declared.default is declared.empty and not variadic:
                    name = graph.binding_name(node, parameter)
                    needed[name] = f"{graph.short(node[1])} has no default for it"
    if not needed:
        return []
    lines = []
    for name, reason in needed.items():
        flag = name.rsplit(".", 1)[1] if name.startswith(_verb_name() + ".") else f"gin.{name}"
        lines.append(f"\n    --{flag}={_expected_type(name, live)}    ({reason})")
    missing = (
        "a value is missing; give it"
        if len(needed) == 1
        else f"{len(needed)} values are missing; give them"
    )
    return [f"{missing} in a gin file or on the command line:{''.join(sorted(lines))}"]


def _expected_type(name: str, live: Mapping[Node, bool]) -> str:
    """The type that the consumers of a missing value declare: `<int>`; or `VALUE`."""
    for node in live:
        if node[1].startswith("gin."):
            continue
        bound = graph.effective(node)
        for parameter, declared in _parameters(node).items():
            binder, value = bound.get(parameter, (node, None))
            if name in (graph.binding_name(binder, parameter), graph.macro_name(value)):
                kind = annotation_text(declared.annotation)
                return f"<{kind}>" if kind else "VALUE"
    return "VALUE"


def _undefined_macros(live: Mapping[Node, bool]) -> list[str]:
    defined = [node[0] for node in graph.bindings() if node[1] == MACRO]
    problems = []
    for node in live:
        for parameter, (binder, value) in graph.effective(node).items():
            for target, called in graph.targets(value, node[0]):
                if called and graph.reach([target]).get(node):
                    name = graph.binding_name(binder, parameter)
                    problems.append(f"{_place(binder, parameter)}: {name} refers to itself")
            for macro in graph.macros_in(value):
                if macro not in defined:
                    problems.append(
                        f"{_place(binder, parameter)}: {graph.binding_name(binder, parameter)} ="
                        f" {value!r}, but no macro {macro} is defined"
                        f"{did_you_mean(macro, defined) or f'; add --gin.{macro}=VALUE'}"
                    )
    return list(dict.fromkeys(problems))


def _type_problems(live: Mapping[Node, bool]) -> list[str]:
    problems = []
    for node in live:
        if node[1].startswith("gin."):
            continue
        annotations = annotations_of(graph.configurable(node[1]).wrapped)
        for parameter, (binder, value) in graph.effective(node).items():
            if parameter not in annotations:
                continue
            where, shown = _place(binder, parameter), graph.binding_name(binder, parameter)
            _rebind_as_annotated(binder, parameter, annotations[parameter])
            value = graph.bindings()[binder][parameter]
            macros = graph.macros_in(value)
            try:
                resolved = graph.resolved(value)
            except LookupError:
                continue  # undefined or required: another check reports it
            problem = mismatch(resolved, annotations[parameter])
            if problem is None:
                continue
            if macros and graph.macro_name(value):
                last = graph.last_macro(value)
                where, shown = _place((last, MACRO), "value"), f"{last} (for {shown})"
            problems.append(f"{where}: {shown} = {resolved!r} {problem}")
    return list(dict.fromkeys(problems))


def _rebind_as_annotated(node: Node, parameter: str, annotation: Any) -> None:
    """Rebinds a flag's value, on the parameter or its macro, as the annotation takes it."""
    value = graph.bindings()[node][parameter]
    if graph.macro_name(value):
        node, parameter = (graph.last_macro(value), MACRO), "value"
        value = graph.bindings().get(node, {}).get("value")
    origin = _command.reader.origins.get((node, parameter))
    if origin is not None and origin.text is not None:
        gin.bind_parameter((*node, parameter), coerced(origin.text, value, annotation))


def _unused_macros() -> list[str]:
    problems = []
    for name in graph.unread_macros(_command.reader.overridden):
        node = (name, MACRO)
        origin = _command.reader.origins[node, "value"]
        if origin.file is None or not _bound_to_none(node, "value"):
            problems.append(_unread_problem(node, "value", origin))
    return problems


def _unread_problem(node: Node, parameter: str, origin: Origin) -> str:
    """Why nothing reads a binding, and the nearest name that is in use."""
    name = graph.binding_name(node, parameter)
    if node[1] == MACRO:
        return f"{origin.where}: nothing uses a macro {name}{did_you_mean(name, _names_in_use())}"
    selector = graph.short(node[1])
    calls = [scope for scope, called in _command.consumed if called == node[1]]
    if not calls:
        return (
            f"{origin.where}: nothing reads {name}, because {_verb_name()} does not use {selector}"
            f"{did_you_mean(name, _names_in_use())}"
        )
    if not any(graph.covers(node[0], scope) for scope in calls):
        used = [scope or "no scope" for scope in sorted(calls)]
        near = did_you_mean(name, [graph.binding_name((s, node[1]), parameter) for s in calls])
        return (
            f"{origin.where}: nothing reads {name}: {selector} is used in {', '.join(used)}{near}"
        )
    return f"{origin.where}: nothing reads {name}: the caller of {selector} sets {parameter} itself"


def _names_in_use() -> list[str]:
    """Candidates for a mistyped name: the macros and parameters that the verb reaches."""
    live = graph.reach([("", _command.verb)]) if _command.verb else {}
    macros = [node[0] for node in live if node[1] == MACRO]
    own = [name for node in live if node[1] == _command.verb for name in _parameters(node)]
    others = [
        graph.binding_name(node, parameter)
        for node in live
        if not node[1].startswith("gin.")
        for parameter in _parameters(node)
    ]
    return macros + [f"{_verb_name()}.{name}" for name in own if name != "dry_run"] + others


def _reachable_by_other_verbs() -> dict[Node, bool]:
    """The nodes that other verbs reach, or that an overridden binding would reach."""
    starts = [node for node in graph.bindings() if node[1] in _command.other_verbs]
    for scope, value in _command.reader.overridden:
        starts.extend(target for target, _ in graph.targets(value, scope))
    return graph.reach(starts)


def _unevaluated(consumed: Mapping[Node, Mapping[str, Any]]) -> list[Node]:
    """The nodes of the `@X` among consumed values: their consumers call them later."""
    return [
        target
        for (scope, _), values in consumed.items()
        for target, called in graph.targets(values, scope)
        if not called
    ]


def _is_consumed(node: Node, parameter: str) -> bool:
    return _covered(
        node, [called for called, values in _command.consumed.items() if parameter in values]
    )


def _covered(node: Node, nodes: Iterable[Node]) -> bool:
    """Whether a binding of `node` holds for a call of one of `nodes`."""
    return any(
        selector == node[1]
        and (scope == node[0] if selector == MACRO else graph.covers(node[0], scope))
        for scope, selector in nodes
    )


def _bound_to_none(node: Node, parameter: str) -> bool:
    return node[1] == MACRO and graph.bindings()[node][parameter] is None


def _parameters(node: Node) -> Mapping[str, Any]:
    return signature_of(graph.configurable(node[1]).wrapped)


def _verb_name() -> str:
    return graph.short(_command.verb) if _command.verb else "this command"
