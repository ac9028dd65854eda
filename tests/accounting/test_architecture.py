import pytest

from t5x_style.accounting import Architecture
from t5x_style.errors import UsageError


@pytest.mark.parametrize("window", [0, -3])
def test_a_window_without_a_key_is_refused(window):
    with pytest.raises(UsageError, match=f"window = {window}: a query sees itself"):
        Architecture(40, 2, 24, 48, 4, window=window)


def test_a_dtype_that_no_product_has_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'int8'"):
        Architecture(40, 2, 24, 48, 4, matmul_dtype="int4")
