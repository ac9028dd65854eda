import math

import pytest

from t5x_style.quantities import (
    bits_per_byte,
    byte_count,
    count,
    duration,
    mean_of_steps,
    scientific,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (812, "812"),
        (0.25, "0.25"),
        (999.4, "999.4"),
        (999.5, "1.00K"),
        (9_994, "9.99K"),
        (9_995, "10.0K"),
        (99_949, "99.9K"),
        (99_950, "100K"),
        (-13_107, "-13.1K"),
        (13_107, "13.1K"),
        (1_852_416, "1.85M"),
        (999_950, "1.00M"),
        (99_960_000, "100M"),
        (50_558_868_480, "50.6B"),
        (568_747_622_400, "569B"),
        (1.4e12, "1.40T"),
    ],
)
def test_count(value, text):
    assert count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.214, "0.21 s"),
        (9.94, "9.9 s"),
        (9.95, "10 s"),
        (59.4, "59 s"),
        (3_599.4, "59 min 59 s"),
        (47.99 * 3600, "47 h 59 min"),
        (48 * 3600 - 1, "48 h 00 min"),
        (48 * 3600, "2.0 d"),
        (45, "45 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (7_500, "2 h 05 min"),
        (3_599.9, "1 h 00 min"),
        (139_200 * 32.5, "52.4 d"),
    ],
)
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (999.4 * 2**10, "999 KiB"),
        (999.5 * 2**20, "1000 MiB"),
        (2**30, "1 GiB"),
        (1536, "1.5 KiB"),
        (95.74 * 2**30, "95.7 GiB"),
        (1010 * 2**30, "1010 GiB"),
        (2**40, "1 TiB"),
    ],
)
def test_byte_count(value, text):
    assert byte_count(value) == text


def test_scientific():
    assert scientific(1.72531e23) == "1.73e23"
    assert scientific(0.5) == "5.00e-01"


def test_bpb():
    """2.10 nats per token at 4.895 ASCII characters per token."""
    assert bits_per_byte(2.10, 4.895) == pytest.approx(0.61893, rel=1e-4)
    # `eval_tokens = 1` of a vocabulary that puts a space before each document: no byte of text.
    assert math.isnan(bits_per_byte(2.10, 0))


@pytest.mark.parametrize(
    ("last", "steps", "text"),
    [
        (100, 10, "mean of steps 91-100"),
        (2_000, 1_500.0, "mean of steps 501-2,000"),
        (7, 7, "mean of steps 1-7"),
        (100, 1, ""),
        # Of a line of an older version.
        (100, None, ""),
    ],
)
def test_the_steps_of_a_mean(last, steps, text):
    assert mean_of_steps(last, steps) == text
