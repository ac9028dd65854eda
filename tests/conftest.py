"""Eight virtual CPU devices for every test, and each program compiled once: set before jax."""

import atexit
import os
import shutil
import tempfile

import gin
import hypothesis
import pytest

# A time limit on each example says more about the machine's other work than about the code.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")

os.environ["JAX_PLATFORMS"] = "cpu"
# Compiling is what most tests wait for, and unoptimised it takes half as long.
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)

# Many tests start the same small run, some in processes of their own, which inherit this. The
# folder is new for every session, so nothing stale is ever read.
_programs = tempfile.mkdtemp(prefix="t5x_style-programs-")
atexit.register(shutil.rmtree, _programs, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# For runs that are compared bit for bit: a program that XLA's CPU backend loads from this cache
# differs in the last bits from the same program compiled.
WITHOUT_PROGRAM_CACHE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


@pytest.fixture(autouse=True, scope="module")
def nothing_bound():
    """What a module before left bound in gin would fill in what this one leaves to its default."""
    gin.clear_config()
