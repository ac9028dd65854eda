"""What is said about a line that gin cannot read, and where a bracket was left open."""

import pytest

from t5x_style.config.syntax import explain, explain_open_bracket, is_bracket_open


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("model: 3", "write model = 3"),
        ("model", "this is not NAME = VALUE"),
        ("model =", "model = … has no value"),
        ("model = # later", "model = … has no value"),
        ("model = NIL  # of YAML", "'NIL' is not a gin value: write None"),
        ("tokens = 2 * 10**9", "gin does no arithmetic: write 2000000000 instead of 2 * 10**9"),
        ("kind = rope", "write 'rope' in quotes if it is a string, %rope if a macro, @rope()"),
        ("model = my.Model()", "'my.Model()' is not a gin value: write @my.Model()"),
        ("path = gs://a/b", "a string needs quotes, write 'gs://a/b'"),
        ("path = [a b]", "the value '[a b]' cannot be read (bad)"),
    ],
)
def test_the_advice_names_what_to_write(line, advice):
    error = SyntaxError("Bad.\nmore of it", ("a.gin", 3, 1, f"  {line}\n"))
    assert advice in explain(error)
    assert explain(error).endswith(f"\n    {line}")


def test_a_syntax_error_without_its_line():
    assert explain(SyntaxError("bad")) == _no_binding()


def _no_binding() -> str:
    return "this is not NAME = VALUE, an include, an import or a 'Configurable:' block"


@pytest.mark.parametrize(
    ("text", "first", "stop", "is_open"),
    [
        ("a = [1,\n2\nb = 3", 1, 3, True),
        ("a = [1,\n2]\nb = 3", 1, 3, False),
        ("a = (\nb = 3", 1, 2, True),
        ("a = {\nb = 3", 1, 2, True),
        # The line that stops the parser is not looked at, nor what stands before the first.
        ("a = [1]\nb = [", 1, 2, False),
        ("a = [\nb = 2\nc = 3", 2, 3, False),
        # A bracket in a comment opens nothing.
        ("a = 1  # [\nb = 3", 1, 2, False),
        # One that shuts more than it opens is not open.
        ("a = 1]\nb = 3", 1, 2, False),
    ],
)
def test_whether_a_bracket_is_open(text, first, stop, is_open):
    assert is_bracket_open(text, first, stop) is is_open


def test_the_line_that_opens_a_bracket_is_named():
    text = "a = 1\n\n# (\n  b = [1,\nc = 2\n"
    assert explain_open_bracket(text, 1).startswith("1: a bracket or a quote that opens here")
    assert explain_open_bracket(text, 2).startswith("4: ")
    assert explain_open_bracket(text, 2).endswith("\n    b = [1,")
    # A file of nothing else ends at its last line.
    assert explain_open_bracket("#\n#", 1).startswith("2: ")
