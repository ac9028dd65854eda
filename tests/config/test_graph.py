"""gin's private names, and macros replaced by their values."""

import importlib.metadata
import pathlib
import tokenize

import pytest
from gin import config as gin_config
from gin import config_parser

from t5x_style.config import checks, graph

# graph.py was written for these versions of gin-config, and is the one file that uses these names.
OLDEST, NEWEST = (0, 5), (0, 6)
PRIVATE_NAMES = (
    "_CONFIG",
    "_IMPORTS",
    "_OPERATIVE_CONFIG",
    "_REGISTRY",
    "_config_str",
    "_inverse_lookup",
    "_might_have_parameter",
    "_parse_scope",
    "_retrieve_constant",
)


def test_gin_has_the_private_names_that_graph_uses():
    version = importlib.metadata.version("gin-config")
    release = tuple(int(part) for part in version.split(".")[:2])
    advice = (
        f"gin-config {version} is installed; t5x_style/config/graph.py needs >=0.5,<0.6: read"
        " there how gin's private names are used before another version is allowed"
    )
    assert OLDEST <= release < NEWEST, advice
    missing = [name for name in PRIVATE_NAMES if not hasattr(gin_config, name)]
    assert missing == [], f"gin has no {', '.join(missing)}: {advice}"
    assert hasattr(config_parser.ConfigParser, "_advance_one_token"), advice
    with graph.parse_context() as context:
        assert graph.names_come_from_imports(context) is False, advice


def test_no_other_file_uses_them():
    package = checks.__file__.rpartition("/config/")[0]
    users = set()
    for path in pathlib.Path(package).rglob("*.py"):
        with path.open("rb") as file:
            names = {token.string for token in tokenize.tokenize(file.readline)}
        if names & {*PRIVATE_NAMES, "_dynamic_registration", "_advance_one_token"}:
            users.add(path.relative_to(package).as_posix())
    assert users == {"config/graph.py"}


@pytest.fixture
def bind(toy, tmp_path):
    def bind(text: str) -> None:
        (tmp_path / "a.gin").write_text(text)
        checks.parse([str(tmp_path / "a.gin")])

    return bind


def test_macros_are_replaced_inside_containers(bind):
    bind("A = {'x': [%B, (1, %B)]}\nB = %C\nC = 3\n")
    assert graph.resolved(graph.bindings()["A", graph.MACRO]["value"]) == {"x": [3, (1, 3)]}
    assert graph.last_macro(graph.bindings()["B", graph.MACRO]["value"]) == "C"


@pytest.mark.parametrize("text", ["A = [%B]", "A = [%A]", "A = %B\nB = %gin.REQUIRED"])
def test_a_macro_without_a_value_has_no_resolved_value(bind, text):
    bind(text + "\n")
    with pytest.raises(LookupError):
        graph.resolved(graph.bindings()["A", graph.MACRO]["value"])


def test_macros_that_no_binding_reads(bind):
    bind("A = 1\nB = %A\nC = 2\n")
    assert graph.unread_macros() == ["B", "C"]
    assert graph.unread_macros([("", {"x": graph.bindings()["B", graph.MACRO]["value"]})]) == [
        "B",
        "C",
    ]
