"""Training through the swarm against plain transformers: tokens a second, forward alone and forward with backward.

    python benchmarks/tuning.py [--json FILE]

8 sequences of 128 positions of SmolLM2, two nodes of 15 blocks; the gradient is that of the first block's input. The
reference: the same blocks by the library in this process, frozen, one batch. fp32, one torch thread a process. Paid
sessions, everything on: a backward pass counts, and is paid, twice. Two nodes have two cores and the reference one.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import Bound, alternate, bars, finish, median_ratio, options, plain_model, prompt, swarm
from paying import CHEAP, paying_client

BATCH, LENGTH = 8, 128


def seconds(run: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, train: bool) -> float:
    """Of one pass over all sequences, with its backward if `train`."""
    x = hidden.clone().requires_grad_(train)
    began = time.perf_counter()
    with torch.set_grad_enabled(train):
        output = run(x)
    if train:
        torch.autograd.grad(output, x, torch.ones_like(output))
    return time.perf_counter() - began


def library_blocks() -> Callable[[torch.Tensor], torch.Tensor]:
    """The library's decoder without its last norm."""
    plain = plain_model().requires_grad_(False)
    plain.model.norm = torch.nn.Identity()

    def run(hidden: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = plain.model(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return output

    return run


def check(ours: Any, plain: Any, hidden: torch.Tensor) -> None:
    """Both compute the same gradient."""
    found = []
    for run in (ours, plain):
        x = hidden.clone().requires_grad_(True)
        found.append(torch.autograd.grad(run(x).square().mean(), x)[0])
    if (found[0] - found[1]).norm() > 1e-4 * found[1].norm():
        raise SystemExit("the gradient differs from the library's")


def main() -> None:
    args = options(__doc__ or "", batch=BATCH, length=LENGTH)
    plain = library_blocks()
    ids, tokens = prompt(args.batch * args.length).view(args.batch, -1), args.batch * args.length
    figures: dict[str, Any] = {}
    with swarm(CHEAP) as net, paying_client(net) as model, model.blocks(tokens=args.length, sequences=4) as blocks:
        hidden = model.embed(ids)
        check(blocks, plain, hidden[:1])
        for name, train in (("forward", False), ("training", True)):
            pairs = alternate(
                lambda train=train: tokens / seconds(blocks, hidden, train),  # type: ignore[misc]
                lambda train=train: tokens / seconds(plain, hidden, train),  # type: ignore[misc]
                args.pairs,
            )
            ours, reference = (statistics.median(side) for side in zip(*pairs, strict=True))
            figures |= {
                f"{name}_ratio_to_plain": median_ratio(pairs),
                f"{name}_tokens_per_s": ours,
                f"plain_{name}_tokens_per_s": reference,
                f"{name}_pairs": pairs,
            }
    values = [figures[name] for name in ("training_tokens_per_s", "plain_training_tokens_per_s")]
    chart = bars(["two nodes", "plain transformers"], values, "Forward and backward, 8 x 128 positions", "tokens/s")
    finish("tuning", figures, {"training_ratio_to_plain": Bound(least=1.0)}, args.json, chart)


if __name__ == "__main__":
    main()
