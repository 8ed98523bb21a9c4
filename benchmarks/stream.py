"""One client, two nodes of 15 blocks each: tokens a second against plain transformers' `generate`.

    python benchmarks/stream.py [--json FILE]

Prompt 64, 256 new tokens, greedy, end token off, fp32, one torch thread a process; tokens 2..N over their time. The
text must be the same, token for token. Paid session: receipts, vouchers and the journal are all on.
"""

import statistics

from harness import Bound, alternate, bars, finish, generate, median_ratio, options, plain_model, prompt, swarm
from paying import CHEAP, paying_client


def main() -> None:
    args = options(__doc__ or "", new_tokens=256)
    ids, plain = prompt(64), plain_model()
    with swarm(CHEAP) as net, paying_client(net) as model:
        if generate(model, ids, 32)[0].tolist() != generate(plain, ids, 32)[0].tolist():
            raise SystemExit("the text differs from plain transformers'")
        pairs = alternate(
            lambda: generate(model, ids, args.new_tokens)[1].tokens_per_s,
            lambda: generate(plain, ids, args.new_tokens)[1].tokens_per_s,
            args.pairs,
        )
    ours, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
    figures = {
        "ratio_to_plain": median_ratio(pairs),
        "tokens_per_s": ours,
        "plain_tokens_per_s": reference,
        "pairs": pairs,
    }
    chart = bars(["two nodes", "plain transformers"], [ours, reference], "One stream, 256 tokens", "tokens/s")
    finish("stream", figures, {"ratio_to_plain": Bound(least=0.95)}, args.json, chart)


if __name__ == "__main__":
    main()
