"""The policy update: what the algorithm needs and the runners do not."""

from __future__ import annotations

import random
from collections.abc import Sequence

SIZE = 4  # one weight for each number of CartPole's state


def new_task(seed: int) -> dict[str, list[float]]:
    """Return the input of an episode: its variation of the policy, and its initial state."""
    dice = random.Random(seed)
    return {
        "noise": [dice.gauss(0, 1) for _ in range(SIZE)],
        "start": [dice.uniform(-0.05, 0.05) for _ in range(SIZE)],
    }


def improve(
    samples: Sequence[tuple[Sequence[float], float]], elite: float, least_spread: float
) -> tuple[list[float], list[float]]:
    """Return mean and spread of the best share `elite` of (weights, return) samples.

    This is the cross-entropy method: sample around the mean, keep the best, move there.
    """
    best = sorted(samples, key=lambda sample: sample[1], reverse=True)
    kept = [weights for weights, _ in best[: max(1, round(elite * len(best)))]]
    mean = [sum(column) / len(kept) for column in zip(*kept, strict=True)]
    spread = [
        max(least_spread, (sum((w - m) ** 2 for w in column) / len(kept)) ** 0.5)
        for column, m in zip(zip(*kept, strict=True), mean, strict=True)
    ]
    return mean, spread
