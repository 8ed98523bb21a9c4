"""Paid work: escrow accounts, session keys, and the burn and mint of paid work."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from web3.contract.async_contract import AsyncContractFunction
from web3.types import BlockIdentifier

from hivemint.contracts.bindings.base import decoding, halves
from hivemint.contracts.bindings.orders import Orders
from hivemint.contracts.bindings.token import NO_PERMIT, Token
from hivemint.contracts.chain import Chain, Mined
from hivemint.protocol.credits import format_credits
from hivemint.protocol.eip712 import MAX_UINT96, Delegation, Receipt, Release, Voucher
from hivemint.protocol.errors import BadInput
from hivemint.protocol.ids import Address, Credits, Digest, SessionId, Signature
from hivemint.protocol.orders import Close
from hivemint.protocol.receipt import Countersigned
from hivemint.protocol.signing import Signer


class Skip(IntEnum):
    """Why a settlement did nothing for an item."""

    NONE = 0
    NOTHING_OWED = 1
    """Settled before, or stale."""
    EMPTY_ACCOUNT = 2
    """Collectable after a top-up."""
    BAD_RECEIPT = 3
    UNKNOWN_KEY = 4
    KEY_OVER = 5


@dataclass(frozen=True, slots=True)
class Account:
    """The escrow of one (client, node) pair, in wei; `thaw_end` in seconds since 1970, 0 = open."""

    balance: Credits
    collected: Credits
    thaw_end: int

    @property
    def funded(self) -> Credits:
        """What a settlement leaves unchanged: balance + collected; 0 while thawing."""
        return Credits(0 if self.thaw_end else self.balance + self.collected)


@dataclass(frozen=True, slots=True)
class AccountView(Account):
    """What a node asks about a client. `key_valid_until`: 0 = never set, 2^64-1 = the client's own key.

    key_revoked: the key was revoked before it was ever set, so no delegation for it counts.
    """

    key_valid_until: int
    key_revoked: bool = False


@dataclass(frozen=True, slots=True)
class SessionKey:
    """`authorized` is False for a key revoked before it was ever set."""

    valid_until: int
    authorized: bool


@dataclass(frozen=True, slots=True)
class SettledItem:
    """What one item did, in wei. `total` is the voucher's promise; more than is collected if the escrow was short."""

    client: Address
    session: SessionId
    step: int
    tokens: int
    burned: Credits
    minted: Credits
    total: Credits

    @property
    def fee(self) -> Credits:
        return Credits(self.burned - self.minted)


@dataclass(frozen=True, slots=True)
class SkippedItem:
    """`index` in the call's items."""

    client: Address
    index: int
    reason: Skip


@dataclass(frozen=True, slots=True)
class SettlementResult:
    """A mined settlement."""

    mined: Mined
    settled: tuple[SettledItem, ...]
    skipped: tuple[SkippedItem, ...]

    @property
    def burned(self) -> Credits:
        return Credits(sum(item.burned for item in self.settled))

    @property
    def minted(self) -> Credits:
        return Credits(sum(item.minted for item in self.settled))


class Settlement(Orders):
    NAME = "Settlement"

    def __init__(self, chain: Chain, address: Address, token: Token) -> None:
        super().__init__(chain, address)
        self.token = token

    async def fund(self, payer: Signer, deposits: Mapping[Address, int], *, client: Address | None = None) -> Mined:
        """Deposit credits (wei) into the accounts that `client` (else the payer) has at these nodes, in one call.

        A permit travels with it if the allowance is too small, so no other transaction is needed.
        Raises BadInput if the payer has too little.
        """
        if not deposits or min(deposits.values()) <= 0:
            raise BadInput("There is nothing to deposit", why="each node needs an amount above zero")
        total = sum(deposits.values())
        balance = await self.token.balance(payer.address)
        if balance < total:
            raise BadInput(
                "This wallet has too few credits",
                why=f"the deposit is {format_credits(total)} in all, {payer.address} has {format_credits(balance)}",
                next_step="deposit less, or get credits first: a node's payout earns them, by paid and by donated work",
            )
        enough = await self.token.allowance(payer.address, self.address) >= total
        permit = NO_PERMIT if enough else await self.token.permit(payer, self.address, total)
        call = self.function(
            "fund", client or payer.address, list(deposits), list(deposits.values()), permit.arguments()
        )
        return await self.chain.send(payer, call, doing="Funding accounts")

    async def thaw(self, client: Signer, node: Address) -> Mined:
        """Close the client's account for new work; it can be withdrawn after THAW."""
        return await self.chain.send(client, self.function("thaw", node), doing="Thawing the account")

    async def cancel_thaw(self, client: Signer, node: Address) -> Mined:
        return await self.chain.send(client, self.function("cancelThaw", node), doing="Cancelling the thaw")

    async def withdraw(self, client: Signer, node: Address) -> Mined:
        """All that is left, back to the client, after the thaw."""
        return await self.chain.send(client, self.function("withdraw", node), doing="Withdrawing from the account")

    async def authorize(self, client: Signer, key: Address, valid_until: int) -> Mined:
        """Let `key` sign for the client, at most 90 days ahead (seconds since 1970, chain time). Once per key."""
        return await self.chain.send(client, self.function("authorize", key, valid_until), doing="Authorizing the key")

    async def authorize_by_sig(self, sender: Signer, delegation: Delegation, signature: bytes) -> Mined:
        """The same by the client's signature (64 or 65 bytes, or a contract wallet's) over a delegation for paid work;
        `sender` pays the gas.
        """
        call = self.function(
            "authorizeBySig", delegation.client, delegation.session_key, delegation.valid_until, signature
        )
        return await self.chain.send(sender, call, doing="Authorizing the key")

    async def revoke(self, client: Signer, key: Address) -> Mined:
        """End `key` now. What it signed stays collectable for THAW."""
        return await self.chain.send(client, self.function("revoke", key), doing="Revoking the key")

    async def close(
        self, client: Signer, release: Release, signature: Signature, items: Sequence[Countersigned] = ()
    ) -> Mined:
        """Settle `items`, and pay all that is left at the node back at once. `signature`: the node's release."""
        call = self.function("close", release.node, _released(release, signature), [_item(one) for one in items])
        return await self.chain.send(client, call, doing="Closing the account")

    async def close_by_sig(
        self,
        sender: Signer,
        order: Close,
        consent: bytes,
        release: Release,
        signature: Signature,
        items: Sequence[Countersigned] = (),
    ) -> Mined:
        """The same with the client's `consent`, its signature over `order`; `sender` pays the gas."""
        released, given = _released(release, signature), [_item(one) for one in items]
        call = self.function("closeBySig", order.client, order.node, released, given, order.deadline, consent)
        return await self.chain.send(sender, call, doing="Closing the account")

    def settle_call(self, node: Address, items: Sequence[Countersigned]) -> AsyncContractFunction:
        """For a worker that submits and replaces transactions itself; see `result`."""
        return self.function("settle", node, [_item(one) for one in items])

    async def settle(self, sender: Signer, node: Address, items: Sequence[Countersigned]) -> SettlementResult:
        """Burn what the vouchers owe and mint it less the fee to the node's payout. Anyone may send it."""
        return self.result(await self.chain.send(sender, self.settle_call(node, items), doing="Settling"))

    def result(self, mined: Mined) -> SettlementResult:
        """What a mined settlement did."""
        with decoding(self.chain, "Reading what a settlement did"):
            return self._result(mined)

    def _result(self, mined: Mined) -> SettlementResult:
        settled = tuple(
            SettledItem(
                client=Address(event["client"]),
                session=SessionId(event["sessionId"]),
                step=event["step"],
                tokens=event["tokens"],
                burned=Credits(event["burned"]),
                minted=Credits(event["minted"]),
                total=Credits(event["total"]),
            )
            for event in self.events_in(mined, "Settled")
        )
        skipped = tuple(
            SkippedItem(Address(event["client"]), event["index"], Skip(event["reason"]))
            for event in self.events_in(mined, "Skipped")
        )
        return SettlementResult(mined, settled, skipped)

    async def account(self, client: Address, node: Address, block: BlockIdentifier = "latest") -> Account:
        balance, collected, thaw_end = await self.read("account", client, node, block=block)
        return Account(Credits(balance), Credits(collected), thaw_end)

    async def accounts(
        self, node: Address, pairs: Sequence[tuple[Address, Address]], block: BlockIdentifier = "latest"
    ) -> list[AccountView]:
        """All that `node` needs about many (client, key that signs for it), in one call and the same order."""
        if not pairs:
            return []
        clients, keys = zip(*pairs, strict=True)
        views = await self.read_long("accounts", node, list(clients), list(keys), block=block)
        if len(views) != len(pairs):
            raise self.chain.odd("Reading the accounts", f"{len(views)} accounts, asked were {len(pairs)}")
        if any(one[0] + one[1] > MAX_UINT96 for one in views):
            raise self.chain.odd("Reading the accounts", "more credits in one account than can exist")
        return [AccountView(Credits(one[0]), Credits(one[1]), *one[2:]) for one in views]

    async def session_key(self, client: Address, key: Address, block: BlockIdentifier = "latest") -> SessionKey:
        valid_until, authorized = await self.read("sessionKey", client, key, block=block)
        return SessionKey(valid_until, authorized)

    async def fee(self) -> int:
        """FEE in 1/10,000 of what is burned."""
        return int(await self.read("FEE"))

    async def thaw_seconds(self) -> int:
        """THAW: how long an account thaws and how long vouchers outlive their key."""
        return int(await self.read("THAW"))

    async def thaw_end_block(self, client: Address, node: Address) -> int:
        """The first block in which a thawing account may be withdrawn, its time being over; 0 for one that is open."""
        return int(await self.read("thawEndBlock", client, node))

    async def fees_burned(self, epoch: int, block: BlockIdentifier = "latest") -> Credits:
        return Credits(await self.read("feesBurned", epoch, block=block))

    async def minted_for(self, collected: int) -> Credits:
        """The contract's own m(c); `credits.mintable` computes the same."""
        return Credits(await self.read("mintedFor", collected))

    async def current_epoch(self) -> int:
        return int(await self.read("currentEpoch"))

    async def delegation_digest(self, delegation: Delegation) -> Digest:
        return Digest(bytes(await self.read("delegationDigest", *_values(delegation))))

    async def release_digest(self, release: Release) -> Digest:
        return Digest(bytes(await self.read("releaseDigest", *_values(release))))

    async def receipt_digest(self, receipt: Receipt) -> Digest:
        return Digest(bytes(await self.read("receiptDigest", *_values(receipt))))

    async def voucher_digest(self, voucher: Voucher) -> Digest:
        return Digest(bytes(await self.read("voucherDigest", *_values(voucher))))


def _released(release: Release, signature: Signature) -> tuple[Any, ...]:
    return int(release.total), release.deadline, halves(signature)


def _values(struct: Delegation | Receipt | Release | Voucher) -> list[Any]:
    return list(struct.message().values())


def _item(countersigned: Countersigned) -> tuple[Any, ...]:
    receipt, voucher = countersigned.receipt.body, countersigned.voucher
    return (
        receipt.client,
        receipt.session_id,
        receipt.step,
        receipt.tokens,
        receipt.head,
        int(voucher.total),
        *halves(countersigned.receipt.signature),
        *halves(voucher.signature),
    )
