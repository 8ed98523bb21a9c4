"""Libraries that only some of the verbs need, and what to install for them."""

from hivemint.protocol.errors import ConfigError

EXTRA_OF = {
    "alembic": "node",
    "prometheus_client": "node",
    "fastapi": "ledger",
    "uvicorn": "ledger",
    "solcx": "deploy",
}
"""Module -> the extra in pyproject.toml that brings it."""


def missing(error: ModuleNotFoundError) -> ConfigError | None:
    """What to say of a library that is not installed; None for a module that no extra brings."""
    library = (error.name or "").split(".")[0]
    if library not in EXTRA_OF:
        return None
    return ConfigError(
        f"This verb needs the library {library}",
        why="it is not installed: a client does without it",
        next_step=f"pip install 'hivemint[{EXTRA_OF[library]}]'",
    )
