"""The command line after the verb, taken apart."""

import inspect

from t5x_style.config.flags import FlagBinding, Flags, parse_flags


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
