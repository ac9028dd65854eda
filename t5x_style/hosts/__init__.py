"""Several processes that together are one run."""

from t5x_style.hosts.hosts import (
    Hosts,
    from_all,
    from_writer,
    is_writer,
    lost_processes_named,
    preemption_requested,
)
from t5x_style.hosts.watchdog import Watchdog, building, enter_phase, pass_step, write_ends_by

__all__ = [
    "Hosts",
    "Watchdog",
    "building",
    "enter_phase",
    "from_all",
    "from_writer",
    "is_writer",
    "lost_processes_named",
    "pass_step",
    "preemption_requested",
    "write_ends_by",
]
