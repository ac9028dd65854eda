"""Reads gin files and command-line values into gin, and records the place of every binding.

gin's own reader records no places, so a later message could not name the line. This reader drives
gin's parser statement by statement and binds through gin, so the language is gin's.
"""

import dataclasses
import re
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gin import config as gin_config
from gin import config_parser

from t5x_style.config import graph
from t5x_style.config.flags import FlagBinding
from t5x_style.config.help import signature_of
from t5x_style.config.syntax import explain, explain_open_bracket, is_bracket_open
from t5x_style.errors import UsageError, did_you_mean
from t5x_style.files import local_path, read_text

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Origin:
    """The place of a binding.

    Attributes:
      where: `path/file.gin:12`, or the flag as typed.
      file: the file's path; None for a flag.
      text: the value as typed on the command line; None for a file.
    """

    where: str
    file: str | None = None
    text: str | None = None


@dataclasses.dataclass
class GinReader:
    """Reads files and flags into gin, and records the place of every binding.

    Attributes:
      search_paths: more folders in which gin files are searched for, in order.
      load: imports the modules that may define a selector; called for an unknown name.
      origins: (node, parameter) -> the place of the binding in force.
      overridden: (scope, value) of every binding that a later one replaced.
    """

    search_paths: tuple[str, ...] = ()
    load: Callable[[str], None] = lambda selector: None
    origins: dict[tuple[graph.Node, str], Origin] = dataclasses.field(default_factory=dict)
    overridden: list[tuple[str, Any]] = dataclasses.field(default_factory=list)

    def read_file(self, name: str, *, included_by: tuple[str, ...] = (), where: str = "") -> None:
        """Reads a gin file, and the files that it includes, into gin.

        Args:
          name: the file.
          included_by: the files that are being read.
          where: the line that includes it, for messages.

        Raises:
          UsageError: no such file, an include that includes itself, or a mistake in a line.
        """
        path = self.find(name, where or f"--gin_file={name}")
        if str(path) in included_by:
            raise UsageError(f"{where}: {name!r} includes itself")
        text = read_text(path, str(path))
        with graph.parse_context() as context:
            for statement in _statements(text, str(path), self._delegate(context)):
                self._read_statement(statement, str(path), context, included_by)
            graph.record_imports(context)

    def read_flag(self, binding: FlagBinding) -> None:
        """Binds one value from the command line; a text that is no gin value is a string.

        Raises:
          UsageError: an unknown name, or an open bracket or quote.
        """
        if not re.fullmatch(r"(\w+/)*\w+(\.\w+)*", binding.name):
            raise UsageError(f"{binding.flag}: {binding.name!r} is not a name gin can bind")
        scope, selector, parameter = config_parser.parse_binding_key(binding.name)
        value = self._flag_value(binding)
        with graph.parse_context() as context:
            self._bind(
                scope, selector, parameter, value, Origin(binding.flag, text=binding.text), context
            )

    def find(self, name: str, where: str) -> Path:
        """The path of a gin file: `name` itself, or in one of the search paths.

        Args:
          name: the file as typed.
          where: the flag or line that names it, for messages.

        Raises:
          UsageError: no such file, or a path with a scheme such as gs://.
        """
        flag = where.removesuffix(f"={name}")
        local_path(name, f"{where}: include" if flag == where else flag)
        folders = ["", *self.search_paths, str(ROOT), str(ROOT / "t5x_style")]
        for folder in folders:
            path = Path(folder, name).expanduser()
            if path.is_file():
                return _display_path(path)
        near = [
            str(Path(name).parent / other.name)
            for folder in folders
            for other in Path(folder, name).expanduser().parent.glob("*.gin")
        ]
        searched = ", ".join(sorted({str(Path(folder).resolve()) for folder in folders}))
        raise UsageError(
            f"{where}: no gin file {name!r}{did_you_mean(name, near)} (searched {searched})"
        )

    def expanded(self, name: str, where: str, *, included_by: tuple[str, ...] = ()) -> str:
        """The text of a gin file, with every include replaced by the text of that file."""
        path = self.find(name, where)
        if str(path) in included_by:
            raise UsageError(f"{where}: {name!r} includes itself")
        lines = []
        text = read_text(path, str(path)).removesuffix("\n")
        for number, line in enumerate(text.split("\n"), 1):
            if include := re.match(r"include\s+['\"](.+)['\"]", line):
                place = f"{path}:{number}"
                inside = (*included_by, str(path))
                lines.append(self.expanded(include[1], place, included_by=inside))
            else:
                lines.append(line + "\n")
        return "".join(lines)

    def _flag_value(self, binding: FlagBinding) -> Any:
        try:
            with graph.parse_context() as context:
                parser = config_parser.ConfigParser(binding.text, self._delegate(context))
                value, is_whole_text = graph.parse_one_value(parser)
                if is_whole_text:
                    return value
        except UsageError as error:
            raise UsageError(f"{binding.flag}: {_message_without_place(error)}") from None
        except (SyntaxError, tokenize.TokenError, ValueError) as error:
            if binding.text[0] in "[{('\"@%":
                raise UsageError(
                    f"{binding.flag}: {binding.text!r} is neither a gin value (is a bracket or a"
                    f" quote left open?) nor plain text ({_message_without_place(error)})"
                ) from None
        return binding.text

    def _delegate(self, context: gin_config.ParseContext) -> gin_config.ParserDelegate:
        reader = self

        class Delegate(gin_config.ParserDelegate):
            def configurable_reference(self, scoped_selector, evaluate):
                reader._configurable(scoped_selector.rsplit("/", 1)[-1], context)
                return super().configurable_reference(scoped_selector, evaluate)

        return Delegate()

    def _read_statement(
        self,
        statement: Any,
        path: str,
        context: gin_config.ParseContext,
        included_by: tuple[str, ...],
    ) -> None:
        where = f"{path}:{statement.location.line_num}"
        if isinstance(statement, config_parser.BindingStatement):
            origin = Origin(where, file=path)
            self._bind(
                statement.scope,
                statement.selector,
                statement.arg_name,
                statement.value,
                origin,
                context,
            )
        elif isinstance(statement, config_parser.BlockDeclaration):
            with _errors_at(where):
                self._configurable(statement.selector, context)
        elif isinstance(statement, config_parser.ImportStatement):
            try:
                context.process_import(statement)
            except ImportError as error:
                raise UsageError(f"{where}: cannot {statement.format()}: {error}") from None
        else:
            self.read_file(statement.filename, included_by=(*included_by, path), where=where)

    def _bind(
        self,
        scope: str,
        selector: str,
        parameter: str,
        value: Any,
        origin: Origin,
        context: gin_config.ParseContext,
    ) -> None:
        if not parameter:
            scope = f"{scope}/{selector}" if scope else selector
            selector, parameter = graph.MACRO, "value"
            node = (scope, selector)
        else:
            with _errors_at(origin.where):
                node = (scope, self._parameter(selector, parameter, context))
        earlier = self.origins.get((node, parameter))
        if earlier is not None:
            if origin.file and earlier.file == origin.file and earlier.where != origin.where:
                raise UsageError(
                    f"{origin.where}: {graph.binding_name(node, parameter)} is already set in this"
                    f" file, at {earlier.where}: keep one of the two"
                )
            self.overridden.append((node[0], graph.bindings()[node][parameter]))
        gin_config.bind_parameter((scope, selector, parameter), value)
        self.origins[node, parameter] = origin

    def _parameter(self, selector: str, parameter: str, context: gin_config.ParseContext) -> str:
        """The complete selector. Raises UsageError if it has no such parameter."""
        configurable = self._configurable(selector, context)
        if not graph.has_parameter(configurable, parameter):
            names = list(signature_of(configurable.wrapped))
            raise UsageError(
                f"{selector} has no parameter {parameter!r}{did_you_mean(parameter, names)}"
                f" (it has: {', '.join(names)})"
            )
        return configurable.selector

    def _configurable(
        self, selector: str, context: gin_config.ParseContext
    ) -> gin_config.Configurable:
        if graph.names_come_from_imports(context):
            try:
                return context.get_configurable(selector)
            except (NameError, AttributeError) as error:
                raise UsageError(_message_without_place(error)) from None
        found = graph.matching(selector)
        if not found:
            self.load(selector)
            found = graph.matching(selector)
        if not found:
            names = map(graph.short, graph.configurables())
            raise UsageError(
                f"no configurable is named {selector!r}{did_you_mean(selector, names)}"
                " (t5x-style config lists them; your own modules need an import line in a gin file)"
            )
        if len(found) > 1:
            raise UsageError(f"{selector!r} is ambiguous: write one of {', '.join(sorted(found))}")
        return graph.configurable(found[0])


def _statements(text: str, path: str, delegate: gin_config.ParserDelegate) -> Iterator[Any]:
    """The statements of a file's text; a mistake in one is a UsageError with its line."""
    line = 1
    try:
        parser = config_parser.ConfigParser(text, delegate)
        while (statement := parser.parse_statement()) is not None:
            yield statement
            line = parser.current_token.start[0]
    except tokenize.TokenError:
        raise UsageError(f"{path}:{explain_open_bracket(text, line)}") from None
    except SyntaxError as error:
        if is_bracket_open(text, line, error.lineno or line):
            raise UsageError(f"{path}:{explain_open_bracket(text, line)}") from None
        raise UsageError(f"{path}:{error.lineno}: {explain(error)}") from None
    except UsageError as error:
        # Raised by the delegate in the middle of a line: gin's parser has added the place.
        if (place := re.search(r"\n  In .* line (\d+)\n", str(error))) is None:
            raise
        raise UsageError(f"{path}:{place[1]}: {_message_without_place(error)}") from None
    except ValueError as error:
        raise UsageError(
            f"{path}:{parser.current_token.start[0]}: {_message_without_place(error)}"
        ) from None


@contextmanager
def _errors_at(where: str) -> Iterator[None]:
    """Puts a place in front of the message of a UsageError."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{where}: {_message_without_place(error)}") from None


def _message_without_place(error: BaseException) -> str:
    """gin's message without the lines about the place, which gin appends."""
    return str(error).split("\n  In ")[0].strip()


def _display_path(path: Path) -> Path:
    """The path, relative if it is inside the current folder."""
    try:
        return path.resolve().relative_to(Path.cwd())
    except ValueError:
        return path
