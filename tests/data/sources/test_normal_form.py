"""The form in which texts are compared: what a reader cannot see is no difference."""

import hashlib
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from t5x_style.data.sources.normal_form import document_digest, document_digests, normal_form

CHINESE = "第一条为了保护民事主体的合法权益，调整民事关系，维护社会和经济秩序，制定本法。"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("décès", unicodedata.normalize("NFD", "décès")),
        ("한국어", unicodedata.normalize("NFD", "한국어")),
        ("\ufeffthe court", "the court"),
        ("juris\u00addiction", "jurisdiction"),
        ("juris\u00ad\n  diction", "jurisdiction"),
        ("a\u200bb\u200cc\u200dd\u2060e", "abcde"),
        ("می\u200cخواهم", "میخواهم"),
        ("\u202babc\u202c \u200eone\u200f", "abc one"),
        ("❤\ufe0f", "❤"),
        ("葛\U000e0100城", "葛城"),
        ("e\u200b\u0301", "é"),
        ("a\u00a0b\u3000c\u2028d\r\ne", "a b c d e"),
        (CHINESE, "\n".join(CHINESE[i : i + 7] for i in range(0, len(CHINESE), 7))),
        ("新しい iPhone です。\n「はい」", "新しいiPhoneです。「はい」"),
        ("สวัสดี\nครับ", "สวัสดีครับ"),
    ],
)
def test_texts_that_read_the_same_have_one_digest(one, other):
    assert one != other
    assert document_digest(one) == document_digest(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1 23", "12 3"),
        ("The court", "the court"),
        ("a, b", "a b"),
        ("x²", "x2"),
        ("décès", "deces"),
        ("한 국어", "한국어"),
        ("один два", "одиндва"),
        ("第一条", "第二条"),
        ("juris-diction", "jurisdiction"),
    ],
)
def test_texts_that_read_differently_have_two(one, other):
    assert document_digest(one) != document_digest(other)


def test_the_digest_is_blake2b_of_the_text():
    expected = hashlib.blake2b(b"a b", digest_size=16).digest()
    assert document_digest(" a\n b") == expected
    expected = hashlib.blake2b("décès 第一".encode(), digest_size=16).digest()
    assert document_digest("de\u0301ce\u0300s") != expected
    expected = hashlib.blake2b("décès第一".encode(), digest_size=16).digest()
    assert document_digest("\ufeffde\u0301ce\u0300s 第\n一\n") == expected


# Unicode's category Cf is "format": no shape. All of it that is ignorable by default must go; the
# others (marks before Arabic numbers, hieroglyph joiners, shorthand) are drawn.
DRAWN_FORMATS = {*range(0x600, 0x606), 0x6DD, 0x70F, 0x890, 0x891, 0x8E2, 0xFFF9, 0xFFFA, 0xFFFB,
                 0x110BD, 0x110CD, *range(0x13430, 0x13440)}  # fmt: skip


def test_of_all_format_characters_those_that_are_drawn_stay():
    formats = {c for c in range(0x110000) if unicodedata.category(chr(c)) == "Cf"}
    left = {c for c in formats if normal_form(f"a{chr(c)}b") != "ab"}
    assert left == DRAWN_FORMATS & formats  # a younger Unicode has more


def test_letters_digits_and_signs_stay_but_for_fillers_without_a_shape():
    gone = {
        c
        for c in range(0x20000)
        if unicodedata.category(chr(c))[0] in "LNPSZ" and normal_form(f"a{chr(c)}b") == "ab"
    }
    assert {unicodedata.name(chr(c)) for c in gone} == {
        "HANGUL CHOSEONG FILLER",
        "HANGUL JUNGSEONG FILLER",
        "HANGUL FILLER",
        "HALFWIDTH HANGUL FILLER",
    }


@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text(st.sampled_from("ae \u0301\u0327é’—€ſß\u0344한ㄱ\u1100\u1161"))
)
@settings(max_examples=300, deadline=None)
def test_the_normal_form_of_a_normal_form_is_itself(text):
    once = normal_form(text)
    assert normal_form(once) == once
    assert unicodedata.is_normalized("NFC", once)
    decomposed = unicodedata.normalize("NFD", once)
    assert document_digest(decomposed) == document_digest(text)


def plainly(text):
    """The definition, a step at a time."""
    plain = " ".join(normal_form(text).split())
    wide = [unicodedata.east_asian_width(c) in "WF" and not "가" <= c <= "힣" for c in plain]
    around = zip([False, *wide], wide, [*wide[1:], False], plain, strict=False)
    kept = "".join(c for before, _, after, c in around if c != " " or not (before or after))
    return hashlib.blake2b(kept.encode(), digest_size=16).digest()


@given(
    st.text(
        st.sampled_from(
            "ab \n\t\r\x0b\x1c\x00\u0085\u00a0\u2028\u3000é中かー、。e\u0301한 국\ufeff\u00ad"
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_the_digest_is_that_of_the_definition_a_step_at_a_time(text):
    assert document_digest(text) == plainly(text)


def test_texts_together_have_the_digests_that_each_has_alone():
    texts = [" a  b ", " ", "", "  c", "a b", " \n", "é\u00a0 ", " 中 文", "a\tb  "]
    assert document_digests(texts) == [plainly(text) for text in texts]
    assert document_digests([]) == []
