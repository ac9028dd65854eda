"""From corpora to rows of tokens."""

from t5x_style.data.blend import Blend
from t5x_style.data.corpus import Corpus
from t5x_style.data.evaluation import EvaluationSet, evaluation_set
from t5x_style.data.filters import Length, Rewrite
from t5x_style.data.reader import BatchReader
from t5x_style.data.sources import Source
from t5x_style.data.store import TokenStore
from t5x_style.data.stores import Stores, ensure_stores, missing_stores
from t5x_style.data.tokenizer import Tokenizer

__all__ = [
    "BatchReader",
    "Blend",
    "Corpus",
    "EvaluationSet",
    "Length",
    "Rewrite",
    "Source",
    "Stores",
    "TokenStore",
    "Tokenizer",
    "ensure_stores",
    "evaluation_set",
    "missing_stores",
]
