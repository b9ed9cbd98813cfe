"""A runner of the demo: claims an episode, plays it, streams a span a step, returns the reward."""

from __future__ import annotations

import random
import sys

import gymnasium
from lightningstore.client import Runner
from policy import act, perturb

environment = gymnasium.make("CartPole-v1")


def play(task, resources, tracer, context):  # noqa: ANN001, ANN201
    """Play one episode with the published policy, varied as the task says."""
    policy = resources["policy"].value
    weights = perturb(policy["mean"], policy["spread"], task["perturbation"])
    dice = random.Random(task["episode"])
    observation, _ = environment.reset(seed=task["episode"])
    total, over = 0.0, False
    while not over:
        context.check()  # stops at once if the rollout was cancelled, or went to another runner
        with tracer.start_as_current_span("step") as span:
            action = act(weights, observation, dice)
            span.set_attribute("observation", [float(x) for x in observation])
            span.set_attribute("action", action)
            observation, reward, terminated, truncated, _ = environment.step(action)
            span.set_attribute("reward", float(reward))
        total += float(reward)
        over = terminated or truncated
    return total  # becomes the span `agentlightning.annotation`


if __name__ == "__main__":
    Runner(sys.argv[1], play, worker_id=sys.argv[2], poll_wait=5).run()
