"""Where the repository lies, for what needs its Hardhat project."""

from pathlib import Path

from hivemint.protocol.errors import ConfigError


def from_checkout() -> Path:
    """The repository's root, for the verbs that need its Hardhat project. Raises ConfigError from a wheel."""
    for folder in Path(__file__).resolve().parents:
        if (folder / "hardhat" / "package.json").is_file():
            return folder
    raise ConfigError(
        "This verb needs a checkout of Hivemint",
        why="it starts Hardhat's node, and a wheel carries no npm packages",
        next_step="git clone the repository, then `make setup`",
    )
