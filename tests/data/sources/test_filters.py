"""Filters: what they let through, what is counted, and that stores and vocabularies see them."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import sys

import numpy as np
import pytest

from t5x_style.data import Corpus, Language, Length, Rewrite, Source, ensure_stores, missing_stores
from t5x_style.data.sources import filters
from t5x_style.data.sources.documents import documents
from t5x_style.data.sources.filters import filtered
from t5x_style.errors import Fault, UsageError

needs_py3langid = pytest.mark.skipif(
    importlib.util.find_spec("py3langid") is None, reason="the extra clean or dev brings it"
)
TEXTS = [
    "short",
    "write to jane.doe@example.org about the contract of sale",
    "this one must go because it is secret, says its author",
    "a text of a good length that passes everything as it is",
    "x" * 500,
]
MASKED = "write to <EMAIL> about the contract of sale"
MODULE = r"""
import re

def mask(text):
    if "secret" in text:
        return None
    return re.sub(r"[\w.]+@[\w.]+", "<EMAIL>", text)

def broken(text):
    return 1 / 0

def number(text):
    return 7

def half(text):
    return "x" + chr(0xD800)
"""


@pytest.fixture
def corpus(tmp_path, tokenizer, monkeypatch):
    (tmp_path / "privacy_of_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in TEXTS))
    source = Source(
        name="a",
        splits={"train": str(tmp_path / "a.jsonl")},
        filters=[Length(10, 400), Rewrite("privacy_of_test:mask")],
    )
    return Corpus(
        tokenizer=tokenizer,
        mixture_or_task_name="a",
        cache_dir=str(tmp_path / "stores"),
        sources=[source],
        workers=1,
    )


def refiltered(corpus, *filters):
    source = dataclasses.replace(corpus.sources[0], filters=filters)
    return dataclasses.replace(corpus, sources=[source])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_store_holds_what_the_filters_let_through_and_counts_the_rest(corpus, workers, tokenizer):
    corpus = dataclasses.replace(corpus, workers=workers)
    store = ensure_stores(corpus).train["a"]
    ends = store.document_ends.tolist()
    texts = [
        tokenizer.decode(store.tokens[start:end])
        for start, end in zip([0, *ends[:-1]], ends, strict=True)
    ]
    assert sorted(texts) == sorted([MASKED, TEXTS[3]])
    assert store.meta["filtered"] == {"length": 2, "privacy_of_test:mask": 1}
    assert sorted(documents(corpus.sources[0], "train")) == sorted(texts)


def test_another_filter_or_another_text_of_its_module_is_another_store(corpus, tmp_path):
    ensure_stores(corpus)
    assert missing_stores(corpus) == []
    assert missing_stores(refiltered(corpus, Length(10, 400)))
    assert missing_stores(refiltered(corpus, Length(11, 400), Rewrite("privacy_of_test:mask")))
    (tmp_path / "privacy_of_test.py").write_text(MODULE.replace("<EMAIL>", "<ADDRESS>"))
    assert missing_stores(corpus)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        ("privacy_of_test:broken", Fault, "failed on a document that begins 'short': ZeroDivision"),
        ("privacy_of_test:number", Fault, "returned a int, not a text"),
        ("privacy_of_test:half", Fault, "returned half a surrogate pair at character 1"),
        ("privacy_of_test:maks", UsageError, "has no 'maks'; did you mean 'mask'"),
        ("privacy_off_test:mask", UsageError, "no module 'privacy_off_test'"),
    ],
)
def test_a_function_that_fails_is_named(corpus, tmp_path, function, error, message, workers):
    corpus = dataclasses.replace(refiltered(corpus, Rewrite(function)), workers=workers)
    with pytest.raises(error, match=message):
        ensure_stores(corpus)
    assert not list(tmp_path.glob("stores/a-*")), "something was left that looks like a store"


def test_filters_follow_each_other():
    assert filtered([Rewrite("textwrap:dedent"), Length(0, 3)], "    abc") == ("abc", "")
    assert filtered([Length(0, 3), Rewrite("textwrap:dedent")], "    abc") == (None, "length")


@pytest.mark.parametrize(
    ("length", "kept"),
    [
        (Length(min_characters=3), [3, 4, 5, 6]),
        (Length(max_characters=5), [0, 1, 2, 3, 4, 5]),
        (Length(3, 5), [3, 4, 5]),
        (Length(3, 3), [3]),
        (Length(max_characters=0), [0]),
        (Length(), [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_a_text_of_just_the_least_or_the_most_characters_is_kept(length, kept):
    texts = ["é" * count for count in range(7)]
    assert [len(text) for text in texts if length(text) == text] == kept
    assert [length(text) for text in texts if length(text) != text] == [None] * (7 - len(kept))


@needs_py3langid
def test_a_language_of_just_the_least_probability_is_kept():
    text = "communications telephones fixed lines total subscriptions"
    code, probability = filters._language_identifier().classify(text)
    assert 0.1 < probability < 0.9
    assert Language([code], min_probability=probability)(text) == text
    assert Language([code], min_probability=np.nextafter(probability, 1))(text) is None


def test_declarations_that_cannot_be():
    with pytest.raises(UsageError, match="below min_characters = 5"):
        Length(5, 4)
    with pytest.raises(UsageError, match="write 'module:function'"):
        Rewrite("module.function")


def test_a_corpus_goes_to_the_process_that_builds_and_back(corpus):
    assert list(Corpus.from_json(corpus.to_json()).sources[0].filters) == list(
        corpus.sources[0].filters
    )


SENTENCES = {
    "en": "The seller shall deliver the goods free from defects.",
    "de": "Der Verkäufer hat die Sache frei von Mängeln zu liefern.",
    "fr": "Le vendeur est tenu de livrer la chose exempte de défauts.",
    "es": "El vendedor debe entregar la cosa libre de defectos.",
    "it": "Il venditore è tenuto a consegnare la cosa priva di difetti.",
    "nl": "De verkoper moet de zaak vrij van gebreken leveren.",
    "pt": "O vendedor deve entregar a coisa livre de defeitos.",
    "pl": "Sprzedawca jest obowiązany dostarczyć rzecz wolną od wad.",
    "ru": "Продавец обязан передать товар без недостатков.",
    "ja": "売主は、欠陥のない物を引き渡さなければならない。",
    "zh": "卖方应当交付没有瑕疵的货物。",
}


@needs_py3langid
@pytest.mark.parametrize("language", SENTENCES)
def test_a_language_keeps_its_own_sentences_and_drops_the_others(language):
    keep = Language(keep=[language])
    assert [code for code, text in SENTENCES.items() if keep(text) is not None] == [language]


@needs_py3langid
def test_a_disclaimer_in_capitals_is_english():
    text = 'PROVIDED "AS IS" and "AS AVAILABLE", WITHOUT WARRANTY OF MERCHANTABILITY OR FITNESS.'
    assert Language()(text) == text


@needs_py3langid
def test_the_middle_of_a_document_tells_its_language():
    german = " ".join([SENTENCES["de"]] * 200)
    assert Language()("A TITLE IN ENGLISH, AND WHO WROTE IT. " * 20 + german) is None


@needs_py3langid
def test_a_probability_that_is_too_low_drops_a_list():
    names = "communications telephones fixed lines total subscriptions"
    sentence = SENTENCES["en"] * 3
    strict = Language(min_probability=0.9)
    assert strict(sentence) == sentence
    assert strict(names) is None
    assert Language()(names) == names


@needs_py3langid
@pytest.mark.parametrize(("name", "least", "most"), [("general", 1.0, 1.0), ("legal", 0.97, 0.99)])
def test_the_share_of_english_in_the_embedded_corpora(name, least, most):
    """Two of the 124 licences of legal's validation split are German and Japanese."""
    source = Source(name=name, splits={"train": f"package:{name}.validation.jsonl.gz"})
    texts = list(documents(source, "train"))
    assert least <= np.mean([Language()(text) is not None for text in texts]) <= most


@needs_py3langid
@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"keep": "en"}, r"keep = 'en': a list of codes"),
        ({"keep": []}, "a list of codes"),
        ({"keep": ["en", "deu"]}, r"'deu' is not one of the \d+ codes of py3langid, .* de, "),
        ({"min_probability": 50}, "min_probability = 50"),
    ],
)
def test_a_language_that_cannot_be_is_refused(attributes, message):
    with pytest.raises(UsageError, match=message):
        Language(**attributes)


def test_a_language_without_the_library_names_the_extra(monkeypatch):
    filters._language_identifier.cache_clear()
    monkeypatch.setitem(sys.modules, "py3langid", None)
    with pytest.raises(UsageError, match=r"t5x_style\[clean\]"):
        Language()


@needs_py3langid
def test_a_language_goes_through_json_and_its_library_into_the_fingerprint(tmp_path):
    languages = (Language(keep=("en", "de"), min_probability=0.5),)
    plain = json.loads(json.dumps(filters.filters_to_json(languages)))
    assert filters.filters_from_json(plain)[0].name == "language"
    assert filters.filters_from_json(plain) == (Language(["en", "de"], 0.5),)
    made_from = filters.made_from(languages, tmp_path, remember=False)
    assert made_from[0]["py3langid"] == importlib.metadata.version("py3langid")
