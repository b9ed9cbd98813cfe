"""Generate vectors.json, the expected results for the tests of the three languages.

`steps` are gymnasium's: a state, an action, the next state, and whether the episode is over.
`episodes` are physics.py's and must be reproduced bit by bit. Run it after `make demo`, which
installs gymnasium: .venv/bin/python examples/cartpole/vectors.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import gymnasium
from physics import LONGEST, State, act, is_over, step, vary
from policy import new_task

FILE = Path(__file__).with_name("vectors.json")
EPISODES = 60
STEPS = 300


def episode(seed: int) -> dict[str, object]:
    """Play an episode, with good and bad policies."""
    mean, spread = [0.0, 0.25, 0.5, 0.5], [0.5, 0.75, 1.0, 1.0]
    task = new_task(seed)
    weights = vary(mean, spread, task["noise"])
    state: State = tuple(task["start"])
    actions = ""
    while len(actions) < LONGEST and not is_over(state):
        action = act(weights, state)
        actions += str(action)
        state = step(state, action)
    return {"mean": mean, "spread": spread, **task, "actions": actions, "end": state}


def gymnasium_step(environment: gymnasium.Env, state: State, action: int) -> list[object]:
    """Return the result of one step of gymnasium from any state."""
    environment.reset()
    environment.unwrapped.state = state
    _, _, terminated, _, _ = environment.step(action)
    return [state, action, [float(x) for x in environment.unwrapped.state], bool(terminated)]


def main() -> None:
    """Write the file."""
    environment = gymnasium.make("CartPole-v1")
    dice = random.Random(1)
    limits = (2.5, 3.0, 0.23, 3.0)
    states = [tuple(dice.uniform(-limit, limit) for limit in limits) for _ in range(STEPS)]
    steps = [gymnasium_step(environment, state, dice.randrange(2)) for state in states]
    vectors = {"steps": steps, "episodes": [episode(seed) for seed in range(EPISODES)]}
    lines = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]"
        for name, rows in vectors.items()
    )
    FILE.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
