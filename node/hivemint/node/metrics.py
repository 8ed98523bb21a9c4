"""Prometheus metrics of a node, read from its own state at each scrape: nothing is counted twice."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from hivemint.contracts.errors import ConfigError
from hivemint.contracts.ids import ONE_CREDIT
from hivemint.node.scheduler import Lane

if TYPE_CHECKING:
    from hivemint.node.assembly import Running


class NodeCollector(Collector):
    """Reads a running node."""

    def __init__(self, running: "Running") -> None:
        self._running = running

    def collect(self) -> Iterator[Metric]:
        node, totals = self._running.node, self._running.journal.totals
        gauge, store = node.engine.gauge, node.engine.room.store
        rows = CounterMetricFamily("hivemint_node_tokens", "Token positions computed.", labels=["lane"])
        waits = GaugeMetricFamily("hivemint_node_wait_seconds", "Wait of a step before it starts.", labels=["lane"])
        queued = GaugeMetricFamily("hivemint_node_queued_tokens", "Token positions that wait.", labels=["lane"])
        sessions = GaugeMetricFamily("hivemint_node_sessions", "Open sessions.", labels=["lane"])
        for lane in Lane:
            rows.add_metric([lane.value], gauge.rows_done[lane])
            waits.add_metric([lane.value], gauge.wait_s[lane])
            queued.add_metric([lane.value], node.engine.scheduler.waiting(lane))
            sessions.add_metric([lane.value], node.lobby.count(lane))
        yield from (rows, waits, queued, sessions)
        refusals = CounterMetricFamily("hivemint_node_refusals", "Requests refused.", labels=["code"])
        for code, count in node.counts.refusals.items():
            refusals.add_metric([code], count)
        yield refusals
        outputs = CounterMetricFamily("hivemint_node_outputs_sent", "Tensors that left.", labels=["to"])
        for to, count in node.counts.outputs.items():
            outputs.add_metric([to], count)
        yield outputs
        yield CounterMetricFamily("hivemint_node_batches", "Batches computed.", value=gauge.batches)
        yield CounterMetricFamily("hivemint_node_compute_seconds", "Time that the device computed.", value=gauge.busy_s)
        yield GaugeMetricFamily("hivemint_node_batch_tokens", "Token positions a batch, smoothed.", gauge.batch_rows)
        yield GaugeMetricFamily("hivemint_node_tokens_per_second", "While computing, smoothed.", gauge.rows_per_s)
        yield GaugeMetricFamily("hivemint_node_kv_free_tokens", "Tokens in pages that nobody has.", store.tokens_free)
        yield GaugeMetricFamily("hivemint_node_kv_total_tokens", "Tokens that the K/V store holds.", store.tokens_total)
        stages = GaugeMetricFamily("hivemint_node_credits", "Credits by stage (HMC).", labels=["stage"])
        flow = {
            "signed": totals.paid.signed, "countersigned": totals.paid.countersigned, "settled": totals.settled,
            "minted": totals.minted + self._running.settler.donated_minted,
        }  # fmt: skip
        for stage, amount in flow.items():
            stages.add_metric([stage], amount / ONE_CREDIT)
        yield stages


class MetricsServer:
    """HTTP on loopback: the port is held from the start, the figures come once there is a node to `show`."""

    def __init__(self, port: int) -> None:
        """Raises ConfigError if the port is taken; 0 = any free one."""
        self._registry = CollectorRegistry()
        try:
            self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=self._registry)
        except OSError as error:
            raise ConfigError(
                f"The metrics port {port} can't be used", why=error.strerror or str(error),
                next_step="choose another one",
            ) from None  # fmt: skip
        self.url = f"http://127.0.0.1:{self._server.server_port}/metrics"

    def show(self, running: "Running") -> None:
        self._registry.register(NodeCollector(running))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
