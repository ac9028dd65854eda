"""Contamination: what is found and what is not, against sets of tuples of words."""

import json
import tracemalloc
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data import Corpus, Tokenizer
from t5x_style.data.building import parts as build_parts
from t5x_style.data.building.parts import Job
from t5x_style.data.cleaning.contamination import Contamination, EvaluationText, Index, write_index
from t5x_style.data.cleaning.ngrams import ngram_hashes
from t5x_style.data.cleaning.words import MULTIPLIER, word_hashes, words_of_texts
from t5x_style.data.sources.source import Source
from t5x_style.errors import UsageError


def words(prefix, count):
    return [f"{prefix}{i}" for i in range(count)]


def index_of(folder, texts, ngram=13, **options):
    folder.mkdir(exist_ok=True)
    unseen = write_index(folder, ngram, [EvaluationText(*item) for item in texts], **options)
    return Index(folder), unseen


def overlap(index, text):
    (found,) = index.overlaps(words_of_texts([text]))
    return found


EVALUATION = [
    ("exam", "exam.jsonl:1", " ".join(words("q", 30))),
    ("exam", "exam.jsonl:2", "Who, in the end, pays for broken glass (and why)?"),  # 10 words
    ("validation", "held.jsonl:7", " ".join(words("v", 40))),
    ("exam", "exam.jsonl:3", "yes, he does"),
]


@pytest.fixture
def index(tmp_path):
    found, unseen = index_of(tmp_path / "index", EVALUATION)
    assert unseen == {"exam": (3, 1, 0), "validation": (1, 0, 0)}
    return found


def test_a_run_of_thirteen_words_is_found_and_one_of_twelve_is_not(index):
    before, after = words("a", 50), words("b", 37)
    thirteen = " ".join(before + words("q", 20)[5:18] + after)
    assert overlap(index, thirteen) == (0.13, "exam", "exam.jsonl:1")
    twelve = " ".join(before + words("q", 20)[5:17] + after)
    assert overlap(index, twelve) == (0.0, "", "")


def test_case_and_punctuation_hide_nothing(index):
    hidden = "Chapter 1.\n" + ", ".join(words("V", 20)) + "!"
    assert overlap(index, hidden) == (20 / 22, "validation", "held.jsonl:7")


def test_a_short_document_is_found_as_a_whole_alone(index):
    whole = "He asked: who in the end pays for broken glass and why? Nobody knew."
    assert overlap(index, whole) == (10 / 14, "exam", "exam.jsonl:2")
    part = "He asked: who in the end pays for broken glass? Nobody knew, and yes, he does."
    assert overlap(index, part).share == 0


def test_the_document_with_the_most_runs_is_named(index):
    both = words("q", 14) + words("between", 3) + words("v", 20)
    assert overlap(index, " ".join(both)) == (34 / 37, "validation", "held.jsonl:7")


@pytest.mark.parametrize("text", ["", "...", "yes, he does", "q0 q1 q2"])
def test_texts_shorter_than_a_run_overlap_with_nothing(index, text):
    assert overlap(index, text) == (0.0, "", "")


def test_an_index_of_nothing_finds_nothing(tmp_path):
    index, unseen = index_of(tmp_path / "index", EVALUATION[3:])
    assert unseen == {"exam": (1, 1, 0)}
    assert overlap(index, EVALUATION[0][2]) == (0.0, "", "")


def runs(text, length):
    split = text.split()
    return {tuple(split[i : i + length]) for i in range(len(split) - length + 1)}


def covered(text, texts, ngram):
    """The definition, on sets of tuples of words."""
    indexed = set()
    for item in texts:
        length = min(ngram, len(item.split()))
        if length >= 8:
            indexed |= runs(item, length)
    split = text.split()
    places = {
        place
        for run in indexed
        for begin in range(len(split) - len(run) + 1)
        if tuple(split[begin : begin + len(run)]) == run
        for place in range(begin, begin + len(run))
    }
    return len(places) / len(split) if split else 0.0


TEXTS = st.lists(st.sampled_from("ab"), max_size=40).map(" ".join)


@given(
    texts=st.lists(TEXTS, max_size=5), text=TEXTS, ngram=st.integers(8, 14), run=st.integers(1, 60)
)
@settings(max_examples=150, deadline=None)
def test_the_share_is_that_of_sets_of_tuples(tmp_path_factory, texts, text, ngram, run):
    folder = tmp_path_factory.mktemp("index")
    named = [("set", str(i), item) for i, item in enumerate(texts)]
    index, _ = index_of(folder, named, ngram, run_ngrams=run)
    found = overlap(index, text)
    assert found.share == covered(text, texts, ngram)
    if found.share:
        assert covered(text, [texts[int(found.where)]], ngram) > 0
    # Many texts at once: no run goes over the end of a text.
    together = [text, *texts, "", text]
    assert index.overlaps(words_of_texts(together)) == [overlap(index, item) for item in together]


def test_an_index_in_many_runs_is_the_index_in_one(tmp_path):
    rng = np.random.default_rng(0)
    texts = [
        ("set", str(i), " ".join(map(str, rng.integers(0, 3, rng.integers(5, 300)))))
        for i in range(200)
    ]
    one, _ = index_of(tmp_path / "one", texts)
    many, _ = index_of(tmp_path / "many", texts, run_ngrams=500)
    np.testing.assert_array_equal(one.hashes, many.hashes)
    np.testing.assert_array_equal(one.documents, many.documents)
    assert (one.hashes[1:] > one.hashes[:-1]).all()
    assert sorted(file.name for file in (tmp_path / "many").iterdir()) == [
        "documents.uint32",
        "filter.uint8",
        "hashes.uint64",
        "names.json",
    ]
    # Each run of words is of the first document that holds it.
    first = {}
    for _, number, text in texts:
        for run in runs(text, 13) if len(text.split()) >= 13 else ():
            first.setdefault(run, int(number))
    numbers = np.array([int(where) for _, where in one.names])
    expected = {int(ngram_hashes(word_hashes(" ".join(run)), 13)[0]): n for run, n in first.items()}
    found = dict(zip(one.hashes.tolist(), numbers[one.documents].tolist(), strict=True))
    assert expected.items() <= found.items()


def test_building_holds_one_run_in_memory_however_many_there_are(tmp_path):
    rng = np.random.default_rng(0)
    texts = [("set", str(i), " ".join(map(str, rng.integers(0, 999, 2000)))) for i in range(50)]
    word_hashes(" ".join(map(str, range(999))))  # their numbers are remembered
    tracemalloc.start()
    try:
        index, _ = index_of(tmp_path / "index", texts, run_ngrams=5000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(index.hashes) == 50 * (2000 - 12)
    assert peak < 12 * len(index.hashes)


@given(st.lists(st.integers(0, 2**64 - 1), max_size=12), st.integers(1, 14))
def test_the_number_of_a_run_is_its_polynomial(values, n):
    expected = [
        sum(MULTIPLIER ** (n - 1 - k) * values[begin + k] for k in range(n)) % 2**64
        for begin in range(len(values) - n + 1)
    ]
    assert ngram_hashes(np.array(values, np.uint64), n).tolist() == expected


def test_words_that_change_places_leave_59_bits_to_tell_them_apart():
    for distance in range(1, 16):
        coefficient = (MULTIPLIER**distance - 1) % 2**64
        assert (coefficient & -coefficient) <= 2**5


def test_runs_of_words_have_numbers_of_their_own():
    text = " ".join(map(str, range(30_000)))
    hashes = ngram_hashes(word_hashes(text + " " + " ".join(reversed(text.split()))), 13)
    assert len(np.unique(hashes)) == len(hashes)


SET = Source(name="exam", splits={"train": "exam.jsonl"})


@pytest.mark.parametrize(("most", "clean"), [(0.499, False), (0.5, True), (0.501, True)])
def test_a_document_with_just_the_share_that_may_be_quoted_is_kept(tmp_path, most, clean):
    """13 of 26 words are in a run of the exam."""
    index_of(tmp_path / "index", EVALUATION)
    corpus = Corpus(
        Tokenizer("bytes"),
        "exam",
        str(tmp_path),
        [SET],
        contamination=Contamination(max_share=most),
    )
    job = Job(corpus.to_json(), "exam", "train", str(tmp_path), 0, None, str(tmp_path / "index"))
    text = " ".join(words("q", 13) + words("own", 13))
    detail = "50% of its words are in runs of exam, most of them in exam.jsonl:1"
    found = {} if clean else {"reason": "contaminated", "detail": detail}
    assert [*build_parts._cleaned([({"id": "x"}, text)], job, corpus)] == [{"id": "x"} | found]


def test_the_least_that_can_be_set():
    assert Contamination(ngram=8, max_share=0.0).ngram == 8
    plain = Contamination()
    assert (plain.ngram, plain.against_validation, plain.max_share) == (13, True, 0.0)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"ngram": 7}, "ngram = 7: must be 8 or more"),
        ({"max_share": -0.1}, "max_share = -0.1"),
        ({"max_share": 1.0}, "max_share = 1.0"),
        ({"against_validation": False}, "leave Contamination out"),
        ({"evaluation_sets": [SET, SET]}, "'exam' is there twice"),
    ],
)
def test_what_makes_no_sense_is_refused(attributes, message):
    with pytest.raises(UsageError, match=message):
        Contamination(**attributes)


def test_names_are_plain_json(tmp_path, index):
    plain = json.loads((tmp_path / "index" / "names.json").read_text())
    assert plain["lengths"] == [13, 10]
    assert plain["documents"][2] == ["validation", "held.jsonl:7"]


def clauses(seed, count):
    """A text of `count` clauses of 12 to 24 Han characters, none of which is in another text."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(12, 24, count)
    return "，".join("".join(map(chr, rng.integers(0x4E00, 0x9FA6, n))) for n in lengths) + "。"


def test_chinese_documents_are_found_where_they_are_quoted(tmp_path):
    held_out = [clauses(seed, 6) for seed in range(20)]
    index, unseen = index_of(tmp_path / "index", [("v", str(i), t) for i, t in enumerate(held_out)])
    assert unseen == {"v": (20, 0, 0)}
    for number, text in enumerate(held_out):
        quoting = clauses(100 + number, 2)[:30] + text + clauses(200 + number, 3)
        found = overlap(index, quoting)
        assert found.where == str(number)
        assert 0.4 < found.share < 0.8
        broken = "\n".join(text[i : i + 20] for i in range(0, len(text), 20))
        assert overlap(index, broken).share == 1
        assert overlap(index, clauses(300 + number, 6)).share == 0


@pytest.mark.parametrize(
    "text",
    [
        unicodedata.normalize("NFD", "Le décès de l'associé met fin à la société de plein droit"),
        "Le décès de l'as\u00adso\u00adcié met fin à la so\u00ad\nciété de plein droit",
        "\ufeffLe décès\u200b de\u2060 l'associé\u200e met fin à la société de plein droit",
        "LE DÉCÈS DE L’ASSOCIÉ MET FIN À LA SOCIÉTÉ DE PLEIN DROIT",
        "Le décès de l'associé met ﬁn à la société de plein droit",
    ],
)
def test_other_forms_of_the_same_letters_hide_nothing(tmp_path, text):
    plain = "Le décès de l'associé met fin à la société de plein droit"
    index, _ = index_of(tmp_path / "index", [("v", "1", plain)])
    assert overlap(index, text).share == 1


def test_indic_words_are_told_apart_by_their_vowels(tmp_path):
    """Vowel signs are marks: a word is not cut at them, nor is it the same without them."""
    words = [f"{a}{b}" for a in "कखगघ" for b in ("ी", "ु", "े", "ो")]
    index, unseen = index_of(tmp_path / "index", [("v", "1", " ".join(words))])
    assert unseen == {"v": (1, 0, 0)}
    assert overlap(index, " ".join(words)).share == 1
    other = [word[0] + "ा" for word in words]
    assert overlap(index, " ".join(other)).share == 0


def test_documents_that_cannot_be_looked_for_are_counted(tmp_path):
    texts = [
        ("v", "1", "yes, he does"),
        ("v", "2", "* * *"),
        ("v", "3", "。。。"),
        ("w", "1", "中文"),
    ]
    _, unseen = index_of(tmp_path / "index", [*texts, ("v", "4", " ".join(words("a", 20)))])
    assert unseen == {"v": (4, 3, 2), "w": (1, 1, 0)}
