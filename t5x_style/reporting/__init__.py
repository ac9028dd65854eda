"""What a run leaves, written and read again; the console line, tables, the page."""

from t5x_style.reporting.html_report import write_report
from t5x_style.reporting.progress import Progress
from t5x_style.reporting.run_record import RunRecord, read_run
from t5x_style.reporting.run_writer import EVENT_KINDS, RunWriter
from t5x_style.reporting.text import table

__all__ = [
    "EVENT_KINDS",
    "Progress",
    "RunRecord",
    "RunWriter",
    "read_run",
    "table",
    "write_report",
]
