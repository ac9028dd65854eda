"""The accounts are for scripts and for `--help`: they load few modules, and no jax."""

import dataclasses
import importlib
import pkgutil
import subprocess
import sys

import pytest

import t5x_style

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


@pytest.mark.parametrize("room", ["accounting", "kernels", "step", "compiling"])
def test_every_record_is_frozen(room):
    """A value that two rooms hold is one value: neither can change it for the other."""
    records = {
        value
        for module in pkgutil.walk_packages(
            [f"{t5x_style.__path__[0]}/{room}"], f"t5x_style.{room}."
        )
        for value in vars(importlib.import_module(module.name)).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    assert records
    own = {record for record in records if record.__module__.startswith(f"t5x_style.{room}")}
    assert [record for record in own if not record.__dataclass_params__.frozen] == []
