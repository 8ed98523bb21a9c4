"""Fixtures that every test may use."""

pytest_plugins = ["support.chain", "support.two_endpoints"]
