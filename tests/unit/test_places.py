"""Places in blocks: the same as a sorted list."""

from __future__ import annotations

import bisect
import random
from itertools import chain

import pytest
from lightningstore.service.storage import places
from lightningstore.service.storage.places import Place, Places


@pytest.mark.parametrize("lowest", [None, 0])
@pytest.mark.parametrize("seed", range(10))
def test_they_are_those_of_a_sorted_list(
    seed: int, lowest: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "BLOCK", 4)
    chance = random.Random(seed)
    found, expected = Places(lowest), list[Place]()
    for _ in range(400):
        place = (max(0, chance.randrange(-15, 30)), chance.randrange(30))
        if chance.random() < 0.4 or place in expected:
            found.remove(place)
            expected = [other for other in expected if other != place]
        else:
            found.add(place)
            bisect.insort(expected, place)
        start = chance.choice([None, (max(0, chance.randrange(-15, 30)), chance.randrange(30))])
        above = [p for p in expected if start is None or p > start]
        below = [p for p in reversed(expected) if start is None or p < start]
        assert list(chain(*found.beyond(start, descending=False))) == above
        assert list(chain(*found.beyond(start, descending=True))) == below


@pytest.mark.parametrize("descending", [False, True])
def test_they_may_change_between_two_parts(
    monkeypatch: pytest.MonkeyPatch, *, descending: bool
) -> None:
    monkeypatch.setattr(places, "BLOCK", 2)
    found = Places()
    for number in range(20):
        found.add((number, 0))
    seen: list[Place] = []
    for part in found.beyond(None, descending=descending):
        seen += part
        if len(seen) < 6:
            found.remove((10, 0))
            found.add((10, 5 + len(seen)))
    stayed = [number for number, key in seen if not key and number != 10]
    assert stayed == sorted(set(range(20)) - {10}, reverse=descending)


def test_a_block_stays_small() -> None:
    found = Places()
    for number in range(10 * places.BLOCK):
        found.add((number * 7919 % 10_007, number))
    assert max(map(len, found._blocks)) < 2 * places.BLOCK
