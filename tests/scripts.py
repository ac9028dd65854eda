"""The Python scripts of tools/ as modules."""

import importlib.machinery
import importlib.util
import pathlib
import types

TOOLS = pathlib.Path(__file__).parents[1] / "tools"


def script(name: str) -> types.ModuleType:
    """What a script defines; it is not started."""
    loader = importlib.machinery.SourceFileLoader(name, str(TOOLS / name))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(name, loader))
    loader.exec_module(module)
    return module
