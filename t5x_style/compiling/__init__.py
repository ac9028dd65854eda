"""A step compiled for a slice that need not be there, and the report on it."""

from t5x_style.compiling.described_tpus import described_devices
from t5x_style.compiling.report import CompileReport, compiled_report, mesh_of, refusal_of

__all__ = ["CompileReport", "compiled_report", "described_devices", "mesh_of", "refusal_of"]
