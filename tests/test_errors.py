"""The checks that every room shares, and their messages."""

import pytest

from t5x_style.errors import UsageError, at_least, one_of


def test_one_of_names_the_allowed_and_the_nearest():
    one_of("Schedule.shape", "cosine", ("cosine", "linear"))
    one_of("Schedule.shape", "cosine", {"cosine": 1}.keys())
    with pytest.raises(UsageError) as error:
        one_of("Schedule.shape", "cosin", ("cosine", "linear"))
    assert str(error.value) == (
        "Schedule.shape = 'cosin' is not one of cosine, linear; did you mean 'cosine'?"
    )


@pytest.mark.parametrize("value", [None, 3, ["cosine"], ""])
def test_one_of_refuses_what_is_no_name(value):
    with pytest.raises(UsageError, match="is not one of cosine, linear"):
        one_of("Schedule.shape", value, {"cosine": 1, "linear": 2})


def test_at_least():
    at_least("Topology.fsdp", 1, 1)
    at_least("Filter.share", 0.5, 0)
    for value, least, text in (
        (0, 1, "0: must be 1 or more"),
        (-0.5, 0, "-0.5: must be 0 or more"),
    ):
        with pytest.raises(UsageError) as error:
            at_least("Topology.fsdp", value, least)
        assert str(error.value) == f"Topology.fsdp = {text}"
    with pytest.raises(UsageError, match="nan: must be 1 or more"):
        at_least("Topology.fsdp", float("nan"), 1)
