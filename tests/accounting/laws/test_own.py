"""A user's own law in a file: there and back, and whatever a hand may write wrongly."""

import dataclasses
import json

import pytest

from t5x_style.accounting.laws import LAWS, ParametricLaw
from t5x_style.accounting.laws.own import read_law, write_law
from t5x_style.errors import UsageError

LAW = ParametricLaw(
    "legal-2026.1",
    irreducible=1.7,
    params_scale=380.5,
    tokens_scale=1234.5,
    params_exponent=0.33,
    tokens_exponent=0.35,
    source="12 runs on contracts",
    fitted_flops=(1e17, 1e20),
    params_exponent_interval=(0.48, 0.55),
)


@pytest.mark.parametrize(
    "law",
    [LAW, dataclasses.replace(LAW, fitted_flops=None, params_exponent_interval=None)],
    ids=["whole", "without ranges"],
)
def test_a_law_comes_back_as_it_was(law, tmp_path):
    path = tmp_path / "laws" / "own.json"
    write_law(path, law, {"objective": 1e-3})
    assert read_law(path) == law
    assert read_law(path).optimal(1e21) == law.optimal(1e21)
    fit = {"made": "written by t5x-style", "objective": 1e-3}
    assert json.loads(path.read_text())["fit"] == fit


def test_a_law_written_by_hand_needs_no_fit_and_may_hold_whole_numbers(tmp_path):
    path = tmp_path / "hand.json"
    path.write_text(
        '{"name": "hand", "irreducible": 2, "params_scale": 400, "tokens_scale": 2000,'
        ' "params_exponent": 0.34, "tokens_exponent": 0.37, "source": "a guess",'
        ' "fitted_flops": [1, 10], "params_exponent_interval": null}'
    )
    law = read_law(path)
    assert law.loss(1e9, 2e10) == pytest.approx(2 + 400 / 1e9**0.34 + 2000 / 2e10**0.37)
    assert law.fitted_flops == (1, 10)


def changed(**values):
    content = json.loads(json.dumps(dataclasses.asdict(LAW)))
    return {key: value for key, value in (content | values).items() if value is not ...}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(param_scale=1.0), "'param_scale' is no key of a law; did you mean 'params_scale'"),
        (changed(params_scale=...), "params_scale missing: a law needs name, irreducible"),
        (changed(fitted_flops=...), "fitted_flops missing"),
        (changed(irreducible="1.7"), "irreducible = '1.7' is not a positive number"),
        (changed(irreducible=True), "irreducible = True is not a positive number"),
        (changed(tokens_exponent=0), "tokens_exponent = 0 is not a positive number"),
        (changed(tokens_exponent=-0.3), r"tokens_exponent = -0\.3 is not a positive number"),
        (changed(tokens_exponent=float("nan")), "tokens_exponent = nan is not a positive number"),
        (changed(source=3), "source = 3 is not a string"),
        (changed(name=None), "name = None is not a string"),
        (changed(fitted_flops=[1e20, 1e17]), r"fitted_flops = \[1e\+20, 1e\+17\] is not \[least"),
        (changed(fitted_flops=[1e20]), r"is not \[least, greatest\]"),
        (changed(params_exponent_interval=0.5), "params_exponent_interval = 0.5 is not"),
        (changed(name="besiroglu"), "name = 'besiroglu' is a law that ships"),
        (changed(name="my law"), "a law's name is a letter"),
        (changed(name="eval/legal"), "a law's name is a letter"),
        ([1, 2], "a law is one JSON object, not a list"),
    ],
)
def test_what_is_no_law_is_refused_with_its_file(content, message, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as caught:
        read_law(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read_or_written_are_refused(tmp_path):
    path = tmp_path / "own.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"own\.json: not JSON"):
        read_law(path)
    with pytest.raises(UsageError, match=r"no such file; did you mean 'own\.json'"):
        read_law(tmp_path / "owm.json")
    with pytest.raises(UsageError, match="cannot be written"):
        write_law(path / "below.json", LAW)
    with pytest.raises(UsageError, match="cannot be written"):
        write_law(tmp_path, LAW)
    for refused in (lambda path: write_law(path, LAW), read_law):
        with pytest.raises(UsageError, match="gs:// is not a file system"):
            refused("gs://bucket/own.json")


@pytest.mark.parametrize("name", [*LAWS, "kaplan", "approach_3", "hoffmann_printed"])
def test_a_law_that_ships_keeps_its_name(name, tmp_path):
    with pytest.raises(UsageError, match="take another name"):
        write_law(tmp_path / "own.json", dataclasses.replace(LAW, name=name))
    assert not (tmp_path / "own.json").exists()


@pytest.mark.parametrize(("name", "is_one"), [("x", True), ("a-1_B.c", True), ("1x", False)])
def test_a_name_begins_with_a_letter_and_a_range_may_be_a_point(name, is_one, tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(changed(name=name, fitted_flops=[1e17, 1e17])))
    if is_one:
        assert read_law(path).fitted_flops == (1e17, 1e17)
    else:
        with pytest.raises(UsageError, match="a law's name is a letter"):
            read_law(path)


def test_a_byte_order_mark_is_no_part_of_a_law(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps(changed()), encoding="utf-8-sig")
    assert read_law(path) == LAW


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "\xfc"}', r"own\.json: not UTF-8 text: byte 10 \(line 1\) is 0xfc"),
        (b'{"irreducible": 1, "irreducible": 2}', "'irreducible' is there twice: keep one"),
        (b"[" * 100_000, "not JSON"),
        (b'{"irreducible": ' + b"9" * 5000 + b"}", "not JSON"),
        (
            json.dumps(changed(irreducible=10**400)).encode(),
            r"irreducible = 10{400} is not a positive number",
        ),
        (
            json.dumps(changed(fitted_flops=[1, 10**400])).encode(),
            r"fitted_flops = \[1, 10{400}\] is not \[least",
        ),
    ],
)
def test_json_that_a_hand_or_a_program_wrote_oddly(content, message, tmp_path):
    path = tmp_path / "own.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_law(path)
    assert str(path) in str(caught.value)
