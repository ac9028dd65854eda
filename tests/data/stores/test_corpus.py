"""Names that do not meet are refused with the nearest one that does."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest

import t5x_style.data
import t5x_style.optim
from t5x_style.data import Corpus, Source, Tokenizer
from t5x_style.errors import UsageError

SOURCES = [Source(name=name, splits={"train": "x"}) for name in ("legal", "general")]
BLEND = {"legal_general": {"legal": 0.51, "general": 0.49}}


def corpus(**arguments):
    defaults = {
        "tokenizer": Tokenizer("x.model"),
        "mixture_or_task_name": "legal_general",
        "cache_dir": "stores",
        "sources": SOURCES,
        "mixtures": BLEND,
    }
    return Corpus(**defaults | arguments)


def test_a_mixture_and_a_task_by_name():
    assert corpus().declared_shares("legal_general") == {"legal": 0.51, "general": 0.49}
    assert corpus(mixture_or_task_name="legal").declared_shares("legal") == {"legal": 1.0}
    elsewhere = corpus(mixture_or_task_name="theirs", mixture_or_task_module="their.tasks")
    assert elsewhere.declared_shares("theirs") is None


NESTED = {
    "law": {"statutes": 0.25, "cases": 0.75},
    "prose": {"books": 0.5, "cases": 0.5},
    "domain": {"law": 0.4, "prose": 0.4, "books": 0.2},
    "blend": {"domain": 0.5, "general": 0.5, "news": 0},
}
NAMES = ("statutes", "cases", "books", "general", "news")
TASKS = [Source(name=name, splits={"train": "x"}) for name in NAMES]


def test_mixtures_nest_and_their_shares_multiply():
    """By hand: cases are reached by law, 0.5 x 0.4 x 0.75, and by prose, 0.5 x 0.4 x 0.5."""
    nested = corpus(sources=TASKS, mixtures=NESTED, mixture_or_task_name="blend")
    shares = {"statutes": 0.05, "cases": 0.25, "books": 0.2, "general": 0.5, "news": 0.0}
    assert nested.declared_shares("blend") == pytest.approx(shares)
    assert list(nested.declared_shares("blend")) == list(shares), "in the order of their names"
    # The order of the declarations is the user's own.
    upside_down = dict(reversed(NESTED.items()))
    other = corpus(sources=TASKS, mixtures=upside_down, mixture_or_task_name="blend")
    assert other.declared_shares("blend") == nested.declared_shares("blend")
    # What was read as a sum of 1 counts as 1 within another mixture, too.
    thirds = {"three": dict.fromkeys(["statutes", "cases", "books"], 0.333), "m": {"three": 1}}
    shares = corpus(sources=TASKS, mixtures=thirds, mixture_or_task_name="m").declared_shares("m")
    assert shares == pytest.approx(dict.fromkeys(["statutes", "cases", "books"], 1 / 3))


@pytest.mark.parametrize(
    "mixtures",
    [
        {"blend": {"blend": 1.0}},
        {"blend": {"a": 0.5, "general": 0.5}, "a": {"b": 1.0}, "b": {"blend": 1.0}},
    ],
)
@pytest.mark.parametrize("module", [None, "their.tasks"])
def test_a_mixture_that_contains_itself_is_refused_by_name(mixtures, module):
    with pytest.raises(UsageError, match=r"contains itself: .*blend") as refused:
        corpus(mixtures=mixtures, mixture_or_task_name="blend", mixture_or_task_module=module)
    for name in mixtures:
        assert name in str(refused.value)


def test_the_builder_gets_the_same_corpus():
    caches = {"use_cached_tasks": True, "cached_task_dirs": ["caches"]}
    original = corpus(
        tokenizer=Tokenizer("x.json", "</s>"),
        seed=3,
        workers=2,
        mixture_or_task_module="their.tasks",
        **caches,
    )
    read = Corpus.from_json(original.to_json())
    assert read.tokenizer == original.tokenizer
    assert (read.use_cached_tasks, *read.cached_task_dirs) == (True, "caches")
    assert Corpus.from_json(original.to_json()).to_json() == original.to_json()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixture_or_task_name": "legl"}, "MIXTURE_OR_TASK_NAME = 'legl'.*mean 'legal'"),
        ({"mixtures": {"m": {"legal": 0.5, "generl": 0.5}}}, "'generl'.*did you mean 'general'"),
        ({"mixtures": {"legal_general": {"legal": 0.51, "general": 0.4}}}, "sum to 0.91"),
        ({"sources": [SOURCES[0], SOURCES[0], SOURCES[1]]}, "'legal' is given twice"),
        ({"mixtures": {**BLEND, "legal": {"legal": 1.0}}}, "'legal' is given twice"),
        ({"sources": [], "mixtures": {}}, "no mixture, no source"),
        ({"cached_task_dirs": "caches"}, "'caches' must be a list of folders"),
        ({"use_cached_tasks": True}, "Corpus.mixture_or_task_module is not set"),
    ],
)
def test_names_and_shares_that_do_not_meet(arguments, message):
    with pytest.raises(UsageError, match=message):
        corpus(**arguments)


@pytest.mark.parametrize("room", [t5x_style.data, t5x_style.optim])
def test_what_is_declared_stays_as_it_was_checked(room):
    """And as it went into fingerprints: every record of the rooms refuses to be changed."""
    names = [module.name for module in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")]
    records = {
        kind
        for name in names
        for _, kind in inspect.getmembers(importlib.import_module(name), dataclasses.is_dataclass)
        if inspect.isclass(kind) and kind.__module__.startswith(room.__name__)
    }
    assert len(records) >= 2
    assert [kind for kind in records if not kind.__dataclass_params__.frozen] == []
