"""A linear policy for CartPole, and how a round of episodes improves it. No libraries: lists of floats."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

SIZE = 4  # one weight for each number that CartPole-v1 shows: position, speed, angle, turning


def act(weights: Sequence[float], observation: Sequence[float], dice: random.Random) -> int:
    """Return 1 to push the cart to the right, 0 to push it to the left: by chance, as the weights lean."""
    lean = sum(w * float(x) for w, x in zip(weights, observation, strict=True))
    return int(dice.random() < 1 / (1 + math.exp(-max(-50.0, min(50.0, lean)))))


def perturb(mean: Sequence[float], spread: Sequence[float], seed: int) -> list[float]:
    """Return weights drawn around the mean; the same seed draws the same ones anywhere."""
    dice = random.Random(seed)
    return [m + s * dice.gauss(0, 1) for m, s in zip(mean, spread, strict=True)]


def improve(
    samples: Sequence[tuple[Sequence[float], float]], elite: float, least_spread: float
) -> tuple[list[float], list[float]]:
    """Return mean and spread of the best share `elite` of (weights, return) samples.

    The cross-entropy method: draw around the mean, keep the best, move there.
    """
    best = sorted(samples, key=lambda sample: sample[1], reverse=True)
    kept = [weights for weights, _ in best[: max(1, round(elite * len(best)))]]
    mean = [sum(column) / len(kept) for column in zip(*kept, strict=True)]
    spread = [
        max(least_spread, (sum((w - m) ** 2 for w in column) / len(kept)) ** 0.5)
        for column, m in zip(zip(*kept, strict=True), mean, strict=True)
    ]
    return mean, spread
