"""A coalition of nodes and clients that trades with itself, against honest ones, on the rules of `money_model`.

Each epoch honest clients pay nodes for work, everybody claims donated work, and the coalition plays a few random
moves: washing (its own client pays its own node, whole or in dust), invented donated sessions, escrow in and out, real
payments to honest nodes. `Outcome` says what the burning inside the coalition cost, and what it brought back.
"""

import random
from collections import defaultdict
from dataclasses import dataclass, field, replace
from fractions import Fraction

from support.money_model import Item, Money, Rules

HMC = COIN = 10**18
HONEST_NODES, PURSES = 3, 2
RULES = Rules(
    fee=500,
    epoch=86_400,
    thaw=3 * 86_400,
    thaw_blocks=0,
    cap=10_000 * HMC,
    bootstrap=1_000 * HMC,
    units_per_coin=10**9,
    max_per_unit=5 * 10**28,
    halving=365,
)
"""Those of contracts/networks/dev.toml."""


class CountsWholeBurn(Money):
    """A fault on purpose: the emission grows by all that was burned, not by what was lost. It must show."""

    def budget(self, epoch: int) -> int:
        bootstrap = self.rules.bootstrap >> ((epoch - self.rules.genesis) // self.rules.halving)
        return min(self.rules.cap, self.fees[epoch] * 10_000 // self.rules.fee + bootstrap)


@dataclass(frozen=True)
class Coalition:
    """`stake` in coins over all its `nodes`; `purse` in credits at the start; `greed`: most moves in an epoch."""

    nodes: int
    stake: int
    purse: int
    greed: int = 4


@dataclass
class Outcome:
    """Sums in wei. `paid`: fees of settlements inside the coalition; `regained`: what they added to its mints.

    share: mean share of the weights; worst: largest (gain - share * cost - nodes) of an epoch, never above zero.
    """

    washed: int = 0
    paid: int = 0
    regained: int = 0
    minted: int = 0
    worst: Fraction = Fraction(-(10**30))
    shares: list[float] = field(default_factory=list)

    @property
    def share(self) -> float:
        return sum(self.shares) / len(self.shares) if self.shares else 0.0

    @property
    def ratio(self) -> float:
        """What a credit of fees brought back."""
        return self.regained / self.paid if self.paid else 0.0


class Game:
    """One coalition, one seed. `play` runs it and checks P2 and P7 at every step."""

    def __init__(self, coalition: Coalition, seed: int, rules: Rules = RULES, kind: type[Money] = Money) -> None:
        self.dice, self.coalition = random.Random(seed), coalition
        self.money = kind(rules)
        self.own_nodes = [f"node {index} of the coalition" for index in range(coalition.nodes)]
        self.honest = [f"honest node {index}" for index in range(HONEST_NODES)]
        self.purses = [f"purse {index} of the coalition" for index in range(PURSES)]
        self.bob = "bob"
        self.inside: defaultdict[int, int] = defaultdict(int)
        self.outcome = Outcome()
        for node in self.own_nodes:
            self._enter(node, self.purses[0], coalition.stake * COIN // coalition.nodes)
        for node in self.honest:
            self._enter(node, node, 10 * COIN)
        for holder, amount in ((self.purses[0], coalition.purse), (self.bob, 1_000)):
            self.money.credits[holder] += amount * HMC
            self.money.supply += amount * HMC
        self.money.now = rules.epoch

    def _enter(self, node: str, payout: str, stake: int) -> None:
        self.money.nodes[node] = payout
        self.money.bond(node, stake)

    def play(self, epochs: int) -> Outcome:
        for _ in range(epochs):
            self.money.now += self.money.rules.epoch
            self._honest_day()
            for _ in range(self.dice.randint(0, self.coalition.greed)):
                before = self.wealth()
                self.dice.choice([self._wash, self._wash, self._churn, self._buy])()
                assert self.wealth() <= before, "P2: trading with itself made the coalition richer"
            self._claim(self.money.epoch - 1)
            self._mint(self.money.epoch - 2)
            self._forget(self.money.epoch - 4)
        return self.outcome

    def wealth(self) -> int:
        """W: credits and escrow of the coalition."""
        escrow = sum(account.balance for (_, client), account in self.money.accounts.items() if client in self.purses)
        return sum(self.money.credits[purse] for purse in self.purses) + escrow

    # --- moves

    def _pay(self, client: str, node: str, amount: int, pieces: int = 1) -> None:
        """Deposit, sign and settle, in so many vouchers."""
        amount = min(amount, self.money.credits[client])
        if amount <= 0:
            return
        account = self.money.accounts[node, client]
        self.money.fund(client, client, {node: amount})
        first, last = account.collected, account.collected + account.balance
        for piece in range(1, pieces + 1):
            total = first + (last - first) * piece // pieces
            self.money.settle(node, [Item(client, total, client)])

    def _honest_day(self) -> None:
        self._pay(self.bob, self.dice.choice([*self.honest, *self.own_nodes]), self.dice.randint(0, 20 * HMC))
        for node in self.honest:  # Bob works for a living, so that he can go on paying
            self.money.transfer(node, self.bob, self.money.credits[node])

    def _wash(self) -> None:
        """Burn and mint inside; the fee is lost."""
        client, node = self.dice.choice(self.purses), self.dice.choice(self.own_nodes)
        dust = self.dice.random() < 0.3
        amount = self.dice.randint(1, 400) if dust else self.dice.randint(0, self.money.credits[client])
        before, burned = self.money.supply, self.money.accounts[node, client].collected
        self._pay(client, node, amount, pieces=self.dice.choice([1, 2, 7, 30]) if dust else self.dice.randint(1, 3))
        self.outcome.washed += self.money.accounts[node, client].collected - burned
        self.outcome.paid += before - self.money.supply
        self.inside[self.money.epoch] += before - self.money.supply
        self.money.transfer(self.purses[0], self.dice.choice(self.purses), self.money.credits[self.purses[0]] // 2)

    def _churn(self) -> None:
        """In and out of escrow, at any node."""
        client, node = self.dice.choice(self.purses), self.dice.choice([*self.own_nodes, *self.honest])
        account = self.money.accounts[node, client]
        if account.thaw_end and self.money.now > account.thaw_end:
            self.money.withdraw(client, node)
        elif account.thaw_end:
            self.money.cancel_thaw(client, node)
        elif account.balance:
            self.money.thaw(client, node)
        elif self.money.credits[client] > 10:
            self.money.fund(client, client, {node: self.money.credits[client] // 10})

    def _buy(self) -> None:
        """Real work of an honest node, for real credits."""
        client = self.dice.choice(self.purses)
        self._pay(client, self.dice.choice(self.honest), self.dice.randint(0, self.money.credits[client] // 50))

    # --- donated work

    def _claim(self, epoch: int) -> None:
        for node in [*self.honest, *self.own_nodes]:
            full = self.money.stake(node, epoch) * self.money.rules.units_per_coin // COIN
            # The coalition signs for clients that it invented: only its stake bounds what it claims.
            units = (
                self.dice.randint(0, 2 * full) if node in self.honest else self.dice.choice([0, full // 2, 10 * full])
            )
            self.money.claim(node, epoch, [(self.dice.randbytes(32), units)])

    def _mint(self, epoch: int) -> None:
        money, shares = self.money, {node: self.money.shares[node, epoch] for node in [*self.own_nodes, *self.honest]}
        weights, budget = sum(share.weight for share in shares.values()), money.budget(epoch)
        minted = {node: money.mint(node, epoch) for node, share in shares.items() if share.weight and epoch > 0}
        assert sum(minted.values()) <= budget, "P7: more was minted than the epoch's budget"
        own = sum(shares[node].weight for node in self.own_nodes)
        self.outcome.minted += sum(minted.get(node, 0) for node in self.own_nodes)
        if weights and self.inside[epoch]:
            self._compare(epoch, Fraction(own, weights), minted)

    def _compare(self, epoch: int, share: Fraction, minted: dict[str, int]) -> None:
        """With the same epoch, had nothing been burned inside the coalition."""
        money, cost = self.money, self.inside[epoch]
        money.fees[epoch] -= cost
        budget = money.budget(epoch)
        money.fees[epoch] += cost
        weights = sum(one.weight for (_, when), one in money.shares.items() if when == epoch)
        without = sum(
            min(one.weight * budget // weights, one.weight * money.rules.max_per_unit // 10**18)
            for one in (money.shares[node, epoch] for node in self.own_nodes)
        )
        gain = sum(minted.get(node, 0) for node in self.own_nodes) - without
        self.outcome.regained += gain
        self.outcome.shares.append(float(share))
        # A floor each: shares that were cut off by less than a wei may come back whole.
        self.outcome.worst = max(self.outcome.worst, gain - share * cost - len(self.own_nodes))

    def _forget(self, epoch: int) -> None:
        for node in [*self.honest, *self.own_nodes]:
            self.money.shares.pop((node, epoch), None)


def split(coalition: Coalition, nodes: int) -> Coalition:
    """The same stake over so many nodes."""
    return replace(coalition, nodes=nodes)
