"""Outgoing spans: encoded, assigned to their attempts, split into batches. Without I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lightningstore.client._exporter.repair import repaired
from lightningstore.client._values.attributes import ATTEMPT_ID, ROLLOUT_ID, SEQUENCE_ID
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.sdk.trace import ReadableSpan

#: Size at which a message is complete: below every limit, and large enough to be efficient.
BATCH_BYTES = 1 << 20


class Origin(NamedTuple):
    """What the spans of one batch share."""

    rollout_id: str
    attempt_id: str
    resource: bytes
    resource_schema_url: str
    scope: bytes
    schema_url: str


class Item(NamedTuple):
    """One encoded span."""

    origin: Origin
    span: bytes
    sequence_id: int
    #: For the log.
    name: str

    @property
    def size(self) -> int:
        """Approximate size of the span on the wire in bytes."""
        return len(self.span) + 12


def encode(
    spans: Sequence[ReadableSpan],
    rollout_id: str,
    attempt_id: str,
    filed: Mapping[str, str] | None = None,
) -> Iterator[Item | None]:
    """Encode spans. Yields None for a span without an attempt.

    The ids of a span are its attributes, else the ids in `filed`, else the attributes of its resource, else the
    arguments.
    """
    for of_resource in encode_spans(list(map(repaired, spans))).resource_spans:
        ids = {**_ids(of_resource.resource.attributes), **(filed or {})}
        resource = of_resource.resource.SerializeToString()
        for of_scope in of_resource.scope_spans:
            scope = of_scope.scope.SerializeToString()
            for span in of_scope.spans:
                own = _ids(span.attributes)
                names = {**ids, **own}
                origin = Origin(
                    str(names.get(ROLLOUT_ID, rollout_id)),
                    str(names.get(ATTEMPT_ID, attempt_id)),
                    resource,
                    of_resource.schema_url,
                    scope,
                    of_scope.schema_url,
                )
                if not origin.rollout_id or not origin.attempt_id:
                    yield None
                    continue
                number = own.get(SEQUENCE_ID, 0)
                number = number if isinstance(number, int) and number > 0 else 0
                yield Item(origin, span.SerializeToString(), number, span.name)


def _ids(attributes: Iterable[KeyValue]) -> Mapping[str, Any]:
    ids: dict[str, Any] = {}
    for pair in attributes:
        if pair.key in (ROLLOUT_ID, ATTEMPT_ID, SEQUENCE_ID):
            kind = pair.value.WhichOneof("value")
            if kind in ("string_value", "int_value"):
                ids[pair.key] = getattr(pair.value, kind)
    return ids


def into_messages(items: Iterable[Item]) -> list[list[Item]]:
    """Group items into messages of about 1 MiB, each of one origin, keeping the order in each attempt."""
    messages: list[list[Item]] = []
    current: dict[tuple[str, str], tuple[list[Item], int]] = {}
    for item in items:
        attempt = (item.origin.rollout_id, item.origin.attempt_id)
        members, size = current.get(attempt, ([], 0))
        if not members or members[0].origin != item.origin or size + item.size > BATCH_BYTES:
            members, size = [], 0
            messages.append(members)
        members.append(item)
        current[attempt] = (members, size + item.size)
    return messages


def to_batch(items: Sequence[Item]) -> SpanBatch:
    """Return a message of the contract for items of one origin."""
    origin = items[0].origin
    batch = SpanBatch(
        rollout_id=origin.rollout_id,
        attempt_id=origin.attempt_id,
        resource=Resource.FromString(origin.resource),
        resource_schema_url=origin.resource_schema_url,
        scope=InstrumentationScope.FromString(origin.scope),
        schema_url=origin.schema_url,
    )
    for item in items:
        batch.spans.add().MergeFromString(item.span)
    if any(item.sequence_id for item in items):
        batch.sequence_ids.extend(item.sequence_id for item in items)
    return batch
