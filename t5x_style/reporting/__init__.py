"""The files of a run, written and read; the console line, tables, figures and the page."""

from t5x_style.reporting.figures.known_models import KnownModel, known_models
from t5x_style.reporting.figures.scaling import check_suffix, scaling_figure
from t5x_style.reporting.logs.lives import process_began
from t5x_style.reporting.logs.log_lines import (
    EVENTS_FILE,
    METRICS_FILE,
    Log,
    is_evaluation,
    missing_lines,
    move_logs_aside,
    not_in,
    read_log,
)
from t5x_style.reporting.page.run_report import write_report
from t5x_style.reporting.run.console import Progress, warn
from t5x_style.reporting.run.derived_run import (
    DerivedRun,
    Horizon,
    PhaseRecord,
    PlannedSource,
    VocabularyRecord,
)
from t5x_style.reporting.run.record import Event, RunRecord, read_derived, read_run
from t5x_style.reporting.run.writer import (
    CONFIG_FILE,
    EVENT_KINDS,
    PLAN_FILE,
    RunWriter,
    SilentWriter,
)
from t5x_style.reporting.text.derived import (
    ACHIEVED_HEADERS,
    SOURCE_HEADERS,
    achieved_rows,
    derived_rows,
    source_rows,
)
from t5x_style.reporting.text.tables import table

__all__ = [
    "ACHIEVED_HEADERS",
    "CONFIG_FILE",
    "EVENTS_FILE",
    "EVENT_KINDS",
    "METRICS_FILE",
    "PLAN_FILE",
    "SOURCE_HEADERS",
    "DerivedRun",
    "Event",
    "Horizon",
    "KnownModel",
    "Log",
    "PhaseRecord",
    "PlannedSource",
    "Progress",
    "RunRecord",
    "RunWriter",
    "SilentWriter",
    "VocabularyRecord",
    "achieved_rows",
    "check_suffix",
    "derived_rows",
    "is_evaluation",
    "known_models",
    "missing_lines",
    "move_logs_aside",
    "not_in",
    "process_began",
    "read_derived",
    "read_log",
    "read_run",
    "scaling_figure",
    "source_rows",
    "table",
    "warn",
    "write_report",
]
