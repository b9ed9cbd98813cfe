"""Spans to training data: the calls of a model in a trace, each with prompt, response and reward. Pure.

docs/triplets.md has the algorithm. Work comes in steps, so that a large trace does not hold the event loop: a function
that returns `Steps[T]` is a generator that yields now and then, and returns a T.
"""

from lightningstore.service.triplets.chat import use_messages
from lightningstore.service.triplets.nodes import Node, Place
from lightningstore.service.triplets.options import Options
from lightningstore.service.triplets.rewards import final as final_reward
from lightningstore.service.triplets.rewards import message as reward_message
from lightningstore.service.triplets.rewards import of_span as reward_of
from lightningstore.service.triplets.steps import Steps, T, run
from lightningstore.service.triplets.trace import (
    Call,
    Trace,
    add_answer,
    find_calls,
    lacks_answer,
    triplet_of,
)
from lightningstore.service.triplets.warnings import Warnings

__all__ = [
    "Call",
    "Node",
    "Options",
    "Place",
    "Steps",
    "T",
    "Trace",
    "Warnings",
    "add_answer",
    "final_reward",
    "find_calls",
    "lacks_answer",
    "reward_message",
    "reward_of",
    "run",
    "triplet_of",
    "use_messages",
]
