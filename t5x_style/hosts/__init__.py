"""Several processes that together are one run."""

from t5x_style.hosts.hosts import Hosts, from_writer, is_writer, preemption_requested

__all__ = ["Hosts", "from_writer", "is_writer", "preemption_requested"]
