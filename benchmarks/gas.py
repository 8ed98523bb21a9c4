"""What money costs on the chain: real receipts of Hardhat's node (prague), calldata included.

    python benchmarks/gas.py [--json FILE]

Each figure is `gasUsed` of a mined transaction, per item where it carries many. Sessions, signatures and amounts have
their real sizes (256-bit heads and nonces, amounts of 10^15 wei and more). The payout has held credits before, as on
any day but a node's first: the very first credits that an address holds cost 17,100 gas more whoever sends them (the
slot of its balance), which `single_first_of_payout` shows. Gas doesn't depend on the machine, so one run is exact.
"""

import asyncio
import secrets
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from harness import Bound, finish, options
from rich.console import Console
from rich.table import Table

from hivemint.contracts.bindings import Bindings, Donation
from hivemint.contracts.bindings.base import halves
from hivemint.contracts.chain import Mined
from hivemint.contracts.deploy import deploy, load_numbers
from hivemint.protocol.eip712 import Delegation, Domain, Receipt, Session, numerics_hash, peer_id_hash
from hivemint.protocol.ids import ONE_CREDIT, Address, BlockIndex, Credits, Head, ModelId, PeerId, Step, Tokens
from hivemint.protocol.receipt import Countersigned, sign_receipt, sign_voucher
from hivemint.protocol.signing import Signer
from hivemint.testnet.devchain import CHAIN_ID, DevChain, dev_signers

BATCH = 50
SIZES = (100, 1_000, 10_000, 1_000_000)
"""Tokens that an account has used when its node settles."""
MODEL = ModelId(secrets.token_bytes(32))
BOUNDS = {
    "single_repeat": Bound(most=90_000),
    "single_first": Bound(most=90_000),
    "single_first_of_epoch": Bound(most=90_000),
    "batch50_clients_each": Bound(most=27_000),
    "batch50_first_each": Bound(most=27_000),
    "claim50_each": Bound(most=22_000),
    "equivocation": Bound(most=90_000),
}
PEERS = {
    "GraphTally collect, repeat": 137_431,
    "Livepeer redeemWinningTicket": 108_020,
    "Livepeer batch of 20, each": 59_710,
    "x402 upto settle": 66_088,
}
"""As measured on these projects' own contracts; a payment of each settles one payer at one payee."""
NUMBERS = Path(__file__).resolve().parents[1] / "contracts" / "networks" / "dev.toml"


class Stage:
    """One node with stake, and as many funded clients as wanted, each with a session key that signs for it."""

    def __init__(self, chain: DevChain, contracts: Bindings, domain: Domain) -> None:
        self.chain, self.contracts, self.domain = chain, contracts, domain
        self.owner, self.node, self.anyone = dev_signers()[1:4]
        self.keys: dict[Address, Signer] = {}
        self.totals: dict[Address, int] = {}

    async def found(self) -> None:
        """Register, and donate work for the first credits."""
        await self.contracts.registry.register(
            self.owner, self.node, PeerId(b"peer"), self.domain, stake=1_000 * ONE_CREDIT
        )
        epoch = await self.next_epoch()
        donation = self.donation(Signer(secrets.token_bytes(32)), epoch, tokens=10**11)
        await self.next_epoch()
        await self.contracts.emission.claim(self.owner, self.node.address, epoch, [donation])
        await self.next_epoch()
        await self.contracts.emission.mint(self.owner, self.node.address, epoch)

    async def next_epoch(self) -> int:
        length = await self.contracts.emission.epoch_seconds()
        epoch = self.chain.time() // length + 1
        self.chain.travel_to(epoch * length + 100)
        return epoch

    async def clients(self, count: int) -> list[Address]:
        """New wallets, 4 credits in escrow each; their session keys stand on the chain."""
        wallets = [Signer(secrets.token_bytes(32)) for _ in range(count)]
        until = self.chain.time() + 60 * 86_400
        for wallet in wallets:
            key = Signer(secrets.token_bytes(32))
            delegation = Delegation(wallet.address, key.address, until, paid=True)
            signature = delegation.sign(self.domain, wallet)
            await self.contracts.settlement.authorize_by_sig(self.anyone, delegation, signature)
            await self.contracts.settlement.fund(self.owner, {self.node.address: 4 * ONE_CREDIT}, client=wallet.address)
            self.keys[wallet.address], self.totals[wallet.address] = key, 0
        return [wallet.address for wallet in wallets]

    def owed(self, client: Address, amount: int) -> Countersigned:
        """`amount` wei more than before."""
        self.totals[client] += amount
        receipt = Receipt(
            self.node.address, client, self.random_id(), Step(1200), Tokens(123_456), Head(secrets.token_bytes(32))
        )
        signed = sign_receipt(self.domain, receipt, self.node)
        return Countersigned(signed, sign_voucher(self.domain, signed, Credits(self.totals[client]), self.keys[client]))

    def random_id(self) -> Any:
        return secrets.token_bytes(32)

    def donation(self, key: Signer, epoch: int, tokens: int) -> Donation:
        session = Session(
            client=key.address,
            session_key=key.address,
            node=self.node.address,
            peer_id_hash=peer_id_hash(b"peer"),
            model_id=MODEL,
            numerics=numerics_hash("fp32/fp32/fp32"),
            first_block=BlockIndex(0),
            end_block=BlockIndex(15),
            price=Credits(0),
            max_amount=Credits(0),
            max_tokens=4096,
            expiry=epoch * 86_400 + 3600,
            nonce=secrets.token_bytes(32),
        )
        receipt = Receipt(
            self.node.address,
            key.address,
            session.session_id(self.domain),
            Step(400),
            Tokens(tokens),
            Head(secrets.token_bytes(32)),
        )
        signed = sign_receipt(self.domain, receipt, self.node)
        return Donation(session, Countersigned(signed, sign_voucher(self.domain, signed, Credits(0), key)))

    async def new_payout(self) -> None:
        """From now on the node is paid to an address that holds nothing."""
        fresh = Signer(secrets.token_bytes(32)).address
        call = self.contracts.registry.function("setPayout", self.node.address, fresh)
        await self.contracts.chain.send(self.owner, call, doing="Naming a payout")

    async def settle(self, clients: Sequence[Address], amount: int) -> int:
        """Gas of one call with an item for each client."""
        items = [self.owed(client, amount + index * 12_345_678_901) for index, client in enumerate(clients)]
        result = await self.contracts.settlement.settle(self.anyone, self.node.address, items)
        assert len(result.settled) == len(clients), result.skipped
        return result.mined.gas_used


async def measure(stage: Stage) -> dict[str, Any]:
    await stage.found()
    amount = 123_456_789_012_345_678
    one, *many = await stage.clients(1 + BATCH)
    new_epoch = await stage.settle([one], amount)
    (fresh,) = await stage.clients(1)
    figures: dict[str, Any] = {
        "single_repeat": await stage.settle([one], amount),
        "single_first": await stage.settle([fresh], amount),
        "single_first_of_epoch": new_epoch,
        "batch50_first_each": await stage.settle(many, amount) / BATCH,
        "batch50_clients_each": await stage.settle(many, amount) / BATCH,
    }
    for count in (2, 5, 10, 20):
        figures[f"batch{count}_clients_each"] = await stage.settle(many[:count], amount) / count
    await stage.new_payout()
    figures["single_first_of_payout"] = await stage.settle([one], amount)
    figures["claim50_each"] = await claims(stage)
    figures["equivocation"] = await equivocation(stage)
    return figures


async def claims(stage: Stage) -> float:
    epoch = await stage.next_epoch()
    donations = [stage.donation(Signer(secrets.token_bytes(32)), epoch, 123_456) for _ in range(BATCH)]
    await stage.next_epoch()
    claim = await stage.contracts.emission.claim(stage.node, stage.node.address, epoch, donations)
    assert claim.counted == BATCH, claim.skipped
    return claim.mined.gas_used / BATCH


async def equivocation(stage: Stage) -> int:
    session, client = stage.random_id(), stage.anyone.address
    one, two = (
        sign_receipt(
            stage.domain,
            Receipt(stage.node.address, client, session, Step(400), Tokens(1000), Head(secrets.token_bytes(32))),
            stage.node,
        )
        for _ in range(2)
    )
    statements = [(c.body.client, c.tokens, c.head, halves(c.signature)) for c in (one, two)]
    call = stage.contracts.disputes.function("proveEquivocation", stage.node.address, session, 400, *statements)
    mined: Mined = await stage.contracts.chain.send(stage.anyone, call, doing="Proving equivocation")
    return mined.gas_used


def per_token(figures: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Gas per settled token, for accounts of so many tokens: a settlement's gas does not depend on their number."""
    costs = {
        "hivemint, alone": figures["single_repeat"],
        "hivemint, 50 clients a call": figures["batch50_clients_each"],
        **PEERS,
    }
    return {name: {str(size): gas / size for size in SIZES} for name, gas in costs.items()}


async def run() -> dict[str, Any]:
    numbers = load_numbers(NUMBERS)
    with DevChain.start() as chain, tempfile.TemporaryDirectory(prefix="hivemint-bench-") as folder:
        done = await deploy(
            chain.url, dev_signers()[0], replace(numbers, rates={MODEL: 7}), Path(folder) / "deployed.toml"
        )
        from hivemint.contracts.chain import Chain

        async with await Chain.connect(chain.url, CHAIN_ID) as connection:
            domain = Domain(CHAIN_ID, done.contracts.settlement)
            figures = await measure(Stage(chain, Bindings.over(connection, done.contracts), domain))
    return {**figures, "gas_per_token": per_token(figures), "peers": PEERS}


def show_per_token(rates: Mapping[str, Mapping[str, float]]) -> None:
    table = Table(title="gas per settled token", title_justify="left", box=None, header_style="dim")
    table.add_column("tokens in the account")
    for size in SIZES:
        table.add_column(f"{size:,}", justify="right")
    for name, row in rates.items():
        table.add_row(name, *(f"{value:,.4g}" for value in row.values()))
    Console().print(table)


def plot(figures: Mapping[str, Any]) -> Callable[[Any], None]:
    """Gas of one client's payment by the number of clients in a call; the peers' as lines."""
    sizes = (1, 2, 5, 10, 20, BATCH)
    each = [figures["single_repeat" if size == 1 else f"batch{size}_clients_each"] for size in sizes]

    def draw(axes: Any) -> None:
        for name, gas in PEERS.items():
            axes.axhline(gas / 1000, color="#94a3b8", linestyle="--", linewidth=1)
            axes.text(BATCH, gas / 1000 + 1.5, name, ha="right", fontsize=8, color="#475569")
        axes.plot(sizes, [gas / 1000 for gas in each], marker="o", color="#0f766e")
        for size, gas in zip(sizes, each, strict=True):
            axes.annotate(f"{gas / 1000:.1f}", (size, gas / 1000), (0, -13), textcoords="offset points", ha="center")
        axes.set(xscale="log", xlabel="clients in one settlement", ylabel="thousand gas each", ylim=(0, 150))
        axes.set_xticks(sizes, labels=[str(size) for size in sizes], minor=False)
        axes.minorticks_off()
        axes.set_title("Settling a client's account, whatever the number of its tokens")

    return draw


def main() -> None:
    args = options(__doc__ or "")
    figures = asyncio.run(run())
    show_per_token(figures["gas_per_token"])
    finish(
        "gas", {**figures, **{f"{name} (peer)": gas for name, gas in PEERS.items()}}, BOUNDS, args.json, plot(figures)
    )


if __name__ == "__main__":
    main()
