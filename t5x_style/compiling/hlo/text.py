"""The text of an optimised HLO program, taken apart: computations, instructions, source lines.

`jax.stages.Compiled.as_text` returns the instructions that run, in the order in which they run. The
text is made for people and has no specification: this grammar follows what the TPU, GPU and CPU
compilers print.
"""

import dataclasses
import functools
import re

_HEAD = re.compile(r"^(?P<entry>ENTRY )?%?(?P<name>[^\s(]+) \(.*\{$")
# The shape ends at a blank and a word directly before a parenthesis; tilings such as T(8,128) have
# no blank before them.
_INSTRUCTION = re.compile(
    r"^\s+(?P<root>ROOT )?%?(?P<name>\S+) = (?P<shape>.*?) (?P<operation>[a-z][\w\-]*)\("
    r"(?P<arguments>[^)]*)\)(?P<attributes>.*)$",
    re.DOTALL,
)
_COMMENT = re.compile(r"/\*.*?\*/")
_OPERAND = re.compile(r"%([\w.\-]+)")
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
_ROW = re.compile(r'^(\d+) (?:"(.*)"|\{(.*)\})$')
# Calls whose callee runs as a part of the caller, once per call. The combiners of reductions, also
# given as to_apply, are not counted as calls.
_CALLED = re.compile(r"(?:calls|async_computation)=\{?%?([\w.\-]+)")
_APPLIED = re.compile(r"to_apply=%?([\w.\-]+)")
_CALLEES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")
_EITHER = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: by which later lines name its result.
      shape: of the result as printed, `bf16[16,256]{1,0:T(8,128)(2,1)}` or a tuple of them.
      operation: 'fusion', 'convolution', 'all-gather' and so on.
      arguments: the text in its parentheses: names of operands, or a constant's value.
      attributes: the text after the parentheses.
      is_root: whether it is the computation's result.
    """

    name: str
    shape: str
    operation: str
    arguments: str
    attributes: str
    is_root: bool

    @functools.cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the instructions whose results it takes, in order."""
        return tuple(_OPERAND.findall(self.arguments))

    @functools.cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that run as a part of it; those of a `while` are left out."""
        names = _CALLED.findall(self.attributes)
        if self.operation in ("call", "call-start"):
            names += _APPLIED.findall(self.attributes)
        names += _EITHER.findall(self.attributes)
        for callees in _CALLEES.findall(self.attributes):
            names += re.findall(r"[\w.\-]+", callees)
        return tuple(dict.fromkeys(names))

    def attribute(self, name: str) -> str | None:
        """The value of a plain attribute, as in `channel_id=7`; None without one."""
        match = re.search(rf'\b{name}="?([^\s,"}}]+)', self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A computation: its instructions by name, in the order in which they run."""

    name: str
    instructions: dict[str, Instruction]

    @property
    def root(self) -> Instruction:
        return next(reversed(self.instructions.values()))


@dataclasses.dataclass(frozen=True)
class Module:
    """A program.

    Attributes:
      computations: by name, each after those that it calls.
      entry: name of the one that runs first.
      partitions: devices over which the compiler split it: those of ONE slice.
      sources: by stack frame, the source lines 'file:line' from the innermost outwards.
    """

    computations: dict[str, Computation]
    entry: str
    partitions: int
    sources: dict[int, tuple[str, ...]]

    def source(self, *instructions: Instruction) -> str:
        """'file:line < file:line', the innermost line and its caller, of the first that has one.

        Lines that the compiler made have no source. The result is then the end of the operation's
        name in JAX, or an empty string.
        """
        for instruction in instructions:
            frame = instruction.attribute("stack_frame_id")
            if frame is not None and (lines := self.sources.get(int(frame))):
                return " < ".join(lines[:2])
        for instruction in instructions:
            if name := re.search(r'op_name="([^"]*)"', instruction.attributes):
                return "/".join(name[1].split("/")[-3:])
        return ""


def parse(text: str) -> Module:
    """Reads the text of one program.

    Raises:
      ValueError: there is no entry computation in it.
    """
    computations: dict[str, Computation] = {}
    tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
    table: dict[int, str] | None = None
    entry = ""
    name = ""
    lines: list[str] | None = None
    for line in text.splitlines():
        if lines is None:
            if head := _HEAD.match(line):
                name, lines = head["name"], []
                entry = name if head["entry"] else entry
            elif line in tables:
                table = tables[line]
            elif table is not None and (row := _ROW.match(line)):
                table[int(row[1])] = row[2] or row[3]
        elif line == "}" or line.startswith("}, execution_thread="):
            computations[name] = Computation(name, _instructions(lines))
            lines = None
        elif lines and not line.startswith("  "):
            # The metadata of a Pallas kernel spills over several lines.
            lines[-1] += line
        else:
            lines.append(line)
    if entry not in computations:
        raise ValueError(f"no entry computation in {len(text)} characters that begin {text[:80]!r}")
    partitions = re.search(r"num_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 1, _sources(tables))


def _instructions(lines: list[str]) -> dict[str, Instruction]:
    found = {}
    for line in lines:
        if match := _INSTRUCTION.match(_COMMENT.sub("", line)):
            fields = match.groupdict()
            is_root = fields.pop("root") is not None
            found[match["name"]] = Instruction(**fields, is_root=is_root)
    return found


def _sources(tables: dict[str, dict[int, str]]) -> dict[int, tuple[str, ...]]:
    files, locations = tables["FileNames"], {}
    for number, row in tables["FileLocations"].items():
        file = "/".join(files[_field(row, "file_name_id")].split("/")[-2:])
        locations[number] = f"{file}:{_field(row, 'line')}"
    sources: dict[int, tuple[str, ...]] = {}
    # A frame's parent is printed one too high; the outermost one is its own.
    for number, row in sorted(tables["StackFrames"].items()):
        outer = sources.get(_field(row, "parent_frame_id") - 1, ())
        sources[number] = (locations[_field(row, "file_location_id")], *outer)
    return sources


def _field(row: str, name: str) -> int:
    match = re.search(rf"\b{name}=(\d+)", row)
    assert match is not None
    return int(match[1])
