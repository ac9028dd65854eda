"""Explains gin's syntax errors: what is wrong in a line, and what to write instead."""

import re

from t5x_style.config.types import arithmetic

WORDS = {"true": "True", "false": "False", "none": "None", "null": "None", "nil": "None"}


def explain(error: SyntaxError) -> str:
    """The mistake in the line of a syntax error, and its correction."""
    line = (error.text or "").strip()
    shown = f"\n    {line}" if line else ""
    return f"{_advice(line, str(error.msg))}{shown}"


def is_bracket_open(text: str, first: int, stop: int) -> bool:
    """Whether a bracket that opens in the lines `first` to `stop` - 1 (1-based) stays open."""
    before = "\n".join(line.split("#")[0] for line in text.split("\n")[first - 1 : stop - 1])
    return any(before.count(opened) > before.count(shut) for opened, shut in ("()", "[]", "{}"))


def explain_open_bracket(text: str, first: int) -> str:
    """Names the line, at or after `first` (1-based), that opens the bracket or quote.

    The tokenizer reports the line where it stopped, which may be the end of the file.
    """
    lines = text.split("\n")
    while first < len(lines) and lines[first - 1].strip()[:1] in ("", "#"):
        first += 1
    return (
        f"{first}: a bracket or a quote that opens here is never closed"
        f"\n    {lines[first - 1].strip()}"
    )


def _advice(line: str, message: str) -> str:
    if yaml := re.match(r"([\w./]+):\s+(\S.*)", line):
        return f"write {yaml[1]} = {yaml[2]}"
    name, equals, value = line.partition("=")
    name, value = name.strip(), re.sub(r"\s+#.*$", "", value).strip()
    if not equals:
        return "this is not NAME = VALUE, an include, an import or a 'Configurable:' block"
    if not value:
        return f"{name} = … has no value"
    if value.lower() in WORDS:
        return f"{value!r} is not a gin value: write {WORDS[value.lower()]}"
    result = None if re.fullmatch(r"[\w.]+", value) else arithmetic(value)
    if result is not None:
        return f"gin does no arithmetic: write {result!r} instead of {value}"
    if re.fullmatch(r"\w+", value):
        return (
            f"{value!r} is not a gin value: write '{value}' in quotes if it is a string,"
            f" %{value} if a macro, @{value}() if a configurable"
        )
    if re.fullmatch(r"[\w./]+\(\)", value):
        return f"{value!r} is not a gin value: write @{value}"
    if re.fullmatch(r"[^\s'\"\[\]{}(),@%]+", value):
        return f"{value!r} is not a gin value: a string needs quotes, write '{value}'"
    return f"the value {value!r} cannot be read ({message.splitlines()[0].rstrip('.').lower()})"
