"""Every mistake that gin takes without a word, or answers badly, is refused before any work.

The cases are those of a T5X user's day: each was run against gin 0.5 alone, and either passed
silently or gave a message that names neither the place nor the remedy.
"""

import random

import gin
import pytest

from t5x_style.config import checks
from t5x_style.config.flags import FlagBinding
from t5x_style.errors import UsageError
from tests.commands.conftest import RUN_FILE

# What is written below the run file (lines 1 to 11) -> what the message must hold.
IN_A_FILE = {
    "misspelt macro": (
        "LEARNING_RAET = 9.0",
        ["run.gin:12: nothing uses a macro LEARNING_RAET; did you mean 'LEARNING_RATE'?"],
    ),
    "lower-case macro": (
        "learning_rate = 9.0",
        ["run.gin:12: nothing uses a macro learning_rate; did you mean 'LEARNING_RATE'?"],
    ),
    "misspelt scope": (
        "toy.sources = [@train/ToySource()]\ntrain/ToySource.path = 'x'\n"
        "trian/ToySource.share = 2.0",
        [
            "run.gin:14: nothing reads trian/ToySource.share",
            "did you mean 'train/ToySource.share'?",
        ],
    ),
    "scope where there is none": (
        "train/ToyModel.layers = 9",
        ["run.gin:12: nothing reads train/ToyModel.layers", "did you mean 'ToyModel.layers'?"],
    ),
    "binding of what is never called": (
        "toy_unused.a = 9.0",
        ["run.gin:12: nothing reads toy_unused.a, because toy does not use toy_unused"],
    ),
    "misspelt parameter": (
        "ToyModel.layerss = 9",
        ["run.gin:12: ToyModel has no parameter 'layerss'; did you mean 'layers'?"],
    ),
    "misspelt configurable": (
        "ToyModle.layers = 9",
        ["run.gin:12: no configurable is named 'ToyModle'; did you mean 'ToyModel'?"],
    ),
    "misspelt reference": (
        "toy.schedule = @toy_shedule",
        ["run.gin:12: no configurable is named 'toy_shedule'; did you mean 'toy_schedule'?"],
    ),
    "undefined macro": (
        "toy_adamw.b1 = %LEARNING_RAET",
        [
            "run.gin:12: toy_adamw.b1 = %LEARNING_RAET, but no macro LEARNING_RAET is defined",
            "did you mean 'LEARNING_RATE'?",
        ],
    ),
    "macro of itself": ("toy_adamw.b1 = %A\nA = %B\nB = %A", ["run.gin:1", "refers to itself"]),
    "function without parentheses": (
        "toy.lengths = @toy_unused\ntoy_unused.a = 1.0",
        ["run.gin:12: toy.lengths = @toy_unused is the function itself: write @toy_unused()"],
    ),
    "configurable of itself": (
        "toy.schedule = @toy_schedule()\ntoy_schedule.step = 3\n"
        "toy_schedule.peak = @toy_schedule()",
        ["run.gin:14: toy_schedule.peak refers to itself"],
    ),
    "object of another class": (
        "toy.sources = [@ToyModel()]",
        ["run.gin:12: toy.sources", "that is a ToyModel, not a ToySource"],
    ),
    "object where a list is wanted": (
        "toy.sources = @ToyModel()",
        ["run.gin:12: toy.sources = @ToyModel() is a ToyModel, not a Sequence[ToySource]"],
    ),
    "string for a float": (
        "toy_adamw.b1 = '0.9'",
        ["run.gin:12: toy_adamw.b1 = '0.9' is a string, not a number: write 0.9 without quotes"],
    ),
    "string for a float through macros": (
        "toy_adamw.b1 = %B1\nB1 = %B2\nB2 = '0.9'",
        ["run.gin:14: B2 (for toy_adamw.b1) = '0.9' is a string, not a number"],
    ),
    "float for a whole number": (
        "ToyModel.layers = 1e1",
        ["run.gin:12: ToyModel.layers = 10.0 is a float, not a whole number: write 10"],
    ),
    "truth value for a number": (
        "toy_adamw.b1 = True",
        ["run.gin:12: toy_adamw.b1 = True is a truth value, not a number"],
    ),
    "number for a truth value": (
        "toy.verify = 1",
        ["run.gin:12: toy.verify = 1 is a whole number, not True or False"],
    ),
    "None where it is not allowed": (
        "ToyModel.layers = None",
        ["run.gin:12: ToyModel.layers = None is not a whole number"],
    ),
    "not one of the allowed": (
        "ToyModel.kind = 'rop'",
        ["run.gin:12: ToyModel.kind = 'rop' is not one of 'alibi', 'rope'; did you mean 'rope'?"],
    ),
    "wrong inside a mapping": (
        "toy.lengths = {'targets': '512'}",
        ["run.gin:12: toy.lengths", "'targets': '512' that is a string, not a whole number"],
    ),
    "class without parentheses": (
        "toy.sources = [@ToySource]\nToySource.path = 'x'",
        ["run.gin:12: toy.sources", "is the class itself: write @ToySource()"],
    ),
    "bare word": (
        "toy_adamw.b1 = abc",
        ["run.gin:12: 'abc' is not a gin value: write 'abc' in quotes", "%abc", "b1 = abc"],
    ),
    "lower-case true": ("toy.verify = true", ["run.gin:12: 'true' is not a gin value: write True"]),
    "lower-case none": (
        "toy.lengths = null",
        ["run.gin:12: 'null' is not a gin value: write None"],
    ),
    "arithmetic": ("toy_adamw.b1 = 2*3", ["run.gin:12: gin does no arithmetic: write 6 instead"]),
    "path without quotes": (
        "OTHER = gs://bucket/x",
        ["run.gin:12: 'gs://bucket/x' is not a gin value: a string needs quotes"],
    ),
    "call without @": (
        "toy.lengths = toy_unused()",
        ["run.gin:12: 'toy_unused()' is not a gin value: write @toy_unused()"],
    ),
    "YAML": ("toy_adamw.b1: 0.9", ["run.gin:12: write toy_adamw.b1 = 0.9"]),
    "no value": ("toy_adamw.b1 =", ["run.gin:12: toy_adamw.b1 = … has no value"]),
    "no statement": ("toy_adamw.b1 0.9", ["run.gin:12: this is not NAME = VALUE"]),
    "open bracket": (
        "\n# a remark\ntoy.sizes = [3,\n4\nOTHER = 5",
        ["run.gin:14", "toy.sizes = [3,"],
    ),
    "twice in one file": (
        "toy_adamw.learning_rate = 3e-3",
        ["run.gin:12: toy_adamw.learning_rate is already set in this file, at", "run.gin:11"],
    ),
    "missing include": ("include 'nosuch.gin'", ["run.gin:12: no gin file 'nosuch.gin'"]),
    "include from a bucket": (
        "include 'gs://bucket/x.gin'",
        ["run.gin:12: include = 'gs://bucket/x.gin': gs:// is not a file system"],
    ),
    "missing import": ("import nosuch.module", ["run.gin:12: cannot import nosuch.module"]),
}

ON_THE_COMMAND_LINE = {
    "misspelt macro": ("--gin.LEARNING_RAET=9.0", ["did you mean 'LEARNING_RATE'?"]),
    "lower-case macro": ("--gin.learning_rate=9.0", ["did you mean 'LEARNING_RATE'?"]),
    "string for a number": (
        "--gin.LEARNING_RATE=abc",
        ["LEARNING_RATE (for toy_adamw.learning_rate) = 'abc' is a string, not a number"],
    ),
    "quoted number": ("--gin.LEARNING_RATE='0.1'", ["is a string, not a number: write 0.1"]),
    "arithmetic": ("--gin.TRAIN_STEPS=2*3", ["gin does no arithmetic, write 6"]),
    "float for a whole number": ("--gin.TRAIN_STEPS=1e3", ["write 1_000"]),
    "lower-case none": ("--gin.toy_adamw.warmup=none", ["(or None: write None)"]),
    "own parameter": ("--steps=many", ["toy.steps = 'many' is a string, not a whole number"]),
    "number for an object": ("--model=3", ["write a reference such as @ToyModel()"]),
    "misspelt parameter": ("--gin.ToyModel.widht=4", ["did you mean 'width'?"]),
    "misspelt reference": ("--model=@ToyModle()", ["did you mean 'ToyModel'?"]),
    "undefined macro": ("--gin.ToyModel.layers=%LAYERS", ["no macro LAYERS is defined"]),
    "open bracket": ("--sizes=[3", ["is neither a gin value", "left open?"]),
    "not a name": ("--gin.a-b=3", ["'a-b' is not a name gin can bind"]),
}


@pytest.mark.parametrize(("lines", "expected"), IN_A_FILE.values(), ids=IN_A_FILE)
def test_a_mistake_in_a_file_is_named_with_its_line(run_toy, lines, expected):
    status, result, err = run_toy(text=RUN_FILE.lstrip("\n").join(["\n", lines + "\n"]))
    assert (status, result) == (2, None)
    assert len(err) < 600  # a message, not the whole configuration
    for fragment in expected:
        assert fragment in err


@pytest.mark.parametrize(
    ("flag", "expected"), ON_THE_COMMAND_LINE.values(), ids=ON_THE_COMMAND_LINE
)
def test_a_mistake_on_the_command_line_is_named_with_its_flag(run_toy, flag, expected):
    status, result, err = run_toy(flag)
    assert (status, result) == (2, None)
    for fragment in [f"error: {flag}: ", *expected]:
        assert fragment in err


PIECES = [
    *"$?!'\"()[]{}@%/\\#=:.-*`~,\n\t\0é\u200b", "1e", "0x", "1_", "toy", "@ToyModel()", "@ToyModel",
    "%LEARNING_RATE", "include 'x'", "import os", "from a import b", "None", "%gin.REQUIRED",
    "a/b/", "lambda", "f'x'", "1j", "...", "@gin.macro()", "@toy()", "gin.macro.value",
    "@toy_adamw",
]  # fmt: skip


def test_whatever_is_typed_is_run_or_refused(run_toy):
    chance = random.Random(0)
    for _ in range(400):
        lines = RUN_FILE.splitlines()
        junk = "".join(chance.choices(PIECES, k=chance.randint(1, 4)))
        number = chance.randrange(len(lines))
        place = chance.randrange(len(lines[number]) + 1)
        flags = []
        if chance.random() < 0.5:
            rest = lines[number][place + chance.randint(0, 3) :]
            lines[number] = lines[number][:place] + junk + rest
        else:
            names = ["LEARNING_RATE", "ToyModel.width", "MODEL_DIR", "toy.sources", junk]
            flags = [f"--gin.{chance.choice(names)}={junk}"]
        text = "\n".join(lines) + "\n"
        status, _, err = run_toy(*flags, text=text)
        assert status in (0, 2), (text, flags, err)
        assert len(err) < 2000


def test_all_missing_values_are_listed_with_the_flags_to_type(run_toy):
    text = RUN_FILE.replace("TRAIN_STEPS = 20", "TRAIN_STEPS = %gin.REQUIRED").replace(
        "ToyModel.width = 8\n", ""
    )
    status, _, err = run_toy(text=text, model_dir=False)
    assert status == 2
    assert "3 values are missing" in err
    for flag in ("--gin.MODEL_DIR=<str>", "--gin.TRAIN_STEPS=<int>", "--gin.ToyModel.width=<int>"):
        assert flag in err


def test_a_missing_own_parameter_is_asked_for_by_its_short_flag(run_toy):
    text = RUN_FILE.replace("toy.model_dir = %MODEL_DIR\n", "").replace(
        "MODEL_DIR = %gin.REQUIRED\n", ""
    )
    status, _, err = run_toy(text=text, model_dir=False)
    assert status == 2
    assert "--model_dir=<str>" in err


def test_several_mistakes_come_in_one_message(run_toy):
    _, _, err = run_toy("--gin.LEARNING_RAET=1", "--gin.TRAIN_STEPS=1.5", "--gin.NOPE=1")
    assert "3 mistakes in the configuration" in err
    assert err.count("\n- ") == 3


def test_a_misspelt_required_macro_shows_both_ends(run_toy):
    _, _, err = run_toy("--gin.MODEL_DRI=/tmp/x", model_dir=False)
    assert "--gin.MODEL_DIR=<str>" in err
    assert "did you mean 'MODEL_DIR'?" in err


def test_what_a_constructor_refuses_is_traced_to_where_it_was_set(run_toy):
    text = RUN_FILE.replace("ToyModel.width = 8", "ToyModel.width = %WIDTH\nWIDTH = 7")
    status, _, err = run_toy(text=text)
    assert status == 2
    assert "error: ToyModel.width = 7 is odd" in err
    assert "ToyModel.width is set at" in err
    assert "run.gin:10, WIDTH at" in err
    assert "In call to configurable" not in err


def test_unquoted_strings_and_shell_words(run_toy):
    status, result, _ = run_toy("--gin.MODEL_DIR=gs://bucket/run-1,x", "--verify=true")
    assert status == 0
    assert result["model_dir"] == "gs://bucket/run-1,x"
    assert result["verify"] is True
    assert run_toy('--gin.MODEL_DIR="/quoted as in T5X"')[1]["model_dir"] == "/quoted as in T5X"
    assert run_toy("--gin.MODEL_DIR=2024")[1]["model_dir"] == "2024"
    assert run_toy("--model_dir=/own", "--verify", model_dir=False)[1]["model_dir"] == "/own"
    assert run_toy("--sizes=[1, 2]", "--lengths={'targets': 512}")[1]["sizes"] == [1, 2]


def test_a_whole_number_is_good_for_a_float(run_toy):
    assert run_toy("--gin.LEARNING_RATE=1")[1]["optimizer"]["learning_rate"] == 1


def test_choosing_another_optimizer_puts_the_first_one_s_settings_aside(run_toy):
    status, result, _ = run_toy("--optimizer=@toy_sgd()", "--gin.toy_sgd.learning_rate=0.5")
    assert status == 0
    assert result["optimizer"]["name"] == "sgd"
    assert "toy_adamw" not in result["config"]
    # But not those that are typed beside the choice: they are a mistake.
    status, _, err = run_toy(
        "--optimizer=@toy_sgd()", "--gin.toy_sgd.learning_rate=0.5", "--gin.toy_adamw.b1=0.8"
    )
    assert status == 2
    assert "--gin.toy_adamw.b1=0.8: nothing reads toy_adamw.b1" in err


def test_overriding_a_binding_puts_its_macro_aside(run_toy):
    status, result, _ = run_toy("--steps=3")
    assert (status, result["steps"]) == (0, 3)
    assert "TRAIN_STEPS" not in result["config"]


def test_a_macro_that_is_none_may_stay_unused_in_a_file_but_not_on_the_command_line(run_toy):
    assert run_toy(text=RUN_FILE + "UNUSED = None\n")[0] == 0
    assert run_toy("--gin.UNUSED=None")[0] == 2


def test_what_a_file_says_about_another_verb_is_left_alone(toy, run_toy, monkeypatch):
    from t5x_style.commands import main

    monkeypatch.setitem(main.VERBS, "toy_other", "another")
    text = RUN_FILE + "toy_other.a = %OTHER\ntoy_other.b = @toy_unused()\nOTHER = 2.0\n"
    status, result, err = run_toy(text=text + "toy_unused.a = 3.0\n")
    assert status == 0, err
    assert "OTHER" not in result["config"]
    assert run_toy("--gin.toy_unused.a=3.0", text=text)[0] == 2


def test_the_verb_s_own_calls_later_do_not_enter_the_operative_config(run_toy):
    text = RUN_FILE + "toy.schedule = @toy_schedule\ntoy_schedule.peak = 3.0\n"
    status, result, _ = run_toy(text=text)
    assert status == 0
    assert result["scheduled"] == 9.0
    assert "toy_schedule.peak = 3.0" in result["config"]


RICH = """
LEARNING_RATE = %BASE
BASE = 2e-3
MODEL_DIR = %gin.REQUIRED
UNUSED = None

toy:
  model = @ToyModel()
  optimizer = @fast/toy_adamw()
  model_dir = %MODEL_DIR
  schedule = @toy_schedule
  sources = [@legal/ToySource(), @general/ToySource()]
  lengths = {'targets': %LENGTH}
LENGTH = 512
ToyModel.width = 8
toy_adamw.learning_rate = %LEARNING_RATE
fast/toy_adamw.b1 = 0.8
toy_schedule.peak = 3.0
legal/ToySource.path = 'legal, with a comma'
ToySource.path = 'general'
"""


def test_the_operative_config_alone_starts_the_same_run(run_toy):
    status, first, err = run_toy(text=RICH)
    assert status == 0, err
    status, second, err = run_toy(text=first["config"], model_dir=False)
    assert status == 0, err
    assert second == first
    # A dry run of it too: nobody may have bound dry_run.
    status, dry, _ = run_toy("--dry_run", text=first["config"], model_dir=False)
    assert (status, dry["dry_run"]) == (0, True)
    assert "UNUSED" not in first["config"]
    assert "include" not in first["config"]
    assert "ToyModel.dropout = 0.0" in first["config"]  # a default
    assert checks.config_differences(first["config"], second["config"]) == []


def test_plain_python_needs_no_configuration(toy):
    gin.clear_config()
    checks.parse()
    result = toy.toy(model=toy.ToyModel(width=4), optimizer={}, model_dir="/tmp/x", dry_run=False)
    assert result["model"]["width"] == 4


def test_plain_python_may_clear_gin_after_a_command(run_toy, toy):
    """In a notebook, say: the places of bindings outlive the bindings."""
    assert run_toy("--gin.ToyModel.layers=3")[0] == 0
    gin.clear_config()
    result = toy.toy(model=toy.ToyModel(width=4), optimizer={}, model_dir="/tmp/x", dry_run=False)
    assert result["model"]["width"] == 4
    assert checks.origins("ToyModel.layers = 3 is wrong") == ""


def test_a_verb_shares_the_bindings_of_another_but_its_own_win(toy, tmp_path):
    path = tmp_path / "run.gin"
    path.write_text("toy.steps = 3\ntoy.verify = True\ntoy.dry_run = True\n")
    checks.parse([str(path)], [FlagBinding("toy_other.dry_run", "False", "--dry_run=False")])
    checks.share_bindings(toy.toy_other, toy.toy)
    # `steps` and `verify` are no parameters of the other verb, which has its own `dry_run`.
    assert gin.get_bindings(toy.toy_other) == {"dry_run": False}
    checks.parse([str(path)])
    checks.share_bindings(toy.toy_other, toy.toy)
    assert gin.get_bindings(toy.toy_other) == {"dry_run": True}
    assert checks.origins("toy_other.dry_run = True is wrong") == (
        f"\n  toy_other.dry_run is set at {path}:3"
    )


def test_constructors_are_called_without_the_verb(toy, tmp_path):
    path = tmp_path / "run.gin"
    path.write_text(RUN_FILE.replace("ToyModel.width = 8", "ToyModel.width = 7"))
    checks.parse([str(path)], [FlagBinding("MODEL_DIR", "'x'", "--gin.MODEL_DIR=x")])
    checks.check(toy.toy)
    with pytest.raises(UsageError) as refused:
        checks.evaluate_bindings(toy.toy)
    assert str(refused.value) == (
        f"ToyModel.width = 7 is odd: write an even number\n  ToyModel.width is set at {path}:10"
    )
