"""CartPole-v1 and its policy, in few lines and portable to other languages.

client/go/examples/cartpole and client/typescript/examples/cartpole are bit-identical, so that the
result does not depend on the language that plays an episode. A pole that is not balanced falls
exponentially fast: a single different rounding would give another episode within seconds. The code
therefore uses only + - * / in a fixed order, which IEEE 754 rounds the same everywhere. That does
not hold for the sine of a libm or for Python's sum() of floats.
"""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 500  # steps
GRAVITY, FORCE, SECONDS = 9.8, 10.0, 0.02
POLE_MASS, TOTAL_MASS, HALF_LENGTH = 0.1, 1.1, 0.5
FARTHEST, STEEPEST = 2.4, 0.20943951023931953  # metres; 12 degrees

State = tuple[float, float, float, float]  # position, speed, angle of the pole, how fast it turns


def sine(x: float) -> float:
    """Return the sine of a small angle from its series, exact to a double up to 0.3."""
    y = x * x
    return x * (
        1 + y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y * (1 / 362880 + y * (-1 / 39916800)))))
    )


def cosine(x: float) -> float:
    """Return the cosine of a small angle."""
    y = x * x
    return 1 + y * (
        -1 / 2
        + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320 + y * (-1 / 3628800 + y * (1 / 479001600)))))
    )


def step(state: State, action: int) -> State:
    """Return the state after 0.02 s of pushing the cart to the right (1) or to the left (0)."""
    position, speed, angle, turning = state
    force = FORCE if action == 1 else -FORCE
    sin, cos = sine(angle), cosine(angle)
    push = (force + POLE_MASS * HALF_LENGTH * (turning * turning) * sin) / TOTAL_MASS
    inertia = HALF_LENGTH * (4 / 3 - POLE_MASS * (cos * cos) / TOTAL_MASS)
    turns = (GRAVITY * sin - cos * push) / inertia
    moves = push - POLE_MASS * HALF_LENGTH * turns * cos / TOTAL_MASS
    return (
        position + SECONDS * speed,
        speed + SECONDS * moves,
        angle + SECONDS * turning,
        turning + SECONDS * turns,
    )


def is_over(state: State) -> bool:
    """Return whether the cart has left the track or the pole has fallen."""
    return abs(state[0]) > FARTHEST or abs(state[2]) > STEEPEST


def vary(
    mean: Sequence[float], spread: Sequence[float], noise: Sequence[float]
) -> tuple[float, ...]:
    """Return the weights of one episode: the published policy, varied by its noise."""
    return tuple(m + s * n for m, s, n in zip(mean, spread, noise, strict=True))


def act(weights: Sequence[float], state: State) -> int:
    """Return 1 to push the cart to the right, 0 to push it to the left."""
    lean = 0.0
    for weight, value in zip(weights, state, strict=True):
        lean += weight * value
    return int(lean > 0)
