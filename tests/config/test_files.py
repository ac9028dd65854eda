"""Where gin files are found, and that gin's language is left as it is."""

import gin
import pytest

from t5x_style.config.files import ROOT, GinReader
from t5x_style.errors import UsageError
from tests.commands.conftest import RUN_FILE


@pytest.fixture
def reader(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    gin.clear_config()
    return GinReader(search_paths=(str(tmp_path / "more"),))


def test_the_current_folder_comes_before_the_search_paths_and_the_checkout(reader, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "a.gin").write_text("X = 1\n")
    assert reader.find("a.gin", "here") == (tmp_path / "more" / "a.gin").relative_to(tmp_path)
    (tmp_path / "a.gin").write_text("X = 2\n")
    assert str(reader.find("a.gin", "here")) == "a.gin"
    assert reader.find("t5x_style/errors.py", "here") == ROOT / "t5x_style" / "errors.py"
    with pytest.raises(UsageError, match=r"here: no gin file 'aa.gin'; did you mean 'a.gin'\?"):
        reader.find("aa.gin", "here")


def test_includes_are_places_too(run_toy, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.gin").write_text("# a model\nToyModel.layers = 3.5\n")
    text = RUN_FILE + f"include '{tmp_path}/models/m.gin'\n"
    status, _, err = run_toy(text=text)
    assert status == 2
    assert f"{tmp_path}/models/m.gin:2: ToyModel.layers = 3.5" in err
    (tmp_path / "models" / "m.gin").write_text("ToyModel.layers = 3\n")
    assert run_toy(text=text)[1]["model"]["layers"] == 3
    # A later file and a flag may set what an included one has set.
    assert run_toy(text=text + "ToyModel.layers = 4\n")[1]["model"]["layers"] == 4
    assert run_toy("--gin.ToyModel.layers=5", text=text)[1]["model"]["layers"] == 5


def test_a_file_that_includes_itself(reader, tmp_path):
    (tmp_path / "a.gin").write_text("include 'b.gin'\n")
    (tmp_path / "b.gin").write_text("\ninclude 'a.gin'\n")
    with pytest.raises(UsageError, match=r"b.gin:2: 'a.gin' includes itself"):
        reader.read_file("a.gin")
    with pytest.raises(UsageError, match=r"b.gin:2: 'a.gin' includes itself"):
        reader.expanded("a.gin", "here")


def test_expanded_puts_includes_in_their_places(reader, tmp_path):
    (tmp_path / "a.gin").write_text("X = 1\ninclude 'b.gin'\nZ = 3")
    (tmp_path / "b.gin").write_text("Y = 2")
    assert reader.expanded("a.gin", "here") == "X = 1\nY = 2\nZ = 3\n"


def test_not_a_text_file(reader, tmp_path):
    (tmp_path / "a.gin").write_bytes(b"Y = 1\nX = '\xff\xfe'\n")
    for read in (reader.read_file, lambda name: reader.expanded(name, "here")):
        with pytest.raises(UsageError, match=r"a\.gin: not UTF-8 text: byte 11 \(line 2\) is 0xff"):
            read("a.gin")


def test_a_byte_order_mark_and_odd_ends_of_lines(run_toy, reader, tmp_path):
    """Of the file and of the files that it includes; U+2028 ends no line, U+FEFF inside stays."""
    (tmp_path / "m.gin").write_bytes(b"\xef\xbb\xbfToyModel.layers = 3\r")
    odd = "a\u2028b\u0085c\ufeff"
    run_file = RUN_FILE.replace("%gin.REQUIRED", f"'{odd}'")
    text = f"\ufeffinclude '{tmp_path}/m.gin'\r\n{run_file}"
    status, result, err = run_toy(text=text, model_dir=False)
    assert status == 0, err
    assert (result["model"]["layers"], result["model_dir"]) == (3, odd)
    assert run_toy(text=result["config"], model_dir=False)[1] == result
    (tmp_path / "a.gin").write_text("\ufeffX = 'a\u2028b\x0cc'\ninclude 'b.gin'\n", newline="")
    (tmp_path / "b.gin").write_text("\ufeffY = 2\r\n", newline="")
    assert reader.expanded("a.gin", "here") == "X = 'a\u2028b\x0cc'\nY = 2\n"


def test_a_mistake_after_a_line_separator_has_the_line_that_an_editor_shows(reader, tmp_path):
    (tmp_path / "a.gin").write_text("# a\u2028b\x0cc\nX = [1,\n")
    with pytest.raises(
        UsageError, match=r"a\.gin:2: a bracket or a quote that opens here is never"
    ):
        reader.read_file("a.gin")


def test_imports_of_one_s_own_modules(run_toy, tmp_path, monkeypatch):
    (tmp_path / "my_tasks_for_gin.py").write_text(
        "import gin\n@gin.configurable\ndef my_optimizer(learning_rate: float):\n"
        "    return {'name': 'mine', 'learning_rate': learning_rate}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import my_tasks_for_gin\n" + RUN_FILE.replace("toy_adamw", "my_optimizer")
    status, result, err = run_toy(text=text)
    assert status == 0, err
    assert result["optimizer"]["name"] == "mine"
    assert "import my_tasks_for_gin" in result["config"]


def test_dynamic_registration_as_in_t5x(run_toy, tmp_path, monkeypatch):
    (tmp_path / "my_plain_module.py").write_text(
        "def optimizer(learning_rate: float = 1.0):\n    return {'learning_rate': learning_rate}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = """
from __gin__ import dynamic_registration
import my_plain_module
from t5x_style.commands import toy
toy.toy.model = @toy.ToyModel()
toy.toy.optimizer = @my_plain_module.optimizer()
toy.toy.model_dir = %MODEL_DIR
toy.ToyModel.width = 8
my_plain_module.optimizer.learning_rate = 0.5
"""
    status, result, err = run_toy(text=text)
    assert status == 0, err
    assert result["optimizer"] == {"learning_rate": 0.5}
    status, again, err = run_toy(text=result["config"], model_dir=False)
    assert status == 0, err
    assert again["optimizer"] == {"learning_rate": 0.5}
    bad = text.replace("learning_rate = 0.5", "learning_rate = 'x'")
    assert "is a string, not a number" in run_toy(text=bad)[2]
    status, _, err = run_toy(text=text.replace("@my_plain_module", "@my_plane_module"))
    assert status == 2
    assert "'my_plane_module' was not provided by an import statement" in err


RULES = """
import dataclasses
import gin

@gin.configurable
@dataclasses.dataclass(frozen=True)
class MyRule:
    learning_rate: float = 0.5
    state_bytes: int = 0

    def update(self, gradient):
        return -self.learning_rate * gradient

@gin.configurable
class MyPlainRule:
    def __init__(self):
        self.learning_rate, self.state_bytes = 0.25, 4

    def update(self, gradient):
        return -self.learning_rate * gradient

@gin.configurable
@dataclasses.dataclass(frozen=True)
class MyHalfRule:
    rate: float = 0.5

@gin.configurable
class MyEmptyRule:
    pass

@gin.configurable
def my_rule_factory():
    return MyRule(1.0)
"""


def test_a_protocol_takes_any_class_that_has_its_members(run_toy, tmp_path, monkeypatch):
    (tmp_path / "my_rules_for_gin.py").write_text(RULES)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "import my_rules_for_gin\n" + RUN_FILE
    for name, updated in (("MyRule", -1.0), ("MyPlainRule", -0.5), ("my_rule_factory", -2.0)):
        status, result, err = run_toy(text=text + f"toy.rule = @{name}()\n")
        assert (status, err.count("error")) == (0, 0), err
        assert result["updated"] == updated
    for rule, problem in (
        (
            "@MyHalfRule()",
            "is a MyHalfRule, not a ToyRule | None: it has no learning_rate, state_bytes, update",
        ),
        ("@MyEmptyRule()", "is a MyEmptyRule, not a ToyRule | None: it has no update"),
        ("@MyRule", "is the class itself: write @MyRule()"),
        ("3", "is a whole number, not a ToyRule: write a reference such as @NAME()"),
    ):
        status, result, err = run_toy(text=text + f"toy.rule = {rule}\n")
        assert (status, result) == (2, None)
        assert f"toy.rule = {rule} {problem}" in err
