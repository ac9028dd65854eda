"""What a run leaves, written and read again: metrics, events, the console line, tables."""

from t5x_style.reporting.progress import Progress
from t5x_style.reporting.run_writer import EVENT_KINDS, RunWriter
from t5x_style.reporting.text import table

__all__ = ["EVENT_KINDS", "Progress", "RunWriter", "table"]
