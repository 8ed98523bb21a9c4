"""What receipts cost: the same swarm with its metering and without it, alternated in one run.

    python benchmarks/receipts.py [--json FILE]

Two swarms of two nodes stand beside each other, one as the product is, one whose processes run
`without_receipts.py`: first without metering (`ratio_on_off`), then without any payment, so without journal and voucher
book too. One client, then 16 sessions in 4 client processes; prompt 64, fp32, greedy, end token off.
Two starts of the very same program differ by some percent for as long as they run, by the memory that they happen to
get; and who starts anew gets again what it has just given back. That is more than what is measured here. So a pair is
two rounds: all processes of both sides end and start anew, in the first round those with receipts first, in the second
those without, and run on, off, off, on (then off, on, on, off), twice where runs are short.
Also CPU milliseconds a token of all processes (nodes and clients), and how many receipts one core can meter.
"""

import asyncio
import contextlib
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from crowd import Crowd, crowd, nodes_cpu_s
from harness import Bound, bars, finish, median_ratio, options, swarm
from paying import CHEAP, funded_wallets
from rich.console import Console

from hivemint.cli import localnet
from hivemint.contracts.ids import Credits, SessionId, Step
from hivemint.contracts.receipt import check_receipt, check_voucher, following, opening, sign_receipt, sign_voucher
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import Domain
from hivemint.node.metering import _hash, _measure
from hivemint.swarm.messages import StepRequest
from hivemint.swarm.rows import to_wire

BARE = str(Path(__file__).with_name("without_receipts.py"))
PROMPT, HIDDEN, WARM = 64, 576, 16
LEVELS = ("metering", "payment")
"""What is off: the metering alone (the asked ratio), or journal and voucher book as well."""


@contextlib.contextmanager
def funded_swarm(sessions: int) -> Iterator[tuple[Any, list[Signer]]]:
    """A swarm and its wallets, which real receipts have paid for."""
    with swarm(CHEAP) as net:
        yield net, funded_wallets(net, sessions)


def start_nodes(net: Any, level: str | None) -> None:
    """All nodes in new processes; with a `level`, without what it leaves out."""
    real: Callable[..., list[str]] = localnet.__dict__["hivemint"]
    if level is not None:
        localnet.__dict__["hivemint"] = lambda *words: [sys.executable, BARE, level, *words]

    async def start() -> None:
        await asyncio.gather(*(net.start_node(plan) for plan in net.plans))

    try:
        asyncio.run(start())
    finally:
        localnet.__dict__["hivemint"] = real


class Side:
    """One of the two swarms: its nodes and its client processes, which last from `start` to `stop`."""

    def __init__(self, net: Any, level: str | None, wallets: Sequence[Signer], processes: int) -> None:
        self._net, self._level, self._wallets, self._processes = net, level, wallets, processes
        self._open = contextlib.ExitStack()
        self._clients = Crowd([], 0)
        self.cpu_ms: list[float] = []
        self.speeds: list[float] = []

    def start(self) -> None:
        """Nodes and clients in new processes, and a short answer of each session, so that all are connected."""
        start_nodes(self._net, self._level)
        script = ["client_process.py"] if self._level is None else [BARE, self._level, "client_process"]
        self._clients = self._open.enter_context(crowd(self._net, self._wallets, self._processes, script=script))
        self._clients.run(PROMPT, WARM)

    def stop(self) -> None:
        self._open.close()
        for plan in self._net.plans:
            self._net.child(plan.operator).stop()

    def measure(self, new_tokens: int) -> None:
        before = nodes_cpu_s(self._net) + self._clients.cpu_s()
        seconds = self._clients.run(PROMPT, new_tokens)
        tokens = self._clients.sessions * new_tokens
        self.cpu_ms.append((nodes_cpu_s(self._net) + self._clients.cpu_s() - before) / tokens * 1000)
        self.speeds.append(tokens / seconds)


def compare(
    nets: tuple[Any, Any], level: str, wallets: Any, processes: int, pairs: int, tokens: int, turns: int
) -> dict[str, Any]:
    """With receipts against without, each swarm with the same number of wallets in so many client processes.

    `turns` of on, off, off, on in each round of a pair.
    """
    tell = Console(stderr=True).print
    on, off = (Side(net, its, who, processes) for net, its, who in zip(nets, (None, level), wallets, strict=True))
    measured: list[tuple[float, float]] = []
    for number in range(pairs):
        for first, second in ((on, off), (off, on)):
            for side in (on, off):
                side.stop()
            for side in (first, second):
                side.start()
            for side in (first, second, second, first) * turns:
                side.measure(tokens)
        pair = statistics.mean(on.speeds[-4 * turns :]), statistics.mean(off.speeds[-4 * turns :])
        measured.append(pair)
        tell(f"  pair {number + 1}/{pairs}: {pair[0]:.4g} on, {pair[1]:.4g} off, ratio {pair[0] / pair[1]:.3f}")
    for side in (on, off):
        side.stop()
    return {
        "ratio_on_off": median_ratio(measured),
        "cpu_ms_per_token_on": statistics.median(on.cpu_ms),
        "cpu_ms_per_token_off": statistics.median(off.cpu_ms),
        "pairs": measured,
    }


def receipts_per_s(seconds: float = 2.0) -> float:
    """A decode step's metering at one node, on one core: voucher checked, rows hashed, receipt signed, hop checked."""
    node, client = Signer(secrets.token_bytes(32)), Signer(secrets.token_bytes(32))
    domain = Domain(31337, node.address)
    receipt = sign_receipt(domain, opening(node.address, client.address, SessionId(bytes(32))), node)
    output, count, began = to_wire(torch.randn(1, HIDDEN), "fp32"), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        voucher = sign_voucher(domain, receipt, Credits(count), client).signed
        check_voucher(domain, voucher, receipt.digest, client.address)
        request = StepRequest(Step(receipt.receipt.step + 1), 0, count, 1, voucher)
        measured = _measure(receipt.receipt.head, request, _hash(bytes(4 * HIDDEN), 4 * HIDDEN, b""), output)
        expected = following(receipt.receipt, measured.leaf)
        receipt = check_receipt(domain, sign_receipt(domain, expected, node).signed, expected)
        count += 1
    return count / seconds


def main() -> None:
    args = options(__doc__ or "", new_tokens=96, sessions=16, processes=4)
    one, many = {}, {}
    each = args.sessions + 1
    with funded_swarm(each * len(LEVELS)) as on, funded_swarm(each * len(LEVELS)) as off:
        nets = on[0], off[0]
        for turn, level in enumerate(LEVELS):
            mine = [side[1][turn * each : (turn + 1) * each] for side in (on, off)]  # each level has its own wallets
            single, crowded = [its[:1] for its in mine], [its[1:] for its in mine]
            pairs = args.pairs if level == LEVELS[0] else -(-args.pairs // 2)  # of what is not asked for, fewer
            one[level] = compare(nets, level, single, 1, pairs, args.new_tokens, turns=2)
            many[level] = compare(nets, level, crowded, args.processes, pairs, args.new_tokens, turns=1)
    metering, payment = LEVELS
    figures = {
        "ratio_on_off": one[metering]["ratio_on_off"],
        "ratio_on_off_16": many[metering]["ratio_on_off"],
        "ratio_to_no_payment": one[payment]["ratio_on_off"],
        "ratio_to_no_payment_16": many[payment]["ratio_on_off"],
        "receipts_per_s_one_core": receipts_per_s(),
        "cpu_ms_per_token_1_on": one[metering]["cpu_ms_per_token_on"],
        "cpu_ms_per_token_1_off": one[metering]["cpu_ms_per_token_off"],
        "cpu_ms_per_token_16_on": many[metering]["cpu_ms_per_token_on"],
        "cpu_ms_per_token_16_off": many[metering]["cpu_ms_per_token_off"],
        "cpu_ms_per_token_16_no_payment": many[payment]["cpu_ms_per_token_off"],
        "pairs": {
            f"{count} {level}": side[level]["pairs"] for count, side in ((1, one), (16, many)) for level in LEVELS
        },
    }
    bounds = {"ratio_on_off": Bound(least=0.98), "ratio_on_off_16": Bound(least=0.95)}
    chart = bars(
        ["1 on", "1 off", "16 on", "16 off"],
        [figures[f"cpu_ms_per_token_{key}"] for key in ("1_on", "1_off", "16_on", "16_off")],
        "CPU a token, all processes, receipts on and off", "ms",
    )  # fmt: skip
    finish("receipts", figures, bounds, args.json, chart)


if __name__ == "__main__":
    main()
