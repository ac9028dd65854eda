"""A step compiled for a slice that need not be there, and the report on it."""

from t5x_style.compiling.described_tpus import USABLE_BYTES, described_devices

__all__ = ["USABLE_BYTES", "described_devices"]
