"""The development chain: Hardhat's node as a child process, and the calls that only such a chain knows.

It keeps nothing over a restart, listens on loopback at a free port, and its accounts' keys are public.
"""

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import httpx

from hivemint.contracts.toolchain import hardhat_project, node_binary
from hivemint.protocol.errors import ChainError
from hivemint.protocol.signing import Signer
from hivemint.protocol.text import shown_url

CHAIN_ID = 31337
MNEMONIC = "test test test test test test test test test test test junk"
"""Hardhat's own, known to everybody: whatever these accounts get on a public chain is lost."""
ACCOUNTS = 20
_STARTED = re.compile(r"JSON-RPC server at (http://\S+:\d+)/")
_HARDHAT = "node_modules/hardhat/dist/src/cli.js"
_READY_WITHIN = 60.0


def dev_signers(count: int = ACCOUNTS) -> list[Signer]:
    """The funded accounts of a development chain, 10,000 coins each, in the order in which Hardhat prints them."""
    from eth_account.hdaccount import key_from_seed, seed_from_mnemonic

    seed = seed_from_mnemonic(MNEMONIC, "")
    return [Signer(key_from_seed(seed, f"m/44'/60'/0'/0/{index}")) for index in range(count)]


class DevChain:
    """A running Hardhat node. Use it as a context manager, or call `stop`."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes] | None" = None) -> None:
        """`url` of a chain that runs; `process` if this object owns it."""
        self.url, self._process = url, process
        self._http = httpx.Client(base_url=url, timeout=30, trust_env=False)

    @classmethod
    def start(
        cls,
        *,
        log: Path | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        detached: bool = False,
        alive: Callable[[], None] | None = None,
    ) -> Self:
        """Start Hardhat's node and wait until it answers (1 to 3 s).

        log: where its output goes; none keeps it only for an error. host: where to listen. port: 0 takes a free one.
        detached: a Ctrl-C at the terminal does not reach it. alive: called while waiting, for a spinner.
        Raises ConfigError if Node.js or Hardhat are not installed, ChainError if it does not start.
        """
        command = [str(node_binary()), _HARDHAT, "node", "--hostname", host, "--port", str(port)]
        project = hardhat_project()
        with tempfile.TemporaryDirectory(prefix="hivemint-") as folder:
            output = log or Path(folder) / "hardhat.log"
            with output.open("wb") as sink:
                process = subprocess.Popen(
                    command,
                    cwd=project,
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=subprocess.STDOUT,
                    start_new_session=detached,
                    env=_environment(),
                )
            try:
                chain = cls(_wait_started(process, output, alive), process)
                chain.rpc("eth_chainId")
                chain.rpc("hardhat_setLoggingEnabled", False)
            except BaseException:
                _end(process)
                raise
        return chain

    @property
    def pid(self) -> int | None:
        """Of the process, if this object started it."""
        return self._process.pid if self._process else None

    def wait(self) -> None:
        """Until the process has ended, if this object owns it."""
        if self._process:
            self._process.wait()

    def rpc(self, method: str, *params: Any) -> Any:
        """One JSON-RPC call; for what a development chain alone knows. Raises ChainError."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        try:
            answer = self._http.post("", json=request).raise_for_status().json()
        except (httpx.HTTPError, ValueError) as error:
            raise ChainError(
                f"The development chain at {shown_url(self.url)} does not answer",
                why=str(error) or type(error).__name__,
                next_step="start it again with `hivemint testnet up`",
            ) from None
        if "error" in answer:
            raise ChainError(f"The development chain refused {method}", why=str(answer["error"].get("message")))
        return answer.get("result")

    def mine(self, blocks: int = 1) -> None:
        """Mine empty blocks now."""
        self.rpc("hardhat_mine", hex(blocks))

    def mine_every(self, seconds: float) -> None:
        """Also mine a block at each interval, so that time passes without transactions; 0 stops it."""
        self.rpc("evm_setIntervalMining", int(seconds * 1000))

    def time(self) -> int:
        """The newest block's time, in seconds since 1970."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def travel(self, seconds: int) -> int:
        """Move the chain's clock ahead, for good, and mine a block there. Returns that block's time."""
        self.rpc("evm_increaseTime", hex(seconds))
        self.mine()
        return self.time()

    def travel_to(self, timestamp: int) -> int:
        """Move the clock so that a block has this time. Raises ChainError if it lies in the past."""
        self.rpc("evm_setNextBlockTimestamp", hex(timestamp))
        self.mine()
        return self.time()

    def snapshot(self) -> str:
        """Remember the state; `revert` to it once."""
        return str(self.rpc("evm_snapshot"))

    def revert(self, snapshot: str) -> None:
        """Back to a snapshot: what came after it never was."""
        if not self.rpc("evm_revert", snapshot):
            raise ChainError("The development chain knows no such snapshot", why="it was used already")

    def stop(self) -> None:
        """End the process, if this object owns it. A second call does nothing."""
        self._http.close()
        if self._process:
            _end(self._process)
            self._process = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


_CURES = {
    "EADDRINUSE": "choose another --port",
    "EADDRNOTAVAIL": "name an address of this machine with --host",
    "EACCES": "choose a --port above 1023",
}
"""What helps, by what Node.js says."""


def _wait_started(process: "subprocess.Popen[bytes]", output: Path, alive: Callable[[], None] | None) -> str:
    deadline = time.monotonic() + _READY_WITHIN
    while time.monotonic() < deadline:
        text = output.read_text(errors="replace")
        if started := _STARTED.search(text):
            return started.group(1)
        if process.poll() is not None:
            cures = [cure for trouble, cure in _CURES.items() if trouble in text]
            cure = cures[0] if cures else "run `make setup` again"
            raise ChainError("Hardhat's node ended at once", why=_reason(text), next_step=cure)
        if alive:
            alive()
        time.sleep(0.05)
    raise ChainError("Hardhat's node did not start", why=f"nothing listened after {_READY_WITHIN:.0f} s")


def _reason(output: str) -> str:
    """The line of Hardhat's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if "EADDRINUSE" in line or line.startswith("Error")]
    return (told or lines or ["no output"])[0][:300]


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "HARDHAT_DISABLE_TELEMETRY_PROMPT": "true", "FORCE_COLOR": "0", "NO_COLOR": "1"}
