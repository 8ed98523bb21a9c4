"""The rules of the money, short, and written from docs/protocol.md alone: what the contracts are compared with.

Amounts in wei, times in seconds. A method does what a transaction would, or raises `Refused` with the error's name.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

LONGEST_KEY = 90 * 86_400
LONGEST_RELEASE = 3_600
LONGEST_PAUSE = 7 * 86_400


class Refused(Exception):
    """The transaction reverts; the argument is the custom error's name."""


@dataclass(frozen=True)
class Rules:
    """The numbers of a deployment."""

    fee: int
    epoch: int
    thaw: int
    thaw_blocks: int
    cap: int
    bootstrap: int
    units_per_coin: int
    max_per_unit: int
    halving: int = 10**9
    genesis: int = 0


@dataclass
class Account:
    balance: int = 0
    collected: int = 0
    thaw_end: int = 0
    thaw_block: int = 0
    # What P3 speaks of; the contract keeps no such sums.
    deposited: int = 0
    withdrawn: int = 0


@dataclass(frozen=True)
class Item:
    """A settlement's item: who signed which total. `receipt_ok`: the receipt recovers to the node."""

    client: str
    total: int
    key: str
    receipt_ok: bool = True


@dataclass
class Share:
    last_session: bytes = b""
    units: int = 0
    weight: int = 0
    minted: bool = False


@dataclass
class Money:
    """Token, escrow, session keys, stake and emission. `now` and `block` are those of the next transaction."""

    rules: Rules
    now: int = 0
    block: int = 0
    credits: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    accounts: defaultdict[tuple[str, str], Account] = field(default_factory=lambda: defaultdict(Account))
    keys: dict[tuple[str, str], tuple[int, bool]] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)  # node -> payout
    bonds: defaultdict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    fees: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    shares: defaultdict[tuple[str, int], Share] = field(default_factory=lambda: defaultdict(Share))
    nonces: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    paused_until: int = 0
    supply: int = 0
    emitted: int = 0

    @property
    def epoch(self) -> int:
        return self.now // self.rules.epoch

    def m(self, collected: int) -> int:
        return collected - -(-collected * self.rules.fee // 10_000)

    def order(self, client: str, nonce: int, deadline: int) -> None:
        """The client's signature over an order that anybody sends; what it orders follows."""
        if self.now > deadline:
            raise Refused("OrderOver")
        if nonce != self.nonces[client]:
            raise Refused("BadOrder")

    def pause(self) -> None:
        if self.now < self.paused_until + LONGEST_PAUSE:
            raise Refused("PausedLately")
        self.paused_until = self.now + LONGEST_PAUSE

    def unpause(self) -> None:
        self.paused_until = min(self.paused_until, self.now)

    def transfer(self, sender: str, to: str, amount: int) -> None:
        if self.credits[sender] < amount:
            raise Refused("ERC20InsufficientBalance")
        self.credits[sender] -= amount
        self.credits[to] += amount

    # --- paid work

    def fund(self, payer: str, client: str, deposits: dict[str, int]) -> None:
        if self.now < self.paused_until:
            raise Refused("FundingPaused")
        if 0 in deposits.values():
            raise Refused("ZeroAmount")
        self.transfer(payer, "escrow", sum(deposits.values()))
        for node, amount in deposits.items():
            self.accounts[node, client].balance += amount
            self.accounts[node, client].deposited += amount

    def thaw(self, client: str, node: str) -> None:
        account = self.accounts[node, client]
        if account.thaw_end:
            raise Refused("AlreadyThawing")
        account.thaw_end, account.thaw_block = self.now + self.rules.thaw, self.block + self.rules.thaw_blocks

    def cancel_thaw(self, client: str, node: str) -> None:
        account = self.accounts[node, client]
        if not account.thaw_end:
            raise Refused("NotThawing")
        account.thaw_end = 0

    def withdraw(self, client: str, node: str) -> None:
        account = self.accounts[node, client]
        if not account.thaw_end:
            raise Refused("NotThawing")
        if self.now <= account.thaw_end:
            raise Refused("StillThawing")
        if self.block < account.thaw_block:
            raise Refused("TooFewBlocks")
        self._pay_out(client, account)

    def close(self, client: str, node: str, total: int, deadline: int, items: Sequence[Item]) -> None:
        """With the node's release of all above `total`, good until `deadline`, and items that it has not settled."""
        if not self.now <= deadline <= self.now + LONGEST_RELEASE:
            raise Refused("ReleaseOver")
        after = copy.deepcopy(self)
        if items:
            after.settle(node, items)
        if after.accounts[node, client].collected < total:
            raise Refused("NotSettled")
        for item in items:
            self._settle_one(node, item)
        self._pay_out(client, self.accounts[node, client])

    def _pay_out(self, client: str, account: Account) -> None:
        self.transfer("escrow", client, account.balance)
        account.withdrawn += account.balance
        account.balance = account.thaw_end = 0

    def authorize(self, client: str, key: str, until: int) -> None:
        if key == client:
            raise Refused("BadKey")
        if not self.now < until <= self.now + LONGEST_KEY:
            raise Refused("BadValidity")
        if (client, key) in self.keys:
            raise Refused("KeyKnown")
        self.keys[client, key] = (until, True)

    def revoke(self, client: str, key: str) -> None:
        if key == client:
            raise Refused("BadKey")
        until, known = self.keys.get((client, key), (self.now, False))
        self.keys[client, key] = (min(until, self.now), known)

    def settle(self, node: str, items: Sequence[Item]) -> list[str]:
        """The reason for each item that is skipped, "" for one that settles."""
        if node not in self.nodes:
            raise Refused("NotRegistered")
        return [self._settle_one(node, item) for item in items]

    def _settle_one(self, node: str, item: Item) -> str:
        account = self.accounts[node, item.client]
        until, known = (2**64, True) if item.key == item.client else self.keys.get((item.client, item.key), (0, False))
        if item.total <= account.collected:
            return "NOTHING_OWED"
        if not account.balance:
            return "EMPTY_ACCOUNT"
        if not item.receipt_ok:
            return "BAD_RECEIPT"
        if not known:
            return "UNKNOWN_KEY"
        if self.now > until + self.rules.thaw:
            return "KEY_OVER"
        due, before = min(item.total - account.collected, account.balance), account.collected
        account.balance, account.collected = account.balance - due, before + due
        minted = self.m(account.collected) - self.m(before)
        self.credits["escrow"] -= due
        self.credits[self.nodes[node]] += minted
        self.supply += minted - due
        self.fees[self.epoch] += due - minted
        return ""

    # --- donated work

    def bond(self, node: str, stake: int) -> None:
        """`stake` in wei of coin; it counts from the next epoch on."""
        self.bonds[node].append((self.epoch, stake))

    def stake(self, node: str, epoch: int) -> int:
        return sum(stake for when, stake in self.bonds[node] if when < epoch)

    def claim(self, node: str, epoch: int, sessions: Sequence[tuple[bytes, int]]) -> int:
        """(session id, units) in the order sent; the number counted."""
        if epoch + 1 != self.epoch:
            raise Refused("WrongEpoch")
        share, counted = self.shares[node, epoch], 0
        for session, units in sessions:
            if session > share.last_session:
                share.last_session, share.units, counted = session, share.units + units, counted + 1
        share.weight = min(share.units, self.stake(node, epoch) * self.rules.units_per_coin // 10**18)
        return counted

    def budget(self, epoch: int) -> int:
        bootstrap = self.rules.bootstrap >> ((epoch - self.rules.genesis) // self.rules.halving)
        return min(self.rules.cap, self.fees[epoch] + bootstrap)

    def mint(self, node: str, epoch: int) -> int:
        share = self.shares[node, epoch]
        if self.now < self.paused_until:
            raise Refused("MintsPaused")
        if self.epoch < epoch + 2:
            raise Refused("TooEarly")
        if not share.weight:
            raise Refused("NothingClaimed")
        if share.minted:
            raise Refused("AlreadyMinted")
        weights = sum(one.weight for (_, when), one in self.shares.items() if when == epoch)
        amount = min(share.weight * self.budget(epoch) // weights, share.weight * self.rules.max_per_unit // 10**18)
        share.minted = True
        self.credits[self.nodes[node]] += amount
        self.supply += amount
        self.emitted += amount
        return amount
