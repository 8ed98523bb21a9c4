"""What receipts cost: the same swarm with its metering and without it, ABBA in one run.

    python benchmarks/receipts.py [--json FILE]

Two swarms of two nodes stand beside each other, one as the product is, one whose processes run
`without_receipts.py`: first without metering (`ratio_on_off`), then without any payment, so without journal and voucher
book too. One client, then 16 sessions in 4 client processes; prompt 64, fp32, greedy, end token off.
Two starts of the very same program differ by up to 5 % for as long as they run, which is more than what is measured
here. So all nodes of both sides start anew for each pair, and a pair is on, off, off, on.
Also CPU milliseconds a token of all processes (nodes and clients), and how many receipts one core can meter.
"""

import asyncio
import contextlib
import secrets
import statistics
import sys
import time
from collections.abc import Callable, Iterator
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

BARE = str(Path(__file__).with_name("without_receipts.py"))
PROMPT, HIDDEN, WARM = 64, 576, 16
LEVELS = ("metering", "payment")
"""What is off: the metering alone (the asked ratio), or journal and voucher book as well."""


@contextlib.contextmanager
def funded_swarm(sessions: int) -> Iterator[tuple[Any, list[Signer]]]:
    """A swarm and its wallets, which real receipts have paid for."""
    with swarm(CHEAP) as net:
        yield net, funded_wallets(net, sessions)


def start_anew(net: Any, level: str | None) -> None:
    """All nodes again, in new processes; with a `level`, without what it leaves out."""
    real: Callable[..., list[str]] = localnet.__dict__["hivemint"]
    if level is not None:
        localnet.__dict__["hivemint"] = lambda *words: [sys.executable, BARE, level, *words]

    async def start() -> None:
        await asyncio.gather(*(net.start_node(plan) for plan in net.plans))

    try:
        for plan in net.plans:
            net.child(plan.operator).stop()
        asyncio.run(start())
    finally:
        localnet.__dict__["hivemint"] = real


class Side:
    """One of the two swarms with its client processes."""

    def __init__(self, net: Any, level: str | None, clients: Crowd, new_tokens: int) -> None:
        self._net, self._level, self._clients, self._new_tokens = net, level, clients, new_tokens
        self.cpu_ms: list[float] = []

    def start_anew(self) -> None:
        """Nodes in new processes, and a short answer of each session, so that all are warm and connected."""
        start_anew(self._net, self._level)
        self._clients.run(PROMPT, WARM)

    def tokens_per_s(self) -> float:
        before = nodes_cpu_s(self._net) + self._clients.cpu_s()
        seconds = self._clients.run(PROMPT, self._new_tokens)
        tokens = self._clients.sessions * self._new_tokens
        self.cpu_ms.append((nodes_cpu_s(self._net) + self._clients.cpu_s() - before) / tokens * 1000)
        return tokens / seconds


def compare(nets: tuple[Any, Any], level: str, wallets: Any, processes: int, pairs: int, tokens: int) -> dict[str, Any]:
    """With receipts against without, each swarm with the same number of wallets in so many client processes."""
    with (
        crowd(nets[0], wallets[0], processes) as with_receipts,
        crowd(nets[1], wallets[1], processes, script=[BARE, level, "client_process"]) as without,
    ):
        tell = Console(stderr=True).print
        on, off = Side(nets[0], None, with_receipts, tokens), Side(nets[1], level, without, tokens)
        measured: list[tuple[float, float]] = []
        for number in range(pairs):
            on.start_anew()
            off.start_anew()
            first, second = (on, off) if number % 2 == 0 else (off, on)
            speeds: dict[Side, list[float]] = {on: [], off: []}
            for side in (first, second, second, first):
                speeds[side].append(side.tokens_per_s())
            pair = statistics.mean(speeds[on]), statistics.mean(speeds[off])
            measured.append(pair)
            tell(f"  pair {number + 1}/{pairs}: {pair[0]:.4g} on, {pair[1]:.4g} off, ratio {pair[0] / pair[1]:.3f}")
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
    output, count, began = torch.randn(1, HIDDEN), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        voucher = sign_voucher(domain, receipt, Credits(count), client).signed
        check_voucher(domain, voucher, receipt.digest, client.address)
        request = StepRequest(Step(receipt.receipt.step + 1), 0, count, 1, voucher)
        measured = _measure(receipt.receipt.head, request, _hash(bytes(4 * HIDDEN), 4 * HIDDEN, b""), output, "fp32")
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
            one[level] = compare(nets, level, single, 1, 2 * args.pairs, args.new_tokens)
            many[level] = compare(nets, level, crowded, args.processes, args.pairs, args.new_tokens)
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
