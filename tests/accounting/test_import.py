"""The accounts are for scripts and for `--help`: they load few modules, and no jax."""

import subprocess
import sys

PROGRAM = """
import sys
import numpy, gin
before = set(sys.modules)
import t5x_style.accounting
print(*sorted(set(sys.modules) - before))
"""


def test_import_is_light():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    loaded = run.stdout.split()
    own = [name for name in loaded if name.startswith("t5x_style")]
    foreign = {name.split(".")[0] for name in loaded} - {"t5x_style"} - sys.stdlib_module_names
    assert "t5x_style.accounting" in own
    assert foreign == set()
    # Modules cost the time: some 40 of ours, and a few of the standard library.
    assert len(own) < 60
    assert len(loaded) - len(own) < 20
