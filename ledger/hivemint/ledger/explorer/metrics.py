"""`/metrics` of the ledger for Prometheus, read when asked. Credits are floats of HMC: for graphs, not for accounts."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from hivemint.ledger.explorer.queries import Explorer
from hivemint.protocol.ids import ONE_CREDIT


class LedgerCollector(Collector):
    """Asks the explorer at each scrape."""

    def __init__(self, explorer: Explorer) -> None:
        self._explorer = explorer

    def describe(self) -> Iterator[Metric]:
        return iter(())  # otherwise registering it would ask the database

    def collect(self) -> Iterator[Metric]:
        status = self._explorer.status()
        yield _gauge("hivemint_index_block", "Last indexed block.", status.indexed)
        yield _gauge("hivemint_chain_block", "Newest block of the chain.", status.head)
        yield _gauge("hivemint_index_ok", "1 while the index follows the chain.", 0 if status.trouble else 1)
        totals = status.totals
        yield _gauge("hivemint_supply_credits", "All credits.", totals.supply / ONE_CREDIT)
        yield _gauge("hivemint_escrow_credits", "Credits in escrow.", totals.escrow / ONE_CREDIT)
        for name, what, amount in (
            ("settled", "Burned by settlements.", totals.settled),
            ("minted", "Minted for settled work.", totals.minted),
            ("donated", "Minted for donated work.", totals.donated),
        ):
            yield CounterMetricFamily(f"hivemint_{name}_credits", what, value=amount / ONE_CREDIT)
        yield from self._own()

    def _own(self) -> Iterator[Metric]:
        labels = ["node", "lane"]
        signed = CounterMetricFamily("hivemint_own_tokens_signed", "Tokens in signed receipts.", labels=labels)
        bound = CounterMetricFamily("hivemint_own_tokens_countersigned", "Tokens that vouchers bind.", labels=labels)
        earned = GaugeMetricFamily(
            "hivemint_own_earned_credits", "Minted, paid and donated.", labels=["node", "within"]
        )
        waiting = GaugeMetricFamily("hivemint_own_unsettled_credits", "Promised, not collected.", labels=["node"])
        for own in self._explorer.own_nodes():
            for name, lane in (("paid", own.paid), ("donated", own.donated)):
                signed.add_metric([own.node, name], lane.tokens_signed)
                bound.add_metric([own.node, name], lane.tokens_countersigned)
            for within, amount in (("all", own.earned), ("hour", own.earned_hour), ("day", own.earned_day)):
                earned.add_metric([own.node, within], amount / ONE_CREDIT)
            waiting.add_metric([own.node], max(0, own.promised - own.collected) / ONE_CREDIT)
        yield from (signed, bound, earned, waiting)


def registry(explorer: Explorer) -> CollectorRegistry:
    """A registry of its own, so that several ledgers fit one process."""
    found = CollectorRegistry(auto_describe=False)
    found.register(LedgerCollector(explorer))
    return found


def _gauge(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, what, value=value)
