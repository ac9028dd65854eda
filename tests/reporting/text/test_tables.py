import pytest

from t5x_style.reporting import table
from t5x_style.reporting.text.tables import dtypes_text


def test_columns_are_aligned():
    assert table(
        [["embedding", 1_006_632_960, "51.00%", None], ["head", 0, "2.5%", 1.23456]],
        ["term", "parameters", "share", "x"],
    ).split("\n") == [
        "term          parameters   share      x",
        "---------  -------------  ------  -----",
        "embedding  1,006,632,960  51.00%      -",
        "head                   0    2.5%  1.235",
    ]


def test_a_column_with_words_is_flush_left():
    lines = table([["12", "1"], ["x", "22"]]).split("\n")
    assert lines == ["12   1", "x   22"]


def test_no_rows():
    assert table([]) == ""
    assert table([], ["a", "bc"]) == "a  bc\n-  --"


def test_ragged_rows_are_refused():
    with pytest.raises(ValueError, match="one length"):
        table([[1, 2], [3]])


def test_two_dtypes_name_the_peak_of_the_mfu():
    assert dtypes_text("bfloat16", None) == "bfloat16"
    assert "weights in int8 (MFU: of the bfloat16 peak)" in dtypes_text("bfloat16", "int8")
