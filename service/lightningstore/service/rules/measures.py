"""What queries know of the attempts of a rollout, beside its record: rewards, scores and times."""

from __future__ import annotations

from typing import NamedTuple

from lightningstore.service.rules.rewards import sortable
from lightningstore.service.rules.times import nanoseconds
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.rollout_pb2 import Rollout

#: A duration or a lag that is not known.
UNKNOWN = -1


class Measures(NamedTuple):
    """Reward and scores of the latest attempt, and how long a finished rollout took."""

    #: In the form in which it is sorted; "" if there is none.
    reward: str = ""
    #: By name, in the order of the names.
    scores: tuple[tuple[str, float], ...] = ()
    #: Nanoseconds from the claim of the latest attempt to the end of the rollout.
    duration_ns: int = UNKNOWN
    #: Nanoseconds from the enqueueing to the first claim.
    queue_ns: int = UNKNOWN
    #: Publish number of the latest attempt of a finished rollout; 0 if it has none.
    publish_number: int = 0
    #: How many publications it was behind when the rollout finished.
    lag: int = UNKNOWN


NONE = Measures()


def of(rollout: Rollout, first: Attempt | None, latest: Attempt | None) -> Measures:
    """Return the measures of a rollout with these attempts."""
    if first is None or latest is None:
        return NONE
    reward = ""
    scores: tuple[tuple[str, float], ...] = ()
    if latest.reward_source:
        reward = sortable(latest.reward)
    if latest.scores:
        scores = tuple(sorted(latest.scores.items()))
    duration = queue = lag = UNKNOWN
    publish_number = 0
    if rollout.HasField("end_time"):
        duration = max(0, nanoseconds(rollout.end_time) - nanoseconds(latest.start_time))
        queue = max(0, nanoseconds(first.start_time) - nanoseconds(rollout.start_time))
        publish_number, latest_number = latest.publish_number, rollout.end_publish_number
        if publish_number and latest_number:
            lag = max(0, latest_number - publish_number)
    elif not reward and not scores:
        return NONE
    return Measures(reward, scores, duration, queue, publish_number, lag)
