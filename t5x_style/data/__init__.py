"""From corpora to rows of tokens."""

from t5x_style.data.blend import Blend, BlendPhase
from t5x_style.data.caps import capped
from t5x_style.data.contamination import Contamination
from t5x_style.data.corpus import Corpus
from t5x_style.data.duplicates import Duplicates
from t5x_style.data.evaluation import EvaluationSet, evaluation_set
from t5x_style.data.filters import Language, Length, Rewrite
from t5x_style.data.packing import Packing
from t5x_style.data.phases import SharePhase, in_rows
from t5x_style.data.reader import BatchReader, Rows
from t5x_style.data.sources import Source
from t5x_style.data.store import TokenStore
from t5x_style.data.stores import Stores, ensure_stores, missing_stores
from t5x_style.data.tokenizer import Tokenizer

__all__ = [
    "BatchReader",
    "Blend",
    "BlendPhase",
    "Contamination",
    "Corpus",
    "Duplicates",
    "EvaluationSet",
    "Language",
    "Length",
    "Packing",
    "Rewrite",
    "Rows",
    "SharePhase",
    "Source",
    "Stores",
    "TokenStore",
    "Tokenizer",
    "capped",
    "ensure_stores",
    "evaluation_set",
    "in_rows",
    "missing_stores",
]
