"""Spans, resources and statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

from agentlightning.store.base import LightningStoreStatistics
from agentlightning.types import NamedResources, PaginatedResult, ResourcesUpdate, Span
from lightningstore import client
from lightningstore.client import NotFoundError
from lightningstore.integrations.agentlightning import _paging, _spans
from lightningstore.integrations.agentlightning._buffer import is_tracer
from lightningstore.integrations.agentlightning._connection import Connected, logger
from lightningstore.integrations.agentlightning._errors import NO_ATTEMPT, refusals
from lightningstore.integrations.agentlightning._records import (
    from_resources,
    to_resources_update,
)
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.sdk.trace import ReadableSpan

#: Maximum number of spans, and bytes of them, in one call.
SPANS_AT_ONCE = 1000
BYTES_AT_ONCE = 8 << 20
PAGE = 1000


class TraceMethods(Connected):
    """The methods of the trace store."""

    async def add_span(self, span: Span) -> Span | None:
        """Store a span; None if its attempt already has one with that span_id.

        A sequence_id below 1 is replaced by the attempt's next number.

        Raises:
            ValueError: The rollout or attempt is unknown, or an id is not OpenTelemetry's (32 and
            16 hex digits).
        """
        stored = await self.add_many_spans([span])
        return stored[0] if stored else None

    async def add_many_spans(self, spans: Sequence[Span]) -> Sequence[Span]:
        """Store spans of any attempts, and return those that were not stored before, in order.

        The returned spans are the given objects, except for those without a number. An error in the
        log names the others. Up to 1,000 spans of one attempt are stored atomically. Raises what
        `add_span` raises.
        """
        numbered = await self._numbered(spans)
        new: set[int] = set()
        for batch, indices in _batches(numbered):
            with refusals(batch.rollout_id, batch.attempt_id):
                result = await self._client.add_spans(batch)
                # Rejected spans have the id of a stored span, and other content.
                if not result.duplicate_count + result.rejected_count:
                    new.update(indices)
                elif result.accepted_count:
                    new.update(await self._found(batch, indices))
        for index, span in enumerate(numbered):
            if index not in new:
                _log_duplicate(span.rollout_id, span.attempt_id, span.span_id)
        return [span for index, span in enumerate(numbered) if index in new]

    async def _numbered(self, spans: Sequence[Span]) -> list[Span]:
        without = [(span.rollout_id, span.attempt_id) for span in spans if span.sequence_id < 1]
        numbers = iter(await self.get_many_span_sequence_ids(without) if without else ())
        return [
            span if span.sequence_id > 0 else span.model_copy(update={"sequence_id": next(numbers)})
            for span in spans
        ]

    async def _found(self, batch: SpanBatch, indices: Sequence[int]) -> Iterable[int]:
        """Return which spans of a batch are stored as sent, because the server only counts them."""
        stored = {
            span.message.span_id: (span.sequence_id, span.otlp.SerializeToString())
            async for span in self._client.query_spans(batch.rollout_id, batch.attempt_id)
        }
        first: dict[bytes, int] = {}
        for index, span, number in zip(indices, batch.spans, batch.sequence_ids, strict=True):
            if stored.get(span.span_id) == (number, span.SerializeToString()):
                first.setdefault(span.span_id, index)
        return first.values()

    async def add_otel_span(
        self,
        rollout_id: str,
        attempt_id: str,
        readable_span: ReadableSpan,
        sequence_id: int | None = None,
    ) -> Span | None:
        """Store a span of OpenTelemetry's SDK; None if its attempt already has its span_id.

        Without a sequence_id, or with one below 1, it gets the attempt's next number.

        A tracer's span is buffered instead, and stored 0.2 seconds later, or before the next call
        of a store of this process, so that an agent does not wait for its spans. If the server
        rejects it, that is logged. Its sequence_id is the number that it gets if only this process
        adds spans to the attempt.

        Raises:
            ValueError: The rollout or attempt is unknown.
        """
        if sequence_id is None and is_tracer():
            number = self._holding.link.buffer.put(rollout_id, attempt_id, readable_span)
            return Span.from_opentelemetry(readable_span, rollout_id, attempt_id, number)
        if sequence_id is None or sequence_id < 1:
            sequence_id = await self.get_next_span_sequence_id(rollout_id, attempt_id)
        batch = _spans.of_readable(rollout_id, attempt_id, readable_span)
        batch.sequence_ids.append(sequence_id)
        with refusals(rollout_id, attempt_id):
            result = await self._client.add_spans(batch)
        if not result.accepted_count:
            _log_duplicate(rollout_id, attempt_id, batch.spans[0].span_id.hex())
            return None
        return Span.from_opentelemetry(readable_span, rollout_id, attempt_id, sequence_id)

    async def get_next_span_sequence_id(self, rollout_id: str, attempt_id: str) -> int:
        """Return the next number of an attempt. Raises ValueError for an unknown rollout or attempt."""
        return (await self.get_many_span_sequence_ids([(rollout_id, attempt_id)]))[0]

    async def get_many_span_sequence_ids(
        self, rollout_attempt_ids: Sequence[tuple[str, str]]
    ) -> Sequence[int]:
        """Return the next number of each attempt, in order, as often as it occurs.

        Raises ValueError for an unknown rollout or attempt.
        """
        counts: dict[tuple[str, str], int] = {}
        for rollout_id, attempt_id in rollout_attempt_ids:
            counts[rollout_id, attempt_id] = counts.get((rollout_id, attempt_id), 0) + 1
        if not counts:
            return []
        # With several attempts, the server's text names the unknown one.
        alone = next(iter(counts)) if len(counts) == 1 else ()
        with refusals(*alone):
            ranges = await self._client.allocate_sequence_ids(
                [(*pair, count) for pair, count in counts.items()]
            )
        numbers = {pair: iter(found.numbers) for pair, found in zip(counts, ranges, strict=True)}
        return [
            next(numbers[rollout_id, attempt_id]) for rollout_id, attempt_id in rollout_attempt_ids
        ]

    async def query_spans(
        self,
        rollout_id: str,
        attempt_id: str | Literal["latest"] | None = None,  # noqa: PYI051
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_id: str | None = None,
        parent_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: Literal["and", "or"] = "and",
        limit: int = -1,
        offset: int = 0,
        sort_by: str | None = "sequence_id",
        sort_order: Literal["asc", "desc"] = "asc",
    ) -> PaginatedResult[Span]:
        """Find spans of a rollout: of one attempt, of the "latest", or (None) of all.

        Raises:
            ValueError: The rollout or attempt is unknown, or an argument is invalid.
            RuntimeError: The spans were evicted.
        """
        _paging.check(
            Span,
            sort_by=sort_by,
            sort_order=sort_order,
            limit=limit,
            offset=offset,
            filter_logic=filter_logic,
        )
        filters = {
            "trace_id": trace_id,
            "trace_id_contains": trace_id_contains,
            "span_id": span_id,
            "span_id_contains": span_id_contains,
            "parent_id": parent_id,
            "parent_id_contains": parent_id_contains,
            "name": name,
            "name_contains": name_contains,
        }
        said = {key: value for key, value in filters.items() if value is not None}
        found = await self._matching(rollout_id, attempt_id, said, filter_logic)
        ordered = _paging.sort(found, sort_by, sort_order, _field)
        items = [_spans.from_client(span) for span in _paging.cut(ordered, limit, offset)]
        return PaginatedResult(items=items, limit=limit, offset=offset, total=len(ordered))

    async def _matching(
        self, rollout_id: str, attempt_id: str | None, said: dict[str, str], logic: str
    ) -> list[client.Span]:
        keep: Callable[[client.Span], bool] = lambda _: True  # noqa: E731
        if not _server_can(said):
            keep, said = _predicate(said, logic), {}
        asked: dict[str, Any] = {
            key.replace("parent_id", "parent_span_id"): value for key, value in said.items()
        }
        with refusals(rollout_id, attempt_id or ""):
            try:
                spans = self._client.query_spans(
                    rollout_id, attempt_id or "", filter_logic=logic, **asked
                )
                return [span async for span in spans if keep(span)]
            except NotFoundError as error:
                if attempt_id == "latest" and error.reason == NO_ATTEMPT:
                    return []
                raise

    async def query_resources(
        self,
        *,
        resources_id: str | None = None,
        resources_id_contains: str | None = None,
        sort_by: str | None = None,
        sort_order: Literal["asc", "desc"] = "asc",
        limit: int = -1,
        offset: int = 0,
    ) -> PaginatedResult[ResourcesUpdate]:
        """Find resources, in the order in which they were first added unless sorted.

        Raises:
            ValueError: An argument is invalid.
        """
        _paging.check(
            ResourcesUpdate, sort_by=sort_by, sort_order=sort_order, limit=limit, offset=offset
        )
        with refusals():
            stored = await _paging.every(
                lambda token: self._client.list_resources(
                    resources_id_contains=resources_id or resources_id_contains or "",
                    page_size=PAGE,
                    page_token=token,
                )
            )
        found = [
            to_resources_update(resources)
            for resources in stored
            if resources_id in (None, resources.resources_id)
            and (resources_id_contains or "") in resources.resources_id
        ]
        return _paging.page(_paging.sort(found, sort_by, sort_order), limit, offset)

    async def get_resources_by_id(self, resources_id: str) -> ResourcesUpdate | None:
        """Return the current version of resources, None if the id is unknown."""
        # The server takes both of these for the latest resources; here they are ids that nothing has.
        return None if resources_id in ("", "latest") else await self._resources(resources_id)

    async def get_latest_resources(self) -> ResourcesUpdate | None:
        """Return the resources added or updated last, None if there are none."""
        return await self._resources("")

    async def _resources(self, resources_id: str) -> ResourcesUpdate | None:
        with refusals():
            try:
                return to_resources_update(await self._client.get_resources(resources_id))
            except NotFoundError:
                return None

    async def add_resources(self, resources: NamedResources) -> ResourcesUpdate:
        """Store new resources and make them the latest."""
        with refusals():
            return to_resources_update(await self._client.add_resources(from_resources(resources)))

    async def update_resources(
        self, resources_id: str, resources: NamedResources
    ) -> ResourcesUpdate:
        """Replace resources and make them the latest. An unknown id is created."""
        with refusals():
            return to_resources_update(
                await self._client.update_resources(resources_id, from_resources(resources))
            )

    async def statistics(self) -> LightningStoreStatistics:
        """Return the counters; `uptime` is the server's, in seconds.

        Thresholds are set only if spans are evicted.
        """
        with refusals():
            found = await self._client.get_statistics()
        counts = LightningStoreStatistics(
            name=type(self).__name__,
            total_rollouts=sum(found.rollouts.values()),
            total_attempts=sum(found.attempts.values()),
            total_spans=found.span_count,
            total_resources=found.resources_count,
            total_workers=sum(found.workers.values()),
            uptime=found.uptime,
            total_span_bytes=found.span_bytes,
        )
        if found.eviction_threshold_bytes:
            counts["eviction_threshold_bytes"] = found.eviction_threshold_bytes
            counts["safe_threshold_bytes"] = found.safe_threshold_bytes
        return counts


def _log_duplicate(rollout_id: str, attempt_id: str, span_id: str) -> None:
    """Log with agentlightning's text that a span was stored before."""
    logger.error(
        "Duplicated span added for rollout=%s, attempt=%s, span=%s. Skipping.",
        rollout_id,
        attempt_id,
        span_id,
    )


def _batches(spans: Sequence[Span]) -> Iterator[tuple[SpanBatch, list[int]]]:
    """Group spans by attempt, resource and scope, each with its position in the list."""
    open_batches: dict[bytes, tuple[SpanBatch, list[int], int]] = {}
    made = [(_spans.head(span), _spans.to_otlp(span)) for span in spans]
    for index, (head, otlp) in enumerate(made):
        key = head.SerializeToString(deterministic=True)
        size = otlp.ByteSize()
        batch, indices, held = open_batches.get(key, (head, [], 0))
        if indices and (len(indices) == SPANS_AT_ONCE or held + size > BYTES_AT_ONCE):
            yield batch, indices
            batch, indices, held = head, [], 0
        batch.spans.append(otlp)
        batch.sequence_ids.append(spans[index].sequence_id)
        indices.append(index)
        open_batches[key] = batch, indices, held + size
    for batch, indices, _ in open_batches.values():
        yield batch, indices


def _field(span: client.Span, name: str) -> Any:
    """Return a field of a stored span under agentlightning's name."""
    if name in ("start_time", "end_time"):
        return getattr(span, f"{name}_ns") or None
    if name == "parent_id":
        return span.parent_span_id or None
    return getattr(span, name)


def _server_can(said: dict[str, str]) -> bool:
    """Return whether the server applies these filters like agentlightning.

    That requires at most one filter per field, none of them empty.
    """
    fields = [key.removesuffix("_contains") for key in said]
    return len(fields) == len(set(fields)) and all(said.values())


def _predicate(said: dict[str, str], logic: str) -> Callable[[client.Span], bool]:
    def holds(span: client.Span, key: str, wanted: str) -> bool:
        value = _field(span, key.removesuffix("_contains"))
        if value is None:
            return False
        return wanted in value if key.endswith("_contains") else bool(wanted == value)

    combine = any if logic == "or" else all
    return lambda span: combine(holds(span, key, wanted) for key, wanted in said.items())
