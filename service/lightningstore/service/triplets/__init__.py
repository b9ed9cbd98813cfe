"""Spans to training data: the calls of a model in a trace, each with prompt, response and reward. Pure.

The algorithm is in docs/triplets.md. Work comes in steps, so that a large trace keeps nobody from the event
loop: a function that returns `Steps[T]` is a generator that yields now and then, and returns a T.
"""

from lightningstore.service.triplets.nodes import Node, Place
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.rewards import final as final_reward
from lightningstore.service.triplets.rewards import message as reward_message
from lightningstore.service.triplets.steps import Steps, T, run
from lightningstore.service.triplets.trace import Call, Trace, find_calls, triplet_of
from lightningstore.service.triplets.values import Warnings

__all__ = [
    "Call",
    "Node",
    "Options",
    "Place",
    "Steps",
    "T",
    "Trace",
    "Warnings",
    "final_reward",
    "find_calls",
    "reward_message",
    "run",
    "triplet_of",
]
