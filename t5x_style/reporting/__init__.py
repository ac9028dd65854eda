"""What a run leaves, written and read again; the console line, tables, the page."""

from t5x_style.reporting.html_report import write_report
from t5x_style.reporting.known_models import KnownModel, known_models
from t5x_style.reporting.progress import Progress
from t5x_style.reporting.run_record import RunRecord, read_run
from t5x_style.reporting.run_writer import EVENT_KINDS, RunWriter, SilentWriter
from t5x_style.reporting.scaling_figure import check_suffix, scaling_figure
from t5x_style.reporting.text import table

__all__ = [
    "EVENT_KINDS",
    "KnownModel",
    "Progress",
    "RunRecord",
    "RunWriter",
    "SilentWriter",
    "check_suffix",
    "known_models",
    "read_run",
    "scaling_figure",
    "table",
    "write_report",
]
