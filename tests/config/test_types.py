"""Values against annotations, the pairs written down by hand."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pytest

from t5x_style.config.types import annotations_of, arithmetic, coerced, mismatch

if TYPE_CHECKING:
    import numpy as np


class Shape(Protocol):
    width: int


FITS = [
    (1, int), (1, float), (1.5, float), (True, bool), ("a", str), (None, int | None),
    (3, int | None), ("a", str | None), ([1, 2], Sequence[int]), ((1, 2), Sequence[int]),
    ([1], list[int]), ((1, "a"), tuple[int, str]), ((1, 2, 3), tuple[int, ...]),
    ([], Sequence[int]),
    ({"a": 1}, Mapping[str, float]), ({"a": [1]}, dict[str, list[int]]), ({"a": 1}, dict),
    ("x", Literal["x", "y"]), (2, Literal[1, 2]), (object(), Any), ("anything", object),
    ("a", str | os.PathLike), ([("a", 1)], Iterable[tuple[str, int]]), (3, "Unresolved"),
    (0.5, Annotated[float, "share"]), (3, Shape), (None, Callable | None),
    ("legal", str | Sequence[str]),
    (["a"], str | Sequence[str]), (1, int | str),
]  # fmt: skip
FITS_NOT = [
    ("1", int), ("1", float), (1.0, int), (True, int), (True, float), (1, bool), (0, bool),
    (1, str),
    (None, int), (None, str), ("a", int | None), ("ab", Sequence[str]), (3, Sequence[int]),
    (["a"], Sequence[int]), ([1.5], list[int]), ((1, 2), tuple[int, int, int]),
    ({"a": "b"}, Mapping[str, int]),
    ({1: 1}, Mapping[str, int]), ([1], Mapping[str, int]), ("z", Literal["x", "y"]),
    (True, Literal[1, 2]),
    (3, Callable), ("x", Callable | None), (3, os.PathLike), ("x", Annotated[float, "share"]),
    (1.5, int | str), ({"a": [1.5]}, dict[str, list[int]]),
]  # fmt: skip


@pytest.mark.parametrize(("value", "annotation"), FITS)
def test_fits(value, annotation):
    assert mismatch(value, annotation) is None


@pytest.mark.parametrize(("value", "annotation"), FITS_NOT)
def test_fits_not(value, annotation):
    problem = mismatch(value, annotation)
    assert problem
    assert problem.split()[0] in ("is", "has")


@pytest.mark.parametrize(
    ("value", "annotation", "advice"),
    [
        (1e6, int, "write 1_000_000"),
        ("0.01", float, "write 0.01 without quotes"),
        # gin has no word for what is no number, or for a number without end.
        ("nan", float, "is a string, not a number: write a finite number"),
        ("-inf", float, "is a string, not a number: write a finite number"),
        ("2*3", int, "write 6"),
        ("none", float | None, "write None"),
        (3, Sequence[int], "write [3]"),
        (3, str, "write '3'"),
        ("rop", Literal["rope", "alibi"], "did you mean 'rope'?"),
        # Of several containers, the one of the value's shape is meant.
        ({"a": "x"}, int | Mapping[str, int] | Sequence[int], "has an entry 'a': 'x' that is a"),
        (["x"], int | Mapping[str, int] | Sequence[int], "has an element 0, 'x', that is a"),
        ("x", int | Mapping[str, int] | Sequence[int], "not int | Mapping[str, int] | Sequence"),
    ],
)
def test_says_what_would_be_right(value, annotation, advice):
    assert advice in mismatch(value, annotation)


def test_string_annotations_are_resolved_where_nothing_need_be_imported():
    def function(a: int | None, b: np.ndarray, c: Sequence[int], d="untyped"):
        """Of a module whose annotations are strings."""

    found = annotations_of(function)
    assert found["a"] == int | None
    assert found["b"] == "np.ndarray"
    assert found["c"] == Sequence[int]
    assert mismatch(3, found["b"]) is None
    assert mismatch(3, found["d"]) is None


def test_a_type_imported_for_type_checkers_is_found_once_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "heavy_for_types.py").write_text("class Mesh:\n    pass\n")
    (tmp_path / "light_for_types.py").write_text(
        "from __future__ import annotations\nfrom typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from heavy_for_types import Mesh as M\n\n"
        "def verb(mesh: M | None = None):\n    pass\n"
    )
    verb = importlib.import_module("light_for_types").verb
    assert annotations_of(verb) == {"mesh": "M | None"}
    assert mismatch(3, annotations_of(verb)["mesh"]) is None
    heavy = importlib.import_module("heavy_for_types")
    assert annotations_of(verb) == {"mesh": heavy.Mesh | None}
    assert "not a Mesh: write a reference such as @Mesh()" in mismatch(
        3, annotations_of(verb)["mesh"]
    )


@pytest.mark.parametrize(
    ("text", "value", "annotation", "meant"),
    [
        ("true", "true", bool, True),
        ("false", "false", bool | None, False),
        ("true", "true", str, "true"),
        ("2024", 2024, str, "2024"),
        ("0010", 10, str | None, "0010"),
        ("3", 3, int | str, 3),
        ("3", 3, int, 3),
        ("x", "x", float, "x"),
        ("[1]", [1], Sequence[int], [1]),
        ("3", 3, Mapping[str, int], 3),
    ],
)
def test_a_flag_is_meant_as_its_parameter_takes_it(text, value, annotation, meant):
    assert coerced(text, value, annotation) == meant
    assert type(coerced(text, value, annotation)) is type(meant)


@pytest.mark.parametrize(
    ("text", "result"),
    [("2*3", 6), ("1e6 / 4", 250_000.0), ("-(2+1)**2", -9), ("7//2", 3), ("512 - 1", 511)],
)
def test_arithmetic(text, result):
    assert arithmetic(text) == result


@pytest.mark.parametrize(
    "text", ["abc", "f(2)", "2*", "1/0", "9**9**9", "__import__('os')", "'a'*3"]
)
def test_what_is_not_arithmetic(text):
    assert arithmetic(text) is None
