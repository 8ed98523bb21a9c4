"""16 sessions with wallets of their own in 4 client processes against one plain transformers stream.

    python benchmarks/concurrency.py [--json FILE]

No batching across sessions in the clients: what is gained is gained in the nodes. Prompt 64, 128 new tokens, greedy,
end token off, fp32, one torch thread a process; all tokens over (last end - first start). Two nodes of 15 blocks.
"""

import statistics
from typing import Any

import torch
from crowd import crowd, nodes_cpu_s
from harness import Bound, alternate, bars, finish, generate, median_ratio, options, plain_model, prompt, swarm
from paying import CHEAP, funded_wallets, open_client

from hivemint.contracts.signature import Signer

SESSIONS, PROCESSES = 16, 4


def main() -> None:
    args = options(__doc__ or "", new_tokens=128, prompt_tokens=64)
    plain, ids = plain_model(), prompt(args.prompt_tokens)
    cpu: list[float] = []
    with swarm(CHEAP) as net:
        wallets = funded_wallets(net, SESSIONS + 1)
        single = _one_session(net, wallets.pop(), ids, args.new_tokens)
        with crowd(net, wallets, PROCESSES) as clients:

            def ours() -> float:
                before = nodes_cpu_s(net)
                seconds = clients.run(args.prompt_tokens, args.new_tokens)
                cpu.append((nodes_cpu_s(net) - before) / (SESSIONS * (args.prompt_tokens + args.new_tokens)))
                return float(SESSIONS * args.new_tokens / seconds)

            pairs = alternate(ours, lambda: generate(plain, ids, args.new_tokens)[1].tokens_per_s, args.pairs)
    ours_median, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
    figures = {
        "ratio_to_plain": median_ratio(pairs),
        "tokens_per_s": ours_median,
        "plain_tokens_per_s": reference,
        "server_cpu_ms_per_token": {"1": single * 1000, "16": statistics.median(cpu[1:]) * 1000},
        "pairs": pairs,
    }
    chart = bars(
        ["16 sessions, two nodes", "one plain stream"], [ours_median, reference], "16 sessions at once", "tokens/s"
    )
    finish("concurrency", figures, {"ratio_to_plain": Bound(least=3.0)}, args.json, chart)


def _one_session(net: Any, wallet: Signer, ids: torch.Tensor, new_tokens: int) -> float:
    """CPU seconds of both nodes for each computed token of one session alone."""
    with open_client(net, wallet, bid="ask") as model:
        generate(model, ids, 8)
        before = nodes_cpu_s(net)
        generate(model, ids, new_tokens)
        return (nodes_cpu_s(net) - before) / (ids.shape[1] + new_tokens)


if __name__ == "__main__":
    main()
