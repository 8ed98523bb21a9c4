"""What receipts cost: the same swarm with its metering and without it, alternated in one run.

    python benchmarks/receipts.py [--json FILE] [--level payment]

Two swarms of two nodes stand beside each other, one as the product is, one whose processes run
`without_receipts.py`: without metering, or with `--level payment` without journal and voucher book too. One client,
then 16 sessions in 4 client processes; prompt 64, fp32, greedy, end token off.
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

from hivemint.node.sessions.metering import _measure
from hivemint.protocol.eip712 import Domain
from hivemint.protocol.ids import Credits, SessionId, Step
from hivemint.protocol.receipt import check_receipt, check_voucher, following, opening, sign_receipt, sign_voucher
from hivemint.protocol.signing import Signer
from hivemint.swarm.messages import StepRequest
from hivemint.swarm.rows import row_hashes, tensor_hash, to_wire
from hivemint.testnet import localnet

BARE = str(Path(__file__).with_name("without_receipts.py"))
PROMPT, HIDDEN, WARM = 64, 576, 16
LEVELS = ("metering", "payment")


@contextlib.contextmanager
def funded_swarm(sessions: int) -> Iterator[tuple[Any, list[Signer]]]:
    """A swarm, its nodes not running, and its wallets, which real receipts have paid for."""
    with swarm(CHEAP) as net:
        wallets = funded_wallets(net, sessions)
        for plan in net.plans:
            net.child(plan.operator).stop()
        yield net, wallets


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
        self._speeds: list[float] = []

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
        self._speeds.append(tokens / seconds)

    def speed(self) -> float:
        """Tokens a second, the mean of what was measured since the last call."""
        speeds, self._speeds = self._speeds, []
        return statistics.mean(speeds)


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
            for side in (first, second):
                side.start()
            for side in (first, second, second, first) * turns:
                side.measure(tokens)
            for side in (first, second):
                side.stop()
        pair = on.speed(), off.speed()
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
    output, count, began = to_wire(torch.randn(1, HIDDEN), "fp32"), 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        voucher = sign_voucher(domain, receipt, Credits(count), client).signed
        check_voucher(domain, voucher, receipt.digest, client.address)
        request = StepRequest(Step(receipt.step + 1), 0, count, 1, voucher)
        measured = _measure(receipt.head, request, tensor_hash(row_hashes(bytes(4 * HIDDEN), 4 * HIDDEN)), output)
        expected = following(receipt.body, measured.leaf)
        receipt = check_receipt(domain, sign_receipt(domain, expected, node).signed, expected)
        count += 1
    return count / seconds


def main() -> None:
    args = options(__doc__ or "", new_tokens=96, sessions=16, processes=4, level=LEVELS[0])
    if args.level not in LEVELS:
        sys.exit(f"there is no level {args.level!r}: choose {' or '.join(LEVELS)}")
    sessions = args.sessions + 1
    with funded_swarm(sessions) as on, funded_swarm(sessions) as off:
        nets, wallets = (on[0], off[0]), (on[1], off[1])
        single, crowded = [its[:1] for its in wallets], [its[1:] for its in wallets]
        one = compare(nets, args.level, single, 1, args.pairs, args.new_tokens, turns=2)
        many = compare(nets, args.level, crowded, args.processes, args.pairs, args.new_tokens, turns=1)
    figures = {
        "level": args.level,
        "ratio_on_off": one["ratio_on_off"],
        "ratio_on_off_16": many["ratio_on_off"],
        "receipts_per_s_one_core": receipts_per_s(),
        "cpu_ms_per_token_1_on": one["cpu_ms_per_token_on"],
        "cpu_ms_per_token_1_off": one["cpu_ms_per_token_off"],
        "cpu_ms_per_token_16_on": many["cpu_ms_per_token_on"],
        "cpu_ms_per_token_16_off": many["cpu_ms_per_token_off"],
        "pairs": {"1": one["pairs"], "16": many["pairs"]},
    }
    asked = {"ratio_on_off": Bound(least=0.98), "ratio_on_off_16": Bound(least=0.95)}
    bounds = asked if args.level == LEVELS[0] else {}
    chart = bars(
        ["1 on", "1 off", "16 on", "16 off"],
        [figures[f"cpu_ms_per_token_{key}"] for key in ("1_on", "1_off", "16_on", "16_off")],
        "CPU a token, all processes, receipts on and off",
        "ms",
    )
    finish("receipts", figures, bounds, args.json, chart)


if __name__ == "__main__":
    main()
