"""Fixtures that every test may use."""

import pytest

pytest.register_assert_rewrite("support")
pytest_plugins = ["support.chain", "support.two_endpoints"]
