"""Does it pay to trade with oneself? Random coalitions of nodes and clients against honest ones, epoch after epoch.

    python benchmarks/selfdealing.py [--json FILE] [--epochs 2000] [--coalitions 60]

The rules are the reference model of the tests, which a differential test holds equal to the contracts to the wei. For
each epoch the coalition's mint is compared with what it would have been, had nothing been burned inside: `ratio` is
what a credit of fees brought back. Above 1 self-dealing would pay. The same plays run on rules with a fault (the
emission counts the whole burn instead of what was lost), to show that the measure sees it.
"""

import random
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from harness import Bound, finish, options
from rich.progress import track

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.money_model import Money
from support.self_dealing import HMC, Coalition, CountsWholeBurn, Game, Outcome

FAULTY_EPOCHS = 300
BOUNDS = {"best_ratio": Bound(most=1.0), "worst_epoch_wei": Bound(most=0.0)}


def coalitions(count: int) -> list[Coalition]:
    """From a newcomer with one coin to one that holds nearly all stake; the honest nodes have 30 coins."""
    dice = random.Random(1)
    return [
        Coalition(
            nodes=dice.choice([1, 2, 5, 20]),
            stake=dice.choice([1, 3, 10, 30, 100, 300, 3_000]),
            purse=dice.choice([10, 300, 1_000, 30_000]),
            greed=dice.choice([1, 3, 6]),
        )
        for _ in range(count)
    ]


def play(chosen: Sequence[Coalition], epochs: int, kind: type[Money], what: str) -> list[Outcome]:
    return [
        Game(coalition, seed, kind=kind).play(epochs)
        for seed, coalition in enumerate(track(chosen, description=what, transient=True))
    ]


def summary(outcomes: Sequence[Outcome], faulty: Sequence[Outcome], epochs: int) -> dict[str, Any]:
    paid, regained = (sum(getattr(one, name) for one in outcomes) for name in ("paid", "regained"))
    washing = [one for one in outcomes if one.paid]
    return {
        "coalitions": len(outcomes),
        "epochs_each": epochs,
        "washed_hmc": sum(one.washed for one in outcomes) / HMC,
        "fees_paid_hmc": paid / HMC,
        "regained_hmc": regained / HMC,
        "lost_part": 1 - regained / paid,
        "best_ratio": max(one.ratio for one in washing),
        "median_ratio": statistics.median(one.ratio for one in washing),
        "profitable_coalitions": sum(one.regained > one.paid for one in washing),
        "worst_epoch_wei": float(max(one.worst for one in washing)),
        "fault_best_ratio": max(one.ratio for one in faulty if one.paid),
        "fault_profitable_coalitions": sum(one.regained > one.paid for one in faulty),
        "points": [(one.share, one.ratio) for one in washing],
        "fault_points": [(one.share, one.ratio) for one in faulty if one.paid],
    }


def plot(figures: dict[str, Any]) -> Callable[[Any], None]:
    def draw(axes: Any) -> None:
        axes.scatter(*zip(*figures["fault_points"], strict=True), color="#b45309", s=14, label="with the seeded fault")
        axes.scatter(*zip(*figures["points"], strict=True), color="#0f766e", s=22, label="as deployed")
        axes.axhline(1, color="#94a3b8", linestyle="--", linewidth=1)
        axes.text(0.01, 1.04, "above this line self-dealing pays", fontsize=8, color="#475569")
        axes.set(xlabel="coalition's share of the weights", ylabel="regained per credit of fees", ylim=(0, 3.2))
        axes.set_title(f"{figures['coalitions']} coalitions, {figures['epochs_each']:,} epochs each")
        axes.legend(loc="upper left")

    return draw


def main() -> None:
    args = options(__doc__ or "", epochs=2_000, coalitions=60)
    chosen = coalitions(args.coalitions)
    outcomes = play(chosen, args.epochs, Money, "as deployed")
    faulty = play(chosen, min(args.epochs, FAULTY_EPOCHS), CountsWholeBurn, "with a fault")
    figures = summary(outcomes, faulty, args.epochs)
    finish("selfdealing", figures, BOUNDS, args.json, plot(figures))


if __name__ == "__main__":
    main()
