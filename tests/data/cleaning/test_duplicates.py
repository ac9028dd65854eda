"""Duplicates: what counts as one, which of them stays, and estimates against exact sets."""

import json
import os
import subprocess
import sys
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from t5x_style.data.cleaning import duplicates as duplicates_module
from t5x_style.data.cleaning.duplicates import (
    DUPLICATE,
    KEPT,
    NEAR_DUPLICATE,
    Duplicates,
    Fingerprints,
)
from t5x_style.data.cleaning.words import words_of_texts
from t5x_style.data.sources.normal_form import document_digest
from t5x_style.errors import UsageError

pytest.importorskip("rensa", reason="the extra clean or dev brings it")

NEAR = Duplicates(near=True)


def words(seed, count):
    """Words of which hardly two are alike."""
    rng = np.random.default_rng(seed)
    return [f"w{number}" for number in rng.integers(0, 10**9, count)]


def pair(seed, kept, total=400):
    """Two texts of `total` words which have their first `kept` in common."""
    common = words(seed, kept)
    return [" ".join(common + words(seed * 1000 + which, total - kept)) for which in (1, 2)]


def jaccard(one, other, n=5):
    """The definition, on sets of tuples of words."""
    sets = []
    for text in (one, other):
        split = text.split()
        sets.append({tuple(split[i : i + n]) for i in range(len(split) - n + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def signature(text):
    (values,) = NEAR.signatures([text], words_of_texts([text]))
    return values


def fingerprints(texts, duplicates=NEAR):
    digests = np.array([np.frombuffer(document_digest(text), np.uint8) for text in texts])
    if not duplicates.near:
        return Fingerprints(digests, None)
    return Fingerprints(digests, duplicates.signatures(texts, words_of_texts(texts)))


def judged(texts, earlier=(), duplicates=NEAR):
    verdicts = duplicates.verdicts(
        fingerprints(texts, duplicates), [fingerprints(item, duplicates) for item in earlier]
    )
    return verdicts.why.tolist(), verdicts.repeats.tolist()


def test_exact_duplicates_are_those_of_the_same_text_white_space_aside():
    texts = ["a b c", "a  b\r\n\tc ", "A b c", "a b, c", "a b c", "d"]
    assert judged(texts, duplicates=Duplicates()) == ([0, 1, 0, 0, 1, 0], [-1, 0, -1, -1, 0, -1])


@pytest.mark.parametrize("kept", [200, 300, 356, 380, 396])
def test_the_estimated_similarity_is_that_of_the_sets_of_shingles(kept):
    estimates, exact = [], []
    for seed in range(1, 21):
        one, other = pair(seed, kept)
        exact.append(jaccard(one, other))
        estimates.append((signature(one) == signature(other)).mean())
    s = np.mean(exact)
    # Twenty pairs of 128 values each; four standard deviations of a binomial share.
    assert abs(np.mean(estimates) - s) < 4 * np.sqrt(s * (1 - s) / (20 * 128))


def test_a_signature_knows_neither_case_nor_punctuation():
    one = "The quick, brown fox -- it jumps over the lazy dog!"
    other = "the QUICK brown (fox) it jumps over: the lazy dog"
    np.testing.assert_array_equal(signature(one), signature(other))
    assert signature(one).dtype == np.uint32
    assert signature(one).shape == (128,)


def test_texts_of_few_or_no_words_are_like_themselves_alone():
    texts = ["yes", "no", "...", "???", "", "yes!", "... "]
    assert judged(texts) == ([0, 0, 0, 0, 0, 2, 1], [-1, -1, -1, -1, -1, 0, 2])


def test_planted_near_duplicates_go_and_the_first_of_them_stays():
    near, far = pair(1, 385), pair(2, 300)
    assert jaccard(*near) > 0.92
    assert jaccard(*far) < 0.61
    texts = [near[0], far[0], near[1], far[1], near[1].upper(), far[0] + "\n"]
    assert judged(texts) == ([0, 0, 2, 0, 2, 1], [-1, -1, 0, -1, 0, 1])


def test_chinese_texts_are_near_by_their_characters():
    rng = np.random.default_rng(0)
    one = "".join(map(chr, rng.integers(0x4E00, 0x9FA6, 600)))
    other = one[:300] + "中文" + one[302:]
    broken = "\n".join(other[i : i + 20] for i in range(0, 600, 20))
    unlike = "".join(map(chr, rng.integers(0x4E00, 0x9FA6, 600)))
    assert judged([one, other, broken, unlike]) == ([0, 2, 1, 0], [-1, 0, 0, -1])


def test_what_repeats_a_near_duplicate_exactly_points_at_the_one_that_stays():
    one, other = pair(1, 385)
    assert judged([one, other, other + " "]) == ([0, 2, 1], [-1, 0, 0])


def test_no_documents_at_all_and_none_before():
    nothing = Fingerprints(np.zeros((0, 16), np.uint8), np.zeros((0, 128), np.uint32))
    assert NEAR.verdicts(nothing).repeats.shape == (0,)
    verdicts = NEAR.verdicts(fingerprints(["a", "b", "a"]), [nothing, nothing])
    assert verdicts.repeats.tolist() == [-1, -1, 0]


def test_documents_of_earlier_stores_come_first_and_always_stay():
    one, other = pair(1, 385)
    mine, yours = pair(2, 385)
    # The first two of the earlier ones are near each other: nothing happens to them now.
    earlier = [[one, other], [mine]]
    texts = ["something of its own", other, yours, "something of its own"]
    assert judged(texts, earlier) == ([0, 1, 2, 1], [-1, 1, 2, 3])


def greedy(texts, signatures, threshold):
    """What the rule says, each document against all that stay."""
    stay, of = [], []
    for row in range(len(texts)):
        alike = [
            other for other in stay if (signatures[other] == signatures[row]).mean() >= threshold
        ]
        of.append(alike[0] if alike else -1)
        if not alike:
            stay.append(row)
    return of


def test_many_chains_of_near_documents_follow_the_rule():
    rng = np.random.default_rng(0)
    texts = []
    for chain in range(15):
        current = words(chain, 120)
        for _ in range(8):  # each like the one before, ever less like the first
            current = list(current)
            current[rng.integers(len(current))] = f"new{rng.integers(10**9)}"
            texts.append(" ".join(current))
    texts = [texts[i] for i in rng.permutation(len(texts))]
    prints = fingerprints(texts)
    expected = greedy(texts, prints.signatures, 0.8)
    found = NEAR.verdicts(prints).repeats.tolist()
    # A band brings a pair at the threshold together with a probability of 0.98.
    assert sum(a != b for a, b in zip(found, expected, strict=True)) <= 0.03 * len(texts)
    assert 15 <= expected.count(-1) < 60


@pytest.mark.parametrize(("alike", "found"), [(95, False), (96, True), (97, True)])
def test_a_similarity_of_just_the_threshold_is_a_near_duplicate(alike, found):
    """0.75 is 96 of 128 values. The first values are alike, so that the two share a band."""
    values = np.random.default_rng(5).integers(0, 2**32, (2, 128), np.uint32)
    values[1, :alike] = values[0, :alike]
    near = Duplicates(exact=False, near=True, threshold=0.75)
    verdicts = near.verdicts(Fingerprints(np.zeros((2, 16), np.uint8), values))
    assert verdicts.why.tolist() == [KEPT, NEAR_DUPLICATE if found else KEPT]


@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9])
def test_pairs_are_found_as_often_as_the_curve_of_bands_says(similarity):
    """Signatures that agree at each place with a known probability, by 500 pairs."""
    rng = np.random.default_rng(1)
    duplicates = Duplicates(exact=False, near=True, threshold=1e-9, permutations=128)
    bands, rows = NEAR.bands()
    one = rng.integers(0, 2**32, (500, 128), np.uint32)
    other = np.where(rng.random(one.shape) < similarity, one, rng.integers(0, 2**32, one.shape))
    both = np.concatenate([one, other.astype(np.uint32)])
    # The bands of the threshold 0.8, and every pair that one of them brings together is counted.
    duplicates.__dict__["bands"] = lambda: (bands, rows)
    verdicts = duplicates.verdicts(Fingerprints(np.zeros((1000, 16), np.uint8), both))
    share = (verdicts.repeats[500:] == np.arange(500)).mean()
    curve = 1 - (1 - similarity**rows) ** bands
    assert abs(share - curve) < 4 * np.sqrt(curve * (1 - curve) / 500) + 0.002
    assert (verdicts.repeats[:500] == -1).all()


@pytest.mark.parametrize(
    ("threshold", "permutations", "expected"),
    [(0.8, 128, (18, 7)), (0.5, 128, (42, 3)), (1.0, 128, (1, 128)), (0.01, 16, (16, 1))],
)
def test_bands_reach_the_recall_at_the_threshold_with_the_most_rows(
    threshold, permutations, expected
):
    assert Duplicates(threshold=threshold, permutations=permutations).bands() == expected


def test_one_template_a_thousand_times_does_not_compare_each_with_each():
    rng = np.random.default_rng(2)
    template = rng.integers(0, 2**32, 128, np.uint32)
    own = rng.integers(0, 2**32, (3000, 128), np.uint32)
    values = np.where(rng.random(own.shape) < 0.7, template, own)
    verdicts = NEAR.verdicts(Fingerprints(own.view(np.uint8)[:, :16], values))
    assert (verdicts.why == KEPT).mean() > 0.9  # two of them agree in half of the places


@pytest.mark.parametrize(("before", "found"), [(63, True), (64, False)])
def test_64_of_those_that_share_a_band_are_compared(before, found):
    """`before` documents and one more share the first band; the last document is like that one,
    but for one number of each other band."""
    bands, rows = NEAR.bands()
    values = np.random.default_rng(4).integers(0, 2**32, (before + 2, 128), np.uint32)
    values[:, :rows] = values[0, :rows]
    values[-1] = values[-2]
    values[-1, rows : rows * bands : rows] += 1
    near = Duplicates(exact=False, near=True)
    verdicts = near.verdicts(Fingerprints(np.zeros((len(values), 16), np.uint8), values))
    assert verdicts.repeats.tolist() == [-1] * (before + 1) + [before if found else -1]


def test_a_million_documents_are_judged_in_less_than_a_gigabyte(tmp_path):
    count = 50_000  # a twentieth of it, and of the bound
    rng = np.random.default_rng(3)
    file = tmp_path / "signatures.npy"
    on_disk = np.lib.format.open_memmap(file, "w+", np.uint32, (count, 128))
    on_disk[:] = rng.integers(0, 2**32, on_disk.shape, np.uint32)
    on_disk[count // 2 :: 10] = on_disk[: count // 2 : 10]
    on_disk.flush()
    digests = rng.integers(0, 256, (count, 16), np.uint8)
    digests[1] = digests[0]
    prints = Fingerprints(digests, np.load(file, mmap_mode="r"))
    tracemalloc.start()
    try:
        verdicts = NEAR.verdicts(prints)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1e9 / 20
    assert np.bincount(verdicts.why).tolist() == [47_499, 1, 2_500]
    assert verdicts.why[1] == DUPLICATE
    assert verdicts.why[count // 2] == NEAR_DUPLICATE


def test_every_process_sees_the_same_fingerprints():
    code = (
        "import json; from t5x_style.data import Duplicates as D; d = D(near=True);"
        "from t5x_style.data.sources.normal_form import document_digest;"
        "from t5x_style.data.cleaning.words import words_of_texts as w;"
        "t = ['one two three four five six'];"
        "print(json.dumps([document_digest('a b').hex(), d.signatures(t, w(t))[0].tolist()]))"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(seen) == 1
    digest, values = json.loads(seen.pop())
    assert digest == document_digest("a b").hex()
    assert values == signature("one two three four five six").tolist()
    # These are in stores: another version of the library that gives other ones must not pass.
    assert values[:3] == [3399786767, 4094292319, 3308178552]


def test_the_version_of_the_signatures_is_part_of_what_stores_are_made_from(monkeypatch):
    before = NEAR.made_from()
    assert before == json.loads(json.dumps(before))
    monkeypatch.setattr(duplicates_module, "_rensa", lambda: SimpleNamespace(ALGORITHM_VERSION=3))
    assert NEAR.made_from() == before | {"rensa": 3}
    assert "rensa" not in Duplicates().made_from()


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"exact": False}, "both False"),
        ({"threshold": 0.0}, "above 0 and at most 1"),
        ({"threshold": 80}, r"threshold = 80"),
        ({"shingle_words": 0}, "shingle_words = 0"),
        ({"permutations": 0}, "permutations = 0"),
    ],
)
def test_what_makes_no_sense_is_refused(attributes, message):
    with pytest.raises(UsageError, match=message):
        Duplicates(**attributes)


def test_near_duplicates_without_the_library_name_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(UsageError, match=r"t5x_style\[clean\]"):
        Duplicates(near=True)


def test_the_bounds_of_the_settings_are_settings():
    Duplicates(shingle_words=1, permutations=1, threshold=1.0)
    for refused in (
        {"shingle_words": 0},
        {"permutations": 0},
        {"threshold": 0.0},
        {"threshold": 1.1},
    ):
        with pytest.raises(UsageError, match=rf"^Duplicates\.{next(iter(refused))} = "):
            Duplicates(**refused)
