"""From corpora to rows of tokens."""

from t5x_style.data.blend import Blend
from t5x_style.data.evaluation import EvaluationSet, evaluation_set
from t5x_style.data.reader import BatchReader
from t5x_style.data.store import TokenStore
from t5x_style.data.tokenizer import Tokenizer

__all__ = [
    "BatchReader",
    "Blend",
    "EvaluationSet",
    "TokenStore",
    "Tokenizer",
    "evaluation_set",
]
