"""A group whose deadline is still to come keeps its namespace open."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from google.protobuf.duration_pb2 import Duration
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_SUCCEEDED, UpdateAttemptRequest
from lightningstore.v1.claim_pb2 import DequeueRolloutsRequest
from lightningstore.v1.group_pb2 import GetGroupRequest

from tests.integration.test_namespace_lifecycle import IDLE, Place, enqueue

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    place = Place("sqlite-grpc", tmp_path)
    await place.start()
    yield place
    await place.stop()


async def test_group_with_a_deadline_keeps_its_namespace_open(place: Place) -> None:
    """It is half full, and all members that it has are finished: only its deadline will complete it."""
    await place.caller.create("a")
    request = enqueue(group_id="g")
    request.groups.add(group_id="g", size=2, deadline=Duration(seconds=5 * int(IDLE)))
    await place.caller.call("EnqueueRollouts", request, "a")
    claimed = await place.caller.call("DequeueRollouts", DequeueRolloutsRequest(limit=1), "a")
    attempt = claimed.rollouts[0].latest_attempt
    attempt.status = ATTEMPT_STATUS_SUCCEEDED
    await place.caller.call("UpdateAttempt", UpdateAttemptRequest(attempt=attempt), "a")
    await place.advance(IDLE)
    assert place.space("a").store is not None
    await place.restart()
    async with asyncio.timeout(10):
        while not place.space("a").quiet_since:  # set when it is opened, which no call does
            await asyncio.sleep(0.001)
    await place.advance(5 * IDLE)
    found = await place.caller.call("GetGroup", GetGroupRequest(group_id="g"), "a")
    assert found.group.completion_number == 1
    assert found.group.deadline_passed
    await place.let_idle("a")
