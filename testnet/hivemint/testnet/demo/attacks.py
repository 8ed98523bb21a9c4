"""Attacks on a running testnet, each with the real tools of an attacker, each to be refused with its reason.

forged receipt        the chain gets a receipt that the node never signed
replayed settlement   the chain gets a receipt and voucher that were paid already
foreign session       a node gets a session that was signed for another node
empty escrow          a node gets a paid session of a client without credits
doctored hidden state a node changes what it computed after signing it, on its way to the next node
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import torch

from hivemint.client.sessions.opening import Greeting, SignedSession, greet, shake_hands, sign_session
from hivemint.client.sessions.route import Leg, Route
from hivemint.client.sessions.swarm_client import SwarmClient
from hivemint.contracts.bindings import Bindings
from hivemint.ledger.books.journal import Journal
from hivemint.ledger.settlement.chainview import ContractView
from hivemint.ledger.store.database import database_url
from hivemint.node.engine.threads import Worker
from hivemint.node.server import Kit, Node
from hivemint.node.sessions.metering import MeasuredRows, ReceiptMeter
from hivemint.node.settings import NodeSettings
from hivemint.node.span.span import Span
from hivemint.protocol.errors import HivemintError
from hivemint.protocol.ids import BlockIndex, Credits, Head, TensorHash, Tokens
from hivemint.protocol.receipt import Countersigned, sign_receipt, sign_voucher
from hivemint.protocol.signing import Signer
from hivemint.swarm.host import Host, HostSettings
from hivemint.swarm.messages import StepRequest
from hivemint.testnet.demo.story import Attack
from hivemint.testnet.localnet import STAKE, LocalNet

TIMEOUT = 10.0
ROWS = 4
MALLORY = "mallory"


class Attacker:
    """Mallory. She has Alice's and Bob's clients to attack with, and a node of her own."""

    def __init__(self, net: LocalNet, bindings: Bindings, alice: Any, bob: Any) -> None:
        self._net, self._bindings, self._alice, self._bob = net, bindings, alice, bob

    async def all(self) -> AsyncIterator[Attack]:
        """One after the other."""
        paid = await asyncio.to_thread(self._alice.run, self._work(self._alice.swarm))
        yield await self._forged_receipt(paid)
        yield await self._replayed_settlement(paid)
        yield await asyncio.to_thread(self._bob.run, self._foreign_session(self._bob.swarm))
        yield await asyncio.to_thread(self._bob.run, self._empty_escrow(self._bob.swarm))
        yield await self._doctored_hidden_state()

    # --- on the chain

    async def _work(self, swarm: SwarmClient) -> Countersigned:
        """A few paid rows of Alice's; gives what the first node may settle for them."""
        pipeline = await swarm.open(2 * ROWS)
        await pipeline.forward(torch.randn(ROWS, pipeline.hidden_size))
        await pipeline.close()
        session, payer = pipeline.sessions[0], swarm.payer
        total = Credits(payer.book.totals()[session.leg.operator][0])
        return Countersigned(session.bindable, sign_voucher(payer.domain, session.bindable, total, payer.who.key))

    async def _forged_receipt(self, paid: Countersigned) -> Attack:
        """A million tokens more, signed by somebody who is not the node; Alice's voucher over it is real."""
        domain, alice = self._net.network.domain, self._net.signer("alice")
        mallory = Signer(b"\x66" * 32)
        claimed = msgspec.structs.replace(paid.receipt.body, tokens=Tokens(10**6))
        forged = replace(sign_receipt(domain, claimed, mallory), body=claimed)
        voucher = sign_voucher(domain, forged, Credits(paid.voucher.total + 1), alice)
        return await self._settle("forged receipt", Countersigned(forged, voucher))

    async def _replayed_settlement(self, paid: Countersigned) -> Attack:
        node, sender = paid.receipt.body.node, self._net.signer("carol")
        await self._bindings.settlement.settle(sender, node, [paid])
        return await self._settle("replayed settlement", paid)

    async def _settle(self, name: str, proof: Countersigned) -> Attack:
        """Anybody may call `settle`; what is wrong with an item is said by the contract."""
        token = self._bindings.token
        node, sender = proof.receipt.body.node, self._net.signer("carol")
        before = await token.supply()
        result = await self._bindings.settlement.settle(sender, node, [proof])
        reason = "; ".join(skipped.reason.name.lower().replace("_", " ") for skipped in result.skipped)
        untouched = result.burned == 0 == result.minted and await token.supply() == before
        return Attack(name, bool(result.skipped) and untouched, f"the contract skipped it: {reason}")

    # --- at a node's door

    async def _foreign_session(self, swarm: SwarmClient) -> Attack:
        """Fresh nonce, real signature, but the session names another node."""
        first, second = (await swarm.route(ROWS)).legs[:2]
        greeting = await greet(swarm.host, second, TIMEOUT)
        own = sign_session(greeting, swarm.payer, tokens=ROWS, margin=1.25, expiry=await swarm.expiry())
        session = msgspec.structs.replace(own.session, node=first.operator)
        signature = session.sign(swarm.payer.domain, swarm.payer.who.key)
        signed = SignedSession(session, session.session_id(swarm.payer.domain), signature)
        return await self._knock("foreign session", swarm, greeting, signed)

    async def _empty_escrow(self, swarm: SwarmClient) -> Attack:
        leg = (await swarm.route(ROWS)).legs[0]
        leg = replace(leg, bid=leg.record.ask)
        greeting = await greet(swarm.host, leg, TIMEOUT)
        signed = sign_session(greeting, swarm.payer, tokens=ROWS, margin=1.25, expiry=await swarm.expiry())
        return await self._knock("empty escrow", swarm, greeting, signed)

    async def _knock(self, name: str, swarm: SwarmClient, greeting: Greeting, signed: SignedSession) -> Attack:
        try:
            await shake_hands(greeting, signed, swarm.payer, previous=None, next_hop=None, timeout=TIMEOUT)
        except HivemintError as error:
            return Attack(name, True, str(error))
        finally:
            await greeting.link.close()
        return Attack(name, False, "the node opened the session")

    # --- between two nodes

    async def _doctored_hidden_state(self) -> Attack:
        """Mallory's node is registered and bonded like any other; it flips one bit of what it has signed."""
        async with DoctoringNode(self._net, self._bindings) as node:
            return await asyncio.to_thread(self._bob.run, self._through(self._bob.swarm, node))

    async def _through(self, swarm: SwarmClient, node: "DoctoringNode") -> Attack:
        honest = await swarm.route(2 * ROWS)
        first, *rest = honest.legs
        legs = (Leg(node.record, first.first, first.end, Credits(0), first.numerics, 0.0, 0.0), *rest)
        pipeline = await swarm.along(Route(legs), 2 * ROWS)
        try:
            await pipeline.forward(torch.randn(ROWS, pipeline.hidden_size))
            await pipeline.forward(torch.randn(1, pipeline.hidden_size))
        except HivemintError as error:
            return Attack("doctored hidden state", True, str(error))
        finally:
            await pipeline.close()
        if bytes(pipeline.sessions[0].leg.peer) != bytes(node.record.peer):
            why = "the next node refused the input; another took the place of the one that had sent it"
            return Attack("doctored hidden state", True, why)
        return Attack("doctored hidden state", False, "nobody noticed")


class DoctoringMeter(ReceiptMeter):
    """Signs what the span computed, and sends something else."""

    async def encode(self, output: torch.Tensor, wire: str) -> bytes:
        return _flipped(await super().encode(output, wire))

    async def measure(self, previous: Head, request: StepRequest, input_hash: TensorHash, data: bytes) -> MeasuredRows:
        return await super().measure(previous, request, input_hash, _flipped(data))


class DoctoringNode:
    """A node of Mallory's for the first span, in this process, with a `DoctoringMeter`."""

    def __init__(self, net: LocalNet, bindings: Bindings) -> None:
        self._net, self._bindings = net, bindings
        self._closers: list[Any] = []

    @property
    def record(self) -> Any:
        """What it tells the swarm of itself."""
        return self._node.record()

    async def __aenter__(self) -> "DoctoringNode":
        net, network = self._net, self._net.network
        owner, operator = net.signer("heidi"), net.signer("heidi-node")
        plan, folder = net.plans[0], net.home.node(MALLORY)
        host = await Host.start(
            HostSettings(network=network.name, identity=folder / "peer.key", bootstrap=network.bootstrap)
        )
        await self._bindings.registry.register(owner, operator, host.peer_id, network.domain, stake=STAKE)
        span = await asyncio.to_thread(Span.load, net.model.folder, BlockIndex(plan.first), BlockIndex(plan.end))
        genesis = await self._bindings.chain.genesis()
        journal = Journal.open(database_url(folder / "journal.db"), network.domain, operator.address, genesis)
        chain = ContractView(self._bindings, operator.address, network.confirmations)
        worker = Worker("doctor")
        meter = DoctoringMeter(network.domain, operator, worker)
        kit = Kit(network, net.model.model_id, span, operator, host, journal, chain, meter)
        self._node = await Node.start(kit, NodeSettings.load(kv_bytes=64 << 20, threads=1))
        self._closers = [self._node.close, host.close, journal.close]
        return self

    async def __aexit__(self, *_: object) -> None:
        for close in self._closers:
            await close()


def _flipped(data: bytes) -> bytes:
    """With one bit of the first byte changed."""
    return bytes([data[0] ^ 1]) + data[1:]
