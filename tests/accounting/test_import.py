"""The accounts are for scripts and for `--help`: they must come at once, and bring no jax."""

import subprocess
import sys

PROGRAM = """
import sys, time
import numpy, gin
start = time.perf_counter()
import t5x_style.accounting
print(time.perf_counter() - start)
print([name for name in ("jax", "scipy", "tensorflow", "matplotlib") if name in sys.modules])
"""


def test_import_is_fast_and_light():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    seconds, loaded = run.stdout.split("\n")[:2]
    assert float(seconds) < 0.2
    assert loaded == "[]"
