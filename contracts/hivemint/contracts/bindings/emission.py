"""Donated work shares a capped emission, epoch by epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from web3.contract.async_contract import AsyncContractFunction
from web3.types import BlockIdentifier

from hivemint.contracts.bindings.base import Binding, decoding, halves
from hivemint.contracts.chain import Mined
from hivemint.protocol.eip712 import Session
from hivemint.protocol.errors import ChainError, ProofError
from hivemint.protocol.ids import Address, Credits, SessionId
from hivemint.protocol.receipt import Countersigned
from hivemint.protocol.signing import Signer

_LONGEST_EPOCH = 366 * 86_400


class ClaimSkip(IntEnum):
    """Why a claim did nothing for a session."""

    NONE = 0
    FOREIGN_NODE = 1
    NOT_FREE = 2
    WRONG_EPOCH = 3
    NOT_RISING = 4
    EMPTY_SPAN = 5
    UNKNOWN_MODEL = 6
    BAD_RECEIPT = 7
    BAD_VOUCHER = 8


class Status(IntEnum):
    """Where a node's share of an epoch stands."""

    NOTHING = 0
    WAITING = 1
    """Mintable from two epochs after the claimed one."""
    MINTABLE = 2
    MINTED = 3
    VOID = 4
    """By a strike that is not pardoned, or a slash."""


@dataclass(frozen=True, slots=True)
class Donation:
    """A donated session's terms and its last countersigned receipt."""

    session: Session
    countersigned: Countersigned

    @property
    def session_id(self) -> SessionId:
        return self.countersigned.receipt.session_id


@dataclass(frozen=True, slots=True)
class Claim:
    """A mined claim. `units` (mega-FLOP) and `weight` are the node's sums for the epoch; `skipped` by session id."""

    mined: Mined
    counted: int
    units: int
    weight: int
    skipped: dict[SessionId, ClaimSkip]


@dataclass(frozen=True, slots=True)
class ClaimRecord:
    """What a node has claimed for an epoch."""

    last_session: bytes
    units: int
    weight: int
    minted: bool


@dataclass(frozen=True, slots=True)
class Pending:
    """What `mint` would pay by what is known now (wei), and where it stands."""

    amount: Credits
    status: Status


class Emission(Binding):
    NAME = "Emission"

    async def claim(self, sender: Signer, node: Address, epoch: int, donations: Sequence[Donation]) -> Claim:
        """Count donated sessions that expired in `epoch`, the last one. Only the node's operator or owner may send it.

        They are sent in rising order of their ids, as the contract demands; a later claim of the same epoch counts
        only ids above all earlier ones.
        """
        mined = await self.chain.send(sender, self.claim_call(node, epoch, donations), doing="Claiming donated work")
        return self.claimed(mined, donations)

    def claim_call(self, node: Address, epoch: int, donations: Sequence[Donation]) -> AsyncContractFunction:
        """For a worker that submits and replaces transactions itself; see `claimed`."""
        return self.function("claim", node, epoch, [_item(donation) for donation in _rising(donations)])

    def claimed(self, mined: Mined, donations: Sequence[Donation]) -> Claim:
        """What a mined claim of these donations did."""
        ordered, claimed = _rising(donations), self.event_in(mined, "Claimed")
        skips = self.events_in(mined, "ClaimSkipped")
        with decoding(self.chain, "Reading what a claim did"):
            if any(event["index"] >= len(ordered) for event in skips):
                raise ValueError("a skipped session that was not claimed")
            skipped = {ordered[event["index"]].session_id: ClaimSkip(event["reason"]) for event in skips}
        return Claim(mined, claimed["counted"], claimed["units"], claimed["weight"], skipped)

    async def mint(self, sender: Signer, node: Address, epoch: int) -> Credits:
        """Mint the node's share to its payout address, once, from epoch + 2 on. Returns the wei minted."""
        mined = await self.chain.send(sender, self.function("mint", node, epoch), doing="Minting for donated work")
        return Credits(self.event_in(mined, "Minted")["amount"])

    async def pending(self, node: Address, epoch: int, block: BlockIdentifier = "latest") -> Pending:
        amount, status = await self.read("pending", node, epoch, block=block)
        with decoding(self.chain, "Reading the share"):
            return Pending(Credits(amount), Status(status))

    async def claim_of(self, node: Address, epoch: int, block: BlockIdentifier = "latest") -> ClaimRecord:
        last, units, weight, minted = await self.read("claimOf", node, epoch, block=block)
        return ClaimRecord(bytes(last), units, weight, minted)

    async def budget(self, epoch: int, block: BlockIdentifier = "latest") -> Credits:
        """E: the most that is minted for `epoch`; final once it is over."""
        return Credits(await self.read("budget", epoch, block=block))

    async def bootstrap(self, epoch: int) -> Credits:
        """The part of the budget that does not come from fees."""
        return Credits(await self.read("bootstrap", epoch))

    async def total_weight(self, epoch: int, block: BlockIdentifier = "latest") -> int:
        return int(await self.read("totalWeight", epoch, block=block))

    async def minted_total(self, block: BlockIdentifier = "latest") -> Credits:
        """All that donated work has ever minted."""
        return Credits(await self.read("mintedTotal", block=block))

    async def current_epoch(self) -> int:
        """Of the newest block's time."""
        return int(await self.read("currentEpoch"))

    async def epoch_seconds(self) -> int:
        """EPOCH: epoch number = time / EPOCH. Raises ChainError for a length that no contract of ours has."""
        length = int(await self.read("EPOCH"))
        if not 1 <= length <= _LONGEST_EPOCH:
            raise ChainError("The chain tells no length of an epoch", why=f"it says {length} s")
        return length

    async def session_digest(self, session: Session) -> SessionId:
        """The contract's own session id."""
        return SessionId(bytes(await self.read("sessionDigest", tuple(session.message().values()))))


def _rising(donations: Sequence[Donation]) -> list[Donation]:
    return sorted(donations, key=lambda donation: donation.session_id)


def _item(donation: Donation) -> tuple[Any, ...]:
    receipt, voucher = donation.countersigned.receipt, donation.countersigned.voucher
    if voucher.total:
        raise ProofError("A donation's voucher is not free", why=f"its total is {voucher.total} wei, not 0")
    return (
        tuple(donation.session.message().values()),
        receipt.step,
        receipt.tokens,
        receipt.head,
        *halves(receipt.signature),
        *halves(voucher.signature),
    )
