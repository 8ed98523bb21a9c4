"""First token of a 512-token prompt over two nodes against plain transformers, session open included.

    python benchmarks/prefill.py [--json FILE]

From the call of `generate` to the first token id: route, handshakes, prefill in chunks that both nodes work on at the
same time, norm, head, sampling. fp32, one torch thread a process. Paid session, everything on.
"""

import statistics
import time
from typing import Any

from harness import Bound, alternate, bars, finish, generate, median_ratio, options, plain_model, prompt, swarm
from paying import CHEAP, paying_client


def first_token_s(model: Any, ids: Any) -> float:
    began = time.perf_counter()
    _, clock = generate(model, ids, 1)
    return clock.times[0] - began


def main() -> None:
    args = options(__doc__ or "", prompt_tokens=512)
    ids, plain = prompt(args.prompt_tokens), plain_model()
    with swarm(CHEAP) as net, paying_client(net) as model:
        if generate(model, ids, 4)[0].tolist() != generate(plain, ids, 4)[0].tolist():
            raise SystemExit("the text differs from plain transformers'")
        pairs = alternate(lambda: first_token_s(model, ids), lambda: first_token_s(plain, ids), args.pairs)
    ours, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
    figures = {
        "ratio_to_plain_time": median_ratio(pairs),
        "first_token_s": ours,
        "plain_first_token_s": reference,
        "pairs": pairs,
    }
    chart = bars(["two nodes", "plain transformers"], [ours, reference], "First token of a 512-token prompt", "s")
    finish("prefill", figures, {"ratio_to_plain_time": Bound(most=0.75)}, args.json, chart)


if __name__ == "__main__":
    main()
