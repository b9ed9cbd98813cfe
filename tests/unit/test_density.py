"""Large requests are counted on the wire before anything is built of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from lightningstore.service.rpc import calls as wrap
from lightningstore.service.rpc import density
from lightningstore.service.rules.errors import BatchTooLarge, MalformedMessage, PayloadTooLarge
from lightningstore.service.rules.pieces import UNCOUNTED_BYTES
from lightningstore.service.rules.wire import field
from lightningstore.v1.attempt_pb2 import Attempt
from lightningstore.v1.completion_pb2 import WaitForRolloutsRequest
from lightningstore.v1.import_pb2 import ImportRolloutsRequest
from lightningstore.v1.rollout_pb2 import (
    CancelRolloutsRequest,
    EnqueueRolloutsRequest,
    RolloutConfig,
    RolloutSpec,
)
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.trace.v1.trace_pb2 import Span

pytestmark = pytest.mark.asyncio

MIB = 1 << 20
LIMIT = 64 * MIB
SPEC = RolloutSpec(
    input_json=b'"%s"' % (b"x" * 600),
    mode=1,
    priority=3,
    group_id="group",
    resources_id="resources",
    config=RolloutConfig(max_attempts=3, retry_condition=[5, 6]),
    metadata_json=b"{}",
    rollout_id="ro-1",
)


class Unbuilt:
    """A class of messages that must not be built."""

    def __init__(self, message: Any) -> None:
        self.DESCRIPTOR = message.DESCRIPTOR

    def FromString(self, _: bytes) -> None:  # noqa: N802
        pytest.fail("built before it was counted")


@pytest.mark.parametrize(
    ("message", "data", "name"),
    [
        (EnqueueRolloutsRequest, b"\x0a\0" * MIB, "rollouts"),
        (CancelRolloutsRequest, b"\x0a\0" * MIB, "rollout_ids"),
        (WaitForRolloutsRequest, b"\x12\0" * MIB, "group_ids"),
        (EnqueueRolloutsRequest, field(1, field(6, b"\x2a\0" * MIB)), "retry_backoff"),
        (EnqueueRolloutsRequest, field(1, field(6, field(4, b"\1" * 2 * MIB))), "retry_condition"),
        (EnqueueRolloutsRequest, field(1, b"\x78\0" * MIB), "RolloutSpec"),
        (ImportRolloutsRequest, field(2, b"\x0a\0" * MIB) * 2, "Attempt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_too_many_fields_are_refused_before_anything_is_built(
    message: Any, data: bytes, name: str
) -> None:
    with pytest.raises(BatchTooLarge, match=name):
        await wrap.read(Unbuilt(message), data, LIMIT)  # type: ignore[arg-type]


async def test_others_go_on_while_a_large_message_is_counted() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    with pytest.raises(BatchTooLarge):
        await density.check(b"\x0a\0" * MIB, EnqueueRolloutsRequest.DESCRIPTOR)
    task.cancel()
    assert turns >= density.MAX_FIELDS // density.SLICE_FIELDS


@pytest.mark.parametrize(
    "request_",
    [
        EnqueueRolloutsRequest(rollouts=[SPEC] * 30_000),
        EnqueueRolloutsRequest(rollouts=[RolloutSpec(input_json=b"1" * (16 * MIB))] * 3),
        CancelRolloutsRequest(rollout_ids=[f"ro-{number:012}" for number in range(30_000)]),
        ImportRolloutsRequest(
            attempts=[Attempt(attempt_id="at-1")],
            batches=[SpanBatch(spans=[Span(name="x" * 200)] * 10_000)],
        ),
    ],
    ids=["rollouts", "inputs", "ids", "spans"],
)
async def test_what_callers_send_is_read(request_: Any) -> None:
    data = request_.SerializeToString()
    assert len(data) > UNCOUNTED_BYTES
    assert await wrap.read(type(request_), data, LIMIT) == request_


@pytest.mark.parametrize("end", [b"\x0a", b"\x0a\x7f", b"\x0b", b"\xff" * 12])
async def test_large_malformed_message_is_told_as_one(end: bytes) -> None:
    data = field(1, b"x" * UNCOUNTED_BYTES) + end
    with pytest.raises(MalformedMessage):
        await wrap.read(CancelRolloutsRequest, data, LIMIT)


async def test_size_is_checked_first() -> None:
    with pytest.raises(PayloadTooLarge):
        await wrap.read(Unbuilt(CancelRolloutsRequest), b"\xff" * 11, 10)  # type: ignore[arg-type]
