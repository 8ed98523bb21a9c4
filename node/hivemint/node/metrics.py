"""Prometheus metrics of a node, read from its own state at each scrape: nothing is counted twice."""

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from hivemint.ledger.books.flow import CreditFlow
from hivemint.node.engine.scheduler import Lane
from hivemint.node.running import flow_of
from hivemint.protocol.errors import ConfigError
from hivemint.protocol.ids import ONE_CREDIT

if TYPE_CHECKING:
    from hivemint.node.engine.gauge import Gauge
    from hivemint.node.running import Running


SCRAPE = 5.0
"""Seconds that a scrape waits for the event loop."""


class NodeCollector(Collector):
    """Reads a running node, in the event loop that it was made in: the state belongs to it."""

    def __init__(self, running: "Running") -> None:
        self._running, self._loop = running, asyncio.get_running_loop()

    def collect(self) -> list[Metric]:
        """Called in the server's threads. Raises TimeoutError if the loop does not answer."""
        return asyncio.run_coroutine_threadsafe(self._read(), self._loop).result(SCRAPE)

    async def _read(self) -> list[Metric]:
        return list(self._metrics())

    def _metrics(self) -> Iterator[Metric]:
        node = self._running.node
        gauge, capacity = node.engine.gauge, node.engine.capacity()
        rows = CounterMetricFamily("hivemint_node_tokens", "Token positions computed.", labels=["lane"])
        waits = GaugeMetricFamily("hivemint_node_wait_seconds", "Wait of a step before it starts.", labels=["lane"])
        queued = GaugeMetricFamily("hivemint_node_queued_tokens", "Token positions that wait.", labels=["lane"])
        sessions = GaugeMetricFamily("hivemint_node_sessions", "Open sessions.", labels=["lane"])
        held = GaugeMetricFamily("hivemint_node_kv_used_tokens", "Tokens in pages that sessions hold.", labels=["lane"])
        for lane in Lane:
            rows.add_metric([lane.value], gauge.rows_done[lane])
            waits.add_metric([lane.value], gauge.wait_s[lane])
            load = node.engine.load(lane)
            queued.add_metric([lane.value], load.queued)
            sessions.add_metric([lane.value], node.registry.count(lane))
            held.add_metric([lane.value], load.held)
        yield from (rows, waits, queued, sessions, held)
        refusals = CounterMetricFamily("hivemint_node_refusals", "Requests refused.", labels=["code"])
        for code, count in sorted((node.counts.refusals + self._running.host.refusals).items()):
            refusals.add_metric([code], count)
        yield refusals
        outputs = CounterMetricFamily("hivemint_node_outputs_sent", "Tensors that left.", labels=["to"])
        for to, count in node.counts.outputs.items():
            outputs.add_metric([to], count)
        yield outputs
        yield _sizes(gauge, capacity.step_rows)
        yield CounterMetricFamily("hivemint_node_batches", "Batches computed.", value=gauge.batches)
        yield CounterMetricFamily("hivemint_node_compute_seconds", "Time that the device computed.", value=gauge.busy_s)
        yield GaugeMetricFamily("hivemint_node_batch_tokens", "Token positions a batch, smoothed.", gauge.batch_rows)
        budget = capacity.batch_rows
        yield GaugeMetricFamily("hivemint_node_batch_budget_tokens", "Token positions that a batch may hold.", budget)
        yield GaugeMetricFamily("hivemint_node_tokens_per_second", "While computing, smoothed.", gauge.rows_per_s)
        yield GaugeMetricFamily("hivemint_node_kv_free_tokens", "Tokens in pages that nobody has.", capacity.kv_free)
        yield GaugeMetricFamily("hivemint_node_kv_total_tokens", "Tokens that the K/V store holds.", capacity.kv_total)
        yield from _credits(flow_of(self._running.journal, self._running.settler, self._running.earnings))
        price = GaugeMetricFamily("hivemint_node_ask_credits", "Ask of a token and block (HMC).")
        price.add_metric([], node.offer.ask / ONE_CREDIT)
        yield price


def _credits(flow: CreditFlow) -> Iterator[Metric]:
    """The figures of the live view and of `node status`, as floats of HMC: for graphs, not for accounts."""
    stages = GaugeMetricFamily("hivemint_node_credits", "Credits by stage (HMC).", labels=["stage"])
    told = {
        "signed": flow.signed,
        "countersigned": flow.bound,
        "settled": flow.settled,
        "minted": flow.minted,
        "donated_minted": flow.donated_minted,
        "earned": flow.earned,
        "unsettled": flow.unsettled,
    }
    for stage, amount in told.items():
        stages.add_metric([stage], amount / ONE_CREDIT)
    yield stages
    recent = GaugeMetricFamily("hivemint_node_earned_credits", "Earned of late (HMC).", labels=["within"])
    for within, amount in (("hour", flow.hour), ("day", flow.day), ("start", flow.since_start)):
        recent.add_metric([within], amount / ONE_CREDIT)
    yield recent
    work = GaugeMetricFamily("hivemint_node_donated_tokens", "Donated work by stage.", labels=["stage"])
    work.add_metric(["served"], flow.served_tokens)
    work.add_metric(["countersigned"], flow.bound_tokens)
    yield work


def _sizes(gauge: "Gauge", largest: int) -> HistogramMetricFamily:
    """Batches by size; how full they are is this over the budget."""
    buckets: list[tuple[str, float]] = []
    count = 0
    for exponent in range((largest - 1).bit_length() + 1):
        count += gauge.sizes[1 << exponent]
        buckets.append((f"{1 << exponent}.0", count))
    rows = sum(gauge.rows_done.values())
    return HistogramMetricFamily(
        "hivemint_node_batch_size", "Token positions of a batch.", [*buckets, ("+Inf", gauge.batches)], sum_value=rows
    )


class MetricsServer:
    """HTTP on loopback: the port is held from the start, the figures come once there is a node to `show`."""

    def __init__(self, port: int) -> None:
        """Raises ConfigError if the port is taken; 0 = any free one."""
        self._registry = CollectorRegistry()
        try:
            self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=self._registry)
        except OSError as error:
            raise ConfigError(
                f"The metrics port {port} can't be used",
                why=error.strerror or str(error),
                next_step="choose another one",
            ) from None
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def show(self, running: "Running") -> None:
        self._registry.register(NodeCollector(running))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
