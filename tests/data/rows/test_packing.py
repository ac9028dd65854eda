import gin
import pytest

from t5x_style.data import Packing
from t5x_style.errors import UsageError


def test_what_is_not_written_is_how_gpt_packs():
    packing = Packing()
    assert not packing.document_starts
    assert packing.attend_across_documents
    assert packing.loss_from_context == 0


def test_gin_sets_every_attribute():
    with gin.unlock_config():
        gin.parse_config(
            "Packing.windows = 'document_starts'\n"
            "Packing.attend_across_documents = False\n"
            "Packing.loss_from_context = 32\n"
        )
    try:
        packing = Packing()
    finally:
        gin.clear_config()
    assert packing.document_starts
    assert (packing.attend_across_documents, packing.loss_from_context) == (False, 32)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"windows": "document_start"}, "did you mean 'document_starts'?"),
        ({"windows": None}, "Packing.windows = None is not one of concatenated"),
        ({"attend_across_documents": "no"}, "attend_across_documents = 'no': write True or False"),
        ({"loss_from_context": -1}, "loss_from_context = -1: write a number of tokens"),
        ({"loss_from_context": 0.5}, "loss_from_context = 0.5: write a number of tokens"),
        ({"loss_from_context": True}, "loss_from_context = True: write a number of tokens"),
    ],
)
def test_what_is_wrong_is_told(wrong, message):
    with pytest.raises(UsageError) as error:
        Packing(**wrong)
    assert message in str(error.value)
