"""Fixtures that every test may use."""

import os

import pytest

for variable in ("COLUMNS", "LINES"):  # readline in pytest's first process leaves them to those that it starts
    os.environ.pop(variable, None)

pytest.register_assert_rewrite("support")
pytest_plugins = ["support.chain", "support.two_endpoints"]
