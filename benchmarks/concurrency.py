"""16 sessions with wallets of their own in 4 client processes against one plain transformers stream.

    python benchmarks/concurrency.py [--json FILE]

No batching across sessions in the clients: what is gained is gained in the nodes. Prompt 64, 128 new tokens, greedy,
end token off, fp32, one torch thread a process; all tokens over (last end - first start). Two nodes of 15 blocks.
CPU a token counts all positions that were computed, prompt and answer, on both sides; plain's is that of its blocks
alone.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from crowd import crowd, nodes_cpu_s
from harness import Bound, alternate, bars, finish, generate, median_ratio, options, plain_model, prompt, swarm
from paying import CHEAP, funded_wallets, open_client

from hivemint.protocol.signing import Signer

SESSIONS, PROCESSES = 16, 4


def main() -> None:
    args = options(__doc__ or "", new_tokens=128, prompt_tokens=64)
    plain, ids = plain_model(), prompt(args.prompt_tokens)
    cpu: list[float] = []
    plain_cpu: list[float] = []
    computed = args.prompt_tokens + args.new_tokens
    with swarm(CHEAP) as net:
        wallets = funded_wallets(net, SESSIONS + 1)
        single = _one_session(net, wallets.pop(), ids, args.new_tokens)
        with crowd(net, wallets, PROCESSES) as clients:

            def ours() -> float:
                before = nodes_cpu_s(net)
                seconds = clients.run(args.prompt_tokens, args.new_tokens)
                cpu.append((nodes_cpu_s(net) - before) / (SESSIONS * computed))
                return float(SESSIONS * args.new_tokens / seconds)

            def reference() -> float:
                with _cpu_of_blocks(plain) as spent:
                    speed = generate(plain, ids, args.new_tokens)[1].tokens_per_s
                plain_cpu.append(sum(spent) / computed)
                return float(speed)

            pairs = alternate(ours, reference, args.pairs)
    ours_median, plain_median = (statistics.median(side) for side in zip(*pairs, strict=True))
    figures = {
        "ratio_to_plain": median_ratio(pairs),
        "tokens_per_s": ours_median,
        "plain_tokens_per_s": plain_median,
        "server_cpu_to_plain": statistics.median(
            mine / theirs for mine, theirs in zip(cpu[1:], plain_cpu[1:], strict=True)
        ),
        "server_cpu_ms_per_token": {"1": single * 1000, "16": statistics.median(cpu[1:]) * 1000},
        "plain_blocks_cpu_ms_per_token": statistics.median(plain_cpu[1:]) * 1000,
        "pairs": pairs,
    }
    chart = bars(
        ["16 sessions, two nodes", "one plain stream"], [ours_median, plain_median], "16 sessions at once", "tokens/s"
    )
    bounds = {"ratio_to_plain": Bound(least=5.0), "server_cpu_to_plain": Bound(most=0.2)}
    finish("concurrency", figures, bounds, args.json, chart)


@contextmanager
def _cpu_of_blocks(plain: Any) -> Iterator[list[float]]:
    """CPU seconds from the first block's beginning to the last one's end, for each forward."""
    began: list[float] = []
    spent: list[float] = []
    layers = plain.model.layers
    hooks = [
        layers[0].register_forward_pre_hook(lambda *_: began.append(time.process_time())),
        layers[-1].register_forward_hook(lambda *_: spent.append(time.process_time() - began.pop())),
    ]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def _one_session(net: Any, wallet: Signer, ids: torch.Tensor, new_tokens: int) -> float:
    """CPU seconds of both nodes for each computed token of one session alone."""
    with open_client(net, wallet, bid="ask") as model:
        generate(model, ids, 8)
        before = nodes_cpu_s(net)
        generate(model, ids, new_tokens)
        return (nodes_cpu_s(net) - before) / (ids.shape[1] + new_tokens)


if __name__ == "__main__":
    main()
