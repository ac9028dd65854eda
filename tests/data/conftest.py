"""A small vocabulary and small corpora, made once."""

import pytest

from t5x_style.data import Source
from t5x_style.data.sources.documents import documents
from t5x_style.data.tokenizers.train import train_tokenizer

EMBEDDED = {
    name: Source(
        name=name,
        splits={
            "train": f"package:{name}.train.jsonl.gz",
            "validation": f"package:{name}.validation.jsonl.gz",
        },
    )
    for name in ("legal", "general")
}


@pytest.fixture(scope="session")
def embedded():
    """{name: Source} of the corpora that ship with the package."""
    return EMBEDDED


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    """512 pieces, trained on the validation splits."""
    return train_tokenizer(
        {name: documents(source, "validation") for name, source in EMBEDDED.items()},
        {"legal": 0.51, "general": 0.49},
        vocab_size=512,
        path=tmp_path_factory.mktemp("vocabulary") / "small.model",
        sample_bytes=200_000,
    )
