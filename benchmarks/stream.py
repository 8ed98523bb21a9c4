"""One client, two nodes of 15 blocks each: tokens a second against plain transformers' `generate`.

    python benchmarks/stream.py [--json FILE]

Prompt 64, 256 new tokens, greedy, end token off, one torch thread a process; tokens 2..N over their time. In fp32 the
text must be the same, token for token; then the same with nodes that hold 8-bit weights, against the same fp32
reference. Paid session: receipts, vouchers and the journal are all on.
"""

import statistics
from typing import Any

from harness import Bound, alternate, bars, finish, generate, median_ratio, options, plain_model, prompt, swarm
from paying import CHEAP, paying_client

INT8 = {"HIVEMINT_PRECISION": "int8"}


def main() -> None:
    args = options(__doc__ or "", new_tokens=256)
    plain = plain_model()
    pairs = _pairs(plain, CHEAP, args, same_text=True)
    short = _pairs(plain, CHEAP | INT8, args, same_text=False)
    ours, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
    int8 = statistics.median(one for one, _ in short)
    figures = {
        "ratio_to_plain": median_ratio(pairs),
        "ratio_to_plain_int8": median_ratio(short),
        "tokens_per_s": ours,
        "tokens_per_s_int8": int8,
        "plain_tokens_per_s": reference,
        "pairs": pairs,
        "pairs_int8": short,
    }
    chart = bars(
        ["two nodes, fp32", "plain, fp32", "two nodes, int8"],
        [ours, reference, int8],
        "One stream, 256 tokens",
        "tokens/s",
    )
    bounds = {"ratio_to_plain": Bound(least=1.0), "ratio_to_plain_int8": Bound(least=1.5)}
    finish("stream", figures, bounds, args.json, chart)


def _pairs(plain: Any, settings: dict[str, str], args: Any, *, same_text: bool) -> list[tuple[float, float]]:
    ids = prompt(64)
    with swarm(settings) as net, paying_client(net) as model:
        if same_text and generate(model, ids, 32)[0].tolist() != generate(plain, ids, 32)[0].tolist():
            raise SystemExit("the text differs from plain transformers'")
        return alternate(
            lambda: generate(model, ids, args.new_tokens)[1].tokens_per_s,
            lambda: generate(plain, ids, args.new_tokens)[1].tokens_per_s,
            args.pairs,
        )


if __name__ == "__main__":
    main()
