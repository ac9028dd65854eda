"""The toy verb, for the tests of the gin front end."""

from tests.commands.conftest import run_toy, toy  # noqa: F401
