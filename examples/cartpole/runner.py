"""A runner of the demo: claims an episode, plays it, streams one span per step, returns the reward.

client/go/examples/cartpole and client/typescript/examples/cartpole do the same in their languages.
"""

from __future__ import annotations

import sys

from lightningstore.client import Runner
from physics import LONGEST, act, is_over, step, vary


def play(task, resources, tracer, context):  # noqa: ANN001, ANN201
    """Play one episode with the published policy and the variation of the task."""
    policy = resources["policy"].value
    weights = vary(policy["mean"], policy["spread"], task["noise"])
    state, total = tuple(task["start"]), 0.0
    while total < LONGEST and not is_over(state):
        context.check()  # stops at once if the rollout was cancelled, or went to another runner
        with tracer.start_as_current_span("step") as span:
            action = act(weights, state)
            span.set_attribute("observation", state)
            span.set_attribute("action", action)
            state = step(state, action)
            span.set_attribute("reward", 1.0)
        total += 1
    return total  # becomes the span `agentlightning.annotation`


if __name__ == "__main__":
    Runner(sys.argv[1], play, worker_id=sys.argv[2], poll_wait=5).run()
