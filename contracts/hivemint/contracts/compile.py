"""Compile the Solidity sources from Python, and compare with the committed artifacts byte for byte.

py-solc-x runs the compiler: an installed solc of the right version, else the npm one of `hardhat/`, else one that it
downloads. Source names and settings are Hardhat's (`hardhat.config.ts`), so the result does not depend on which.
"""

import json
import posixpath
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hivemint.contracts.artifacts import NAMES
from hivemint.contracts.toolchain import hardhat_project, node_binary
from hivemint.protocol.errors import ChainError, ConfigError

SOLC_VERSION = "0.8.37"
_LIBRARY = "@openzeppelin/contracts"
_SETTINGS: dict[str, Any] = {
    "optimizer": {"enabled": True, "runs": 10_000},
    "evmVersion": "prague",
    "metadata": {"bytecodeHash": "none"},
    "outputSelection": {
        "*": {
            "": ["ast"],
            "*": [
                "abi",
                "evm.bytecode.object",
                "evm.deployedBytecode.object",
                "evm.deployedBytecode.immutableReferences",
            ],
        }
    },
}
_IMPORT = re.compile(r"""^import\s[^;]*?["']([^"']+)["']\s*;""", re.MULTILINE)


def compile_contracts(solc: Path | None = None) -> dict[str, str]:
    """Contract name -> the text of its artifact file. `solc`: a compiler to use instead of the found one.

    Raises ConfigError if there is no source or compiler, ImportError without py-solc-x, ChainError with the compiler's
    message for bad Solidity.
    """
    import solcx
    from solcx.exceptions import SolcError

    project = hardhat_project()
    standard_input = standard_json()
    with _compiler(project, solc) as binary:
        try:
            output = solcx.compile_standard(standard_input, solc_binary=binary)
        except (SolcError, ValueError) as error:
            raise ChainError("The contracts do not compile", why=str(error)) from None
    names = _immutable_names(output["sources"])
    return {name: _artifact(name, output["contracts"][f"project/src/{name}.sol"][name], names) for name in NAMES}


def standard_json() -> dict[str, Any]:
    """What the compiler is given, as block explorers take it to verify a contract; it is the same for all.

    Raises ConfigError if there is no source.
    """
    project = hardhat_project()
    return {"language": "Solidity", "sources": _sources(project), "settings": _settings(project)}


def qualified(name: str) -> str:
    """A contract's name as explorers ask for it: its source, a colon, the name."""
    return f"project/src/{name}.sol:{name}"


def artifacts_folder() -> Path:
    """Where the committed artifacts lie."""
    return Path(__file__).parent / "artifacts"


def stale(compiled: dict[str, str]) -> list[str]:
    """Names of the contracts whose committed artifact differs from `compiled` by any byte."""
    folder = artifacts_folder()
    return [
        name
        for name, text in compiled.items()
        if not (path := folder / f"{name}.json").exists() or path.read_bytes() != text.encode()
    ]


def write_artifacts(compiled: dict[str, str]) -> list[str]:
    """Write those that differ; returns their names."""
    changed = stale(compiled)
    for name in changed:
        (artifacts_folder() / f"{name}.json").write_text(compiled[name], encoding="utf-8", newline="\n")
    return changed


@contextmanager
def _compiler(project: Path, chosen: Path | None) -> Iterator[Path]:
    """A compiler that py-solc-x can run. Raises ConfigError for one of another version."""
    import solcx

    installed = [version for version in solcx.get_installed_solc_versions() if str(version) == SOLC_VERSION]
    system = shutil.which("solc")
    if chosen or (system and _version(Path(system)) == SOLC_VERSION):
        binary = chosen or Path(system or "")
        if (found := _version(binary)) != SOLC_VERSION:
            raise ConfigError(
                f"{binary} is the wrong compiler", why=f"it is {found}, the contracts need {SOLC_VERSION}"
            )
        yield binary
    elif installed:
        yield solcx.install.get_executable(SOLC_VERSION)
    elif (project / "node_modules" / "solc").is_dir():
        with tempfile.TemporaryDirectory(prefix="hivemint-") as folder:
            script = Path(folder) / "solc"
            script.write_text(f'#!/bin/sh\nexec "{node_binary()}" "{project / "scripts" / "solc.mjs"}" "$@"\n')
            script.chmod(0o700)
            yield script
    else:
        try:
            solcx.install_solc(SOLC_VERSION)
        except (OSError, solcx.exceptions.SolcInstallationError) as error:
            raise ConfigError(
                "There is no Solidity compiler", why=f"downloading it failed: {error}", next_step="run `make setup`"
            ) from None
        yield solcx.install.get_executable(SOLC_VERSION)


def _version(binary: Path) -> str:
    try:
        told = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"The compiler {binary} does not run", why=str(error)) from None
    match = re.search(r"Version: (\d+\.\d+\.\d+)", told)
    return match.group(1) if match else "unknown"


def _settings(project: Path) -> dict[str, Any]:
    return {**_SETTINGS, "remappings": [f"project/:{_LIBRARY}/={_library(project)}/"]}


def _library(project: Path) -> str:
    """The name that Hardhat gives to the library's sources."""
    version = json.loads((project / "node_modules" / _LIBRARY / "package.json").read_text())["version"]
    return f"npm/{_LIBRARY}@{version}"


def _sources(project: Path) -> dict[str, dict[str, str]]:
    """Hardhat's name -> content, of our sources and all that they import."""
    folder, library = project.parent / "contracts" / "src", _library(project)
    waiting = [f"project/src/{path.relative_to(folder).as_posix()}" for path in sorted(folder.rglob("*.sol"))]
    if not waiting:
        raise ConfigError("There are no Solidity sources", why=f"{folder} is empty")
    found: dict[str, dict[str, str]] = {}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        path = folder / name.removeprefix("project/src/")
        if name.startswith(library):
            path = project / "node_modules" / _LIBRARY / name.removeprefix(library + "/")
        content = path.read_text(encoding="utf-8")
        found[name] = {"content": content}
        for target in _IMPORT.findall(content):
            if target.startswith("."):
                waiting.append(posixpath.normpath(posixpath.join(posixpath.dirname(name), target)))
            else:
                waiting.append(library + target.removeprefix(_LIBRARY))
    return dict(sorted(found.items()))


def _immutable_names(sources: dict[str, Any]) -> dict[str, str]:
    """AST id -> name of each immutable; the ids depend on what was compiled together, the names do not."""
    names: dict[str, str] = {}
    waiting: list[Any] = [source["ast"] for source in sources.values()]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if node.get("nodeType") == "VariableDeclaration" and node.get("mutability") == "immutable":
                names[str(node["id"])] = node["name"]
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)
    return names


def _artifact(name: str, built: dict[str, Any], names: dict[str, str]) -> str:
    """The same text as `hardhat/scripts/artifacts.mjs` writes."""
    code, deployed = built["evm"]["bytecode"], built["evm"]["deployedBytecode"]
    immutables = {names[key]: places for key, places in deployed["immutableReferences"].items()}
    document = {
        "contractName": name,
        "abi": built["abi"],
        "bytecode": "0x" + code["object"],
        "deployedBytecode": "0x" + deployed["object"],
        "immutableReferences": dict(sorted(immutables.items())),
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"
