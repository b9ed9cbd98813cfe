"""What a worker is shown to work on: the newest of its live attempts, whatever comes and goes."""

import random
from typing import NamedTuple

from lightningstore.service.engine.workers import Workforce
from lightningstore.service.rules.times import stamp
from lightningstore.v1.attempt_pb2 import Attempt

NOW = stamp(1)


class Live(NamedTuple):
    key: int
    record: Attempt


def live(key: int) -> Live:
    return Live(key, Attempt(rollout_id=f"ro-{key}", attempt_id=f"at-{key}", worker_id="w"))


def test_an_older_attempt_that_lives_again_is_not_the_newest():
    workers = Workforce()
    for key in (1, 3, 2):
        workers.assign(live(key), NOW)
    assert workers.find("w").current_attempt_id == "at-3"
    workers.release(live(3), "w", NOW, verdict=False)
    assert workers.find("w").current_attempt_id == "at-2"


def test_the_newest_is_shown_in_any_order_of_coming_and_going():
    workers, there, dice = Workforce(), set(), random.Random(7)
    for _ in range(3000):
        key = dice.randrange(1, 60)
        if key in there:
            there.remove(key)
            workers.release(live(key), "w", NOW, verdict=False)
        else:
            there.add(key)
            workers.assign(live(key), NOW)
        shown = workers.find("w").current_attempt_id
        assert shown == (f"at-{max(there)}" if there else "")
