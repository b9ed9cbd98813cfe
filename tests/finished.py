"""A store full of finished rollouts of every kind, and texts that break what does not escape them."""

from __future__ import annotations

from typing import Any

from lightningstore.client import AsyncLightningStore, Failure, RawJSON
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tests import traces
from tests.contract.helpers import batch

HOSTILE = 'a"\\\n\r\t</script>\u2028\u0000\x85\x1b[31mü😀 {"rollout_id":"ro-x"}'
#: The same as an id: ids have no NUL, and neither has an argument of a command.
GROUP = HOSTILE.replace("\0", "")
#: In the order in which they finish.
FINISHED = [*(f"ro-{name}" for name in traces.TRACES), f"ro-{GROUP}", "ro-cancelled"]


async def fill(client: AsyncLightningStore) -> None:
    """Make them, and one that does not finish."""
    for name in traces.TRACES:
        made = await client.start_rollout({"trace": name}, rollout_id=f"ro-{name}", mode="train")
        ids = (made.rollout_id, made.attempt.attempt_id)
        await client.add_spans(traces.batch(traces.load(name)["spans"], *ids))
        await client.update_attempt(*ids, status="succeeded")
    text = RawJSON(b' {"b" : 1e2,\r\n "a": 12345678901234567890123, "\\u00e9": [-0, 1E-7]}')
    made = await client.start_rollout(
        text,
        rollout_id=f"ro-{GROUP}",
        metadata={"big": 2**60 + 1},
        group_id=GROUP,
        worker_id="w",
    )
    first = made.attempt.attempt_id
    await client.add_spans(hostile_spans(made.rollout_id, first))
    why = Failure(HOSTILE, HOSTILE, retryable=False)
    await client.update_attempt(made.rollout_id, first, status="failed", failure=why)
    again = await client.start_attempt(made.rollout_id)
    second = again.attempt.attempt_id
    for numbers in ((5, 2), (3,), (2**53 + 1,)):
        part = batch(made.rollout_id, second, *["n"] * len(numbers), numbers=numbers)
        part.scope.name = "one" if numbers == (3,) else "two"
        await client.add_spans(part)
    await client.update_attempt(made.rollout_id, second, status="succeeded")
    await client.enqueue_rollout(None, rollout_id="ro-cancelled", mode="val")
    await client.cancel_rollouts(["ro-cancelled"])
    await client.enqueue_rollout(1, rollout_id="ro-waiting")


def hostile_spans(rollout_id: str, attempt_id: str) -> Any:
    """Return spans with everything in them that OTLP has, and what a newer one may have."""
    sent = batch(rollout_id, attempt_id, HOSTILE, "", numbers=(9, 4))
    sent.resource.attributes.add(key=HOSTILE).value.bytes_value = b"\x00\xff"
    sent.scope.name = HOSTILE
    span = sent.spans[0]
    values = [
        AnyValue(double_value=float("nan")),
        AnyValue(double_value=float("-inf")),
        AnyValue(double_value=1e300),
        AnyValue(int_value=-(2**63)),
        AnyValue(bool_value=False),
        AnyValue(bytes_value=b""),
        AnyValue(),
        traces.any_value({"list": [1, {"k": "v"}], "none": []}),
    ]
    span.attributes.extend(KeyValue(key="twice", value=value) for value in values)
    span.attributes.add(key="no value")
    span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=HOSTILE))
    span.events.add(name=HOSTILE, time_unix_nano=2**64 - 1)
    link = span.links.add(trace_id=b"\1" * 16, span_id=b"\2" * 8, flags=1, trace_state="a=b")
    link.attributes.add(key="k").value.int_value = 2**62
    raw = sent.spans[1].SerializeToString()
    sent.spans[1].CopyFrom(
        Span.FromString(raw + b"\xfa\x3e\x03new")
    )  # field 1007, from a newer OTLP
    return sent
