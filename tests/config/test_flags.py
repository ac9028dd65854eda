"""The command line after the verb, taken apart."""

import inspect

import pytest

from t5x_style.config.flags import FlagBinding, Flags, parse_flags
from t5x_style.errors import UsageError


def _verb(*, steps: int = 1, verify: bool = False, dry_run: bool = False):
    """A verb."""


PARAMETERS = inspect.signature(_verb).parameters


def test_everything_at_once():
    flags = parse_flags(
        "verb",
        [
            "--gin_file=a.gin",
            "--gin_file",
            "b.gin",
            "--gin.LR=1e-3",
            "--gin.scope/Model.width=a=b",
            "--gin_search_paths=x,y",
            "--gin_search_paths=z",
            "--steps=3",
            "--verify",
            "--dry_run",
            "--json=True",
        ],
        PARAMETERS,
    )
    assert flags == Flags(
        gin_files=("a.gin", "b.gin"),
        search_paths=("x", "y", "z"),
        bindings=(
            FlagBinding("LR", "1e-3", "--gin.LR=1e-3"),
            FlagBinding("scope/Model.width", "a=b", "--gin.scope/Model.width=a=b"),
            FlagBinding("verb.steps", "3", "--steps=3"),
            FlagBinding("verb.verify", "True", "--verify"),
        ),
        dry_run=True,
        json=True,
    )


def test_help_in_both_spellings():
    assert parse_flags("verb", ["-h"], PARAMETERS).help
    assert parse_flags("verb", ["--help"], PARAMETERS).help
    assert not parse_flags("verb", [], PARAMETERS).help


def parse(*arguments: str) -> Flags:
    return parse_flags("verb", arguments, PARAMETERS)


def test_a_truth_value_may_be_written_out():
    assert parse("--verify=False").bindings == (
        FlagBinding("verb.verify", "False", "--verify=False"),
    )
    assert not parse("--dry_run=FALSE").dry_run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps"], r"^--steps: a value is missing: --steps=VALUE"),
        (["--steps="], r"^--steps=: a value is missing: --steps=VALUE .* --steps=\"''\"\)$"),
        (["--gin.=3"], r"^--gin\.=3: a name is missing: --gin\.NAME=3$"),
        (["--gin_file"], r"^--gin_file needs a value"),
        (["--gin_file", "--json"], r"^--gin_file needs a value"),
        (["--gin_file="], r"^--gin_file needs a value"),
        (["--json=yes"], r"^--json=yes: write --json alone, or --json=false$"),
        (["run.gin"], r"^'run.gin' is not a flag: did you mean --gin_file=run.gin\?$"),
        (["run"], r"^'run' is not a flag; see t5x-style verb --help$"),
        (["--LR=3"], r"^unknown flag --LR; did you mean --gin.LR=3\? \(a macro\)$"),
        (["--A.b=3"], r"^unknown flag --A.b; did you mean --gin.A.b=3\?$"),
        (["--gin-file=a"], r"^unknown flag --gin-file; did you mean --gin_file\?$"),
        (["--xyzzy"], r"^unknown flag --xyzzy; see t5x-style verb --help$"),
        (["--gin_search_paths=a,gs://b"], r"--gin_search_paths"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        parse(*arguments)
