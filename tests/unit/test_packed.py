"""Values that a database has put together as one text."""

from __future__ import annotations

from itertools import chain
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service.rules.rewards import sortable
from lightningstore.service.storage import packed

_numbers = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("separator", ["", ","])
@given(numbers=st.lists(_numbers, min_size=1, max_size=20), at_once=st.integers(1, 7))
def test_rewards_are_the_numbers_that_were_stored(
    separator: str, numbers: list[float], at_once: int
) -> None:
    text = separator.join(map(sortable, numbers))
    with mock.patch.object(packed, "UNPACKED_AT_ONCE", at_once):
        assert list(chain.from_iterable(packed.rewards(text))) == numbers


@pytest.mark.parametrize("numbers", [[0.5, 0.25], [-0.5, 0.25], [-1.0, -0.0, 0.0]])
def test_rewards_of_either_sign(numbers: list[float]) -> None:
    found = list(chain.from_iterable(packed.rewards(",".join(map(sortable, numbers)))))
    assert found == numbers
