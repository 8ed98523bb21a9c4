"""A stage for hostile players: a chain with the real contracts behind two endpoints that can lie, and libp2p hosts.

State machines are not async, so the stage has an event loop of its own that runs while something is asked of it.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import structlog
from eth_abi.abi import decode, encode
from hypothesis import HealthCheck, settings

from hivemint.contracts.bindings.base import halves
from hivemint.protocol.eip712 import Operator, peer_id_hash
from hivemint.protocol.ids import Address
from hivemint.protocol.keccak import keccak
from hivemint.protocol.network import Network
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.link_registry import Handler
from hivemint.testnet.devchain import CHAIN_ID
from support.chain import TestChain
from support.earning import COIN, earn_credits
from support.lying_rpc import LyingRpc
from support.money_world import Call, World
from support.promises import signer

T = TypeVar("T")
NODE, WALLET = signer(1001), signer(60)
ACCOUNTS = keccak(b"accounts(address,address[],address[])")[:4]
_VIEWS = ["(uint256,uint256,uint256,uint256,bool)[]"]
_NO_PERMIT = (0, 0, 0, bytes(32), bytes(32))


class Door:
    """A host at which one node after the other serves: a daemon takes one handler a protocol, for good."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._handlers: dict[str, Handler] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._host, name)

    async def serve(self, protocol: str, handler: Handler) -> None:
        known = protocol in self._handlers
        self._handlers[protocol] = handler
        if not known:
            await self._host.serve(protocol, lambda link: self._handlers[protocol](link))


class Stage:
    """`reset` goes back to: NODE registered, WALLET with 200 credits and no account.

    `told`: every error that was logged, and every one that nobody waited for, since `reset`.
    """

    def __init__(self, folder: Path, world: World, one: LyingRpc, two: LyingRpc) -> None:
        self.folder, self.world, self.one, self.two = folder, world, one, two
        self.domain = world.domain
        self.network = Network("test", CHAIN_ID, one.url, world.contracts, other_rpc_urls=(two.url,))
        self.true = Network("test", CHAIN_ID, world.chain.url, world.contracts)
        self.told: list[str] = []
        self._runner = asyncio.Runner()
        self._stack = contextlib.AsyncExitStack()
        self._examples = 0
        self.host: Any  # a Door
        self.client: Host

    @classmethod
    @contextmanager
    def start(cls, folder: Path) -> "Iterator[Stage]":
        with World.start() as world, LyingRpc(world.chain.url) as one, LyingRpc(world.chain.url) as two:
            stage = cls(folder, world, one, two)
            try:
                stage.run(stage._begin())
                structlog.configure(processors=[stage._log])
                yield stage
            finally:
                structlog.reset_defaults()
                stage.run(stage._stack.aclose())
                stage._runner.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def reset(self) -> Path:
        """A folder of its own for each example."""
        self.honest()
        self.world.reset()
        self.world.catch_up()
        self.told.clear()
        self._examples += 1
        folder = self.folder / str(self._examples)
        folder.mkdir()
        return folder

    async def _begin(self) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self.told.append(str(context)))
        host = await Host.start(HostSettings("test"))
        self._stack.push_async_callback(host.close)
        self.host = Door(host)
        self.client = await Host.start(HostSettings("test", listen=(), bootstrap=self.host.addresses))
        self._stack.push_async_callback(self.client.close)
        world, (_, owner) = self.world, self.world.signers[:2]
        rich = await earn_credits(TestChain(world.chain, self.true, world.signers), self.folder / "earned.db")
        world.catch_up()
        consent = Operator(owner.address, NODE.address, peer_id_hash(self.host.peer_id))
        signed = halves(consent.sign(self.domain, NODE))
        register = ("NodeRegistry", "register", (NODE.address, consent.peer_id_hash, owner.address, signed))
        self._must(owner.address, register, COIN)
        self._must(rich.address, ("CreditToken", "transfer", (WALLET.address, 200 * COIN)))
        for one in (NODE, WALLET):
            world.chain.rpc("hardhat_setBalance", one.address, hex(5 * COIN))
        world.chain.rpc("hardhat_impersonateAccount", WALLET.address)
        self._must(WALLET.address, ("CreditToken", "approve", (world.contracts.settlement, 2**256 - 1)))
        world.mark()

    def _must(self, sender: Address, call: Call, value: int = 0) -> None:
        error, _ = self.world.send(sender, call, value=value)
        assert not error, f"{call[1]}: {error}"

    def _log(self, _: Any, name: str, event: Any) -> str:
        if name in ("error", "critical", "exception"):
            self.told.append(str(event))
        raise structlog.DropEvent

    # ---- the wallet on the chain

    def order(self, function: str, *arguments: Any) -> str:
        """A transaction of WALLET to `Settlement`; the name of the error, "" if it went through."""
        self.world.catch_up()
        error, _ = self.world.send(WALLET.address, ("Settlement", function, arguments))
        return error

    def fund(self, amount: int) -> None:
        assert not self.order("fund", WALLET.address, [NODE.address], [amount], _NO_PERMIT)
        self.world.chain.mine()

    def account(self, key: Address = WALLET.address) -> tuple[int, int, int, int, bool]:
        """Balance, collected, end of the thaw, end of the key, whether it was revoked unset; as the chain is."""
        call = ("Settlement", "accounts", (NODE.address, [WALLET.address], [key]))
        ((view,),) = self.world.read([call])
        return view  # type: ignore[no-any-return]

    def pass_time(self, seconds: int) -> None:
        self.world.chain.travel(seconds)

    # ---- endpoints

    def honest(self) -> None:
        self.one.honest()
        self.two.honest()

    def lie(self, endpoints: int, kind: str) -> None:
        """Until `honest`. `endpoints`: 1 or 2 of them.

        spent: all that the account holds has been collected; unpaid: nothing has; poor: it holds a wei; rich: more
        than it does; dead: keys are over; thaw: it thaws; short: a list with an entry less; down: no answer; lag.
        """
        for rpc in (self.one, self.two)[:endpoints]:
            if kind == "down":
                rpc.drop()
            elif kind == "lag":
                rpc.freeze()
            elif kind == "short":
                rpc.call(ACCOUNTS, lambda answer: answer[:-160])
            else:
                rpc.call(ACCOUNTS, _changing(_LIES[kind]))


View = tuple[int, int, int, int, bool]
_LIES: dict[str, Callable[[View], View]] = {
    "spent": lambda view: (0, view[0] + view[1], *view[2:]),
    "unpaid": lambda view: (view[0] + view[1], 0, *view[2:]),
    "poor": lambda view: (1, 0, *view[2:]),
    "rich": lambda view: (view[0] + 10**6, *view[1:]),
    "dead": lambda view: (*view[:3], 1, view[4]),
    "thaw": lambda view: (*view[:2], 2**40, *view[3:]),
}


def _changing(change: Callable[[View], View]) -> Callable[[bytes], bytes]:
    def changed(answer: bytes) -> bytes:
        (views,) = decode(_VIEWS, answer)
        return encode(_VIEWS, [[change(view) for view in views]])

    return changed


__all__ = ["NODE", "WALLET", "Signer", "Stage"]


def profile(examples: int, steps: int) -> settings:
    """How long plays on a stage are, and how many; the same ones in each run."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
