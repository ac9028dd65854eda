"""From corpora to rows of tokens."""

from t5x_style.data.blend.blend import Blend, BlendPhase
from t5x_style.data.blend.caps import capped
from t5x_style.data.blend.phases import SharePhase, in_rows
from t5x_style.data.cleaning.contamination import Contamination
from t5x_style.data.cleaning.duplicates import Duplicates
from t5x_style.data.formats.format import BadRecord, FileFormat, Format, Part, Record, Split
from t5x_style.data.rows.batch_plan import BatchPlan
from t5x_style.data.rows.evaluation_rows import EvaluationSet, evaluation_set
from t5x_style.data.rows.packing import Packing
from t5x_style.data.rows.reader import BatchReader, Rows
from t5x_style.data.sources.filters import Language, Length, Rewrite
from t5x_style.data.sources.source import Source
from t5x_style.data.stores.corpus import Corpus
from t5x_style.data.stores.needed import Stores, ensure_stores, missing_stores
from t5x_style.data.stores.token_store import TokenStore
from t5x_style.data.tokenizers.tokenizer import Tokenizer

__all__ = [
    "BadRecord",
    "BatchPlan",
    "BatchReader",
    "Blend",
    "BlendPhase",
    "Contamination",
    "Corpus",
    "Duplicates",
    "EvaluationSet",
    "FileFormat",
    "Format",
    "Language",
    "Length",
    "Packing",
    "Part",
    "Record",
    "Rewrite",
    "Rows",
    "SharePhase",
    "Source",
    "Split",
    "Stores",
    "TokenStore",
    "Tokenizer",
    "capped",
    "ensure_stores",
    "evaluation_set",
    "in_rows",
    "missing_stores",
]
