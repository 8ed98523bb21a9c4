"""What receipts cost: the same swarm with its metering and without it, ABBA in one run.

    python benchmarks/receipts.py [--json FILE]

Two swarms of two nodes stand beside each other, one as the product is, one whose processes run
`without_receipts.py`: first without metering (`ratio_on_off`), then without any payment, so without journal and voucher
book too. One client, then 16 sessions in 4 client processes; prompt 64, fp32, greedy, end token off.
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
from harness import Bound, alternate, bars, finish, median_ratio, options, swarm
from paying import CHEAP, funded_wallets

from hivemint.cli import localnet
from hivemint.contracts.ids import Credits, SessionId, Step
from hivemint.contracts.receipt import check_receipt, check_voucher, following, opening, sign_receipt, sign_voucher
from hivemint.contracts.signature import Signer
from hivemint.contracts.signed import Domain
from hivemint.node.metering import _hash, _measure
from hivemint.swarm.messages import StepRequest

BARE = str(Path(__file__).with_name("without_receipts.py"))
PROMPT, HIDDEN = 64, 576
LEVELS = ("metering", "payment")
"""What is off: the metering alone (the asked ratio), or journal and voucher book as well."""


@contextlib.contextmanager
def funded_swarm(sessions: int) -> Iterator[tuple[Any, list[Signer]]]:
    """A swarm and its wallets."""
    with swarm(CHEAP) as net:
        yield net, funded_wallets(net, sessions)


@contextlib.contextmanager
def bare_swarm(level: str, sessions: int) -> Iterator[tuple[Any, list[Signer]]]:
    """The same; once the wallets are funded, which takes real receipts, the nodes start anew without metering."""
    with funded_swarm(sessions) as (net, wallets):
        real: Callable[..., list[str]] = localnet.__dict__["hivemint"]
        localnet.__dict__["hivemint"] = lambda *words: [sys.executable, BARE, level, *words]
        try:
            for plan in net.plans:
                net.child(plan.operator).stop()
                asyncio.run(net.start_node(plan))
        finally:
            localnet.__dict__["hivemint"] = real
        yield net, wallets


class Side:
    """One of the two swarms with its client processes."""

    def __init__(self, net: Any, clients: Crowd, new_tokens: int) -> None:
        self._net, self._clients, self._new_tokens = net, clients, new_tokens
        self.cpu_ms: list[float] = []

    def tokens_per_s(self) -> float:
        before = nodes_cpu_s(self._net) + self._clients.cpu_s()
        seconds = self._clients.run(PROMPT, self._new_tokens)
        tokens = self._clients.sessions * self._new_tokens
        self.cpu_ms.append((nodes_cpu_s(self._net) + self._clients.cpu_s() - before) / tokens * 1000)
        return tokens / seconds


def compare(on: Any, off: Any, level: str, which: slice, processes: int, args: Any) -> dict[str, Any]:
    """On against off with these wallets."""
    with (
        crowd(on[0], on[1][which], processes) as with_receipts,
        crowd(off[0], off[1][which], processes, script=[BARE, level, "client_process"]) as without,
    ):
        sides = Side(on[0], with_receipts, args.new_tokens), Side(off[0], without, args.new_tokens)
        pairs = alternate(sides[0].tokens_per_s, sides[1].tokens_per_s, args.pairs)
    return {
        "ratio_on_off": median_ratio(pairs),
        "cpu_ms_per_token_on": statistics.median(sides[0].cpu_ms[1:]),
        "cpu_ms_per_token_off": statistics.median(sides[1].cpu_ms[1:]),
        "pairs": pairs,
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
    wallets, one, many = 2 * (args.sessions + 1), {}, {}
    with funded_swarm(wallets) as on:
        for turn, level in enumerate(LEVELS):
            first = turn * (args.sessions + 1)  # wallets of its own for each comparison
            mine = on[0], on[1][first:]
            with bare_swarm(level, args.sessions + 1) as off:
                one[level] = compare(mine, off, level, slice(0, 1), 1, args)
                many[level] = compare(mine, off, level, slice(1, args.sessions + 1), args.processes, args)
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
