"""The standard OTLP trace service, to which any OpenTelemetry SDK or collector exports unchanged.

Spans are grouped by attempt and stored as all batches are. Rejected spans are reported as partial_success, which
exporters do not retry. Overload must therefore never be reported that way: it is UNAVAILABLE with RetryInfo.
Source: https://opentelemetry.io/docs/specs/otlp/.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from google.protobuf.message import DecodeError
from lightningstore.service.engine.clock import Turn
from lightningstore.service.namespaces.directory import Directory
from lightningstore.service.namespaces.space import Space, Use
from lightningstore.service.operations.ingest import Tally, reason_name
from lightningstore.service.operations.store import Store
from lightningstore.service.rpc import lenient
from lightningstore.service.rpc.calls import Calls, Context, Handler, check_size
from lightningstore.service.rpc.forwarding import Forwarding, Peer, located
from lightningstore.service.rpc.status import EXPORT_CODES
from lightningstore.service.rules import pieces, wire
from lightningstore.service.rules.errors import MalformedMessage, PayloadTooLarge, StoreError
from lightningstore.service.rules.limits import HOLD_SECONDS, Limits
from lightningstore.service.rules.namespaces import NAMESPACE_KEY, check_namespace
from lightningstore.service.rules.spans import MAX_SEQUENCE_ID, check_batch, span_error
from lightningstore.service.rules.texts import SHOWN_LENGTH
from lightningstore.v1.error_reason_pb2 import ERROR_REASON_SPAN_EXISTS
from lightningstore.v1.span_pb2 import IngestSpansRequest, SpanBatch
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
#: Path of its only method.
EXPORT = f"/{SERVICE}/Export"
#: Seconds that the owner of a namespace has to store spans that are forwarded to it.
FORWARD_SECONDS = 10.0
ROLLOUT_ID = "agentlightning.rollout_id"
ATTEMPT_ID = "agentlightning.attempt_id"
SEQUENCE_ID = "agentlightning.span_sequence_id"
_MARK = b"agentlightning."
_BATCH = IngestSpansRequest.BATCH_FIELD_NUMBER
#: Metadata keys that name the attempt where attributes do not.
ROLLOUT_KEYS = (ROLLOUT_ID, "x-lightning-rollout-id")
ATTEMPT_KEYS = (ATTEMPT_ID, "x-lightning-attempt-id")
SEQUENCE_KEYS = (SEQUENCE_ID, "x-lightning-span-sequence-id")

#: Resource attribute that names the namespace of the resource's spans.
NAMESPACE = "lightningstore.namespace"

Owner = tuple[str, str, int]
#: The metadata of a call, or the headers of a request: keys in lower case and values.
Metadata = Sequence[tuple[str, str]]
#: Raises a StoreError unless the token in the metadata of a call may use a namespace.
Permit = Callable[[Metadata, str], None]


class Elsewhere:
    """The namespaces that resources name, where those differ from the one of the call."""

    def __init__(
        self,
        directory: Directory,
        permit: Permit | None = None,
        forwarding: Forwarding | None = None,
    ) -> None:
        """Take the namespaces, what checks tokens, and the other servers; None: there are none.

        `permit` checks that the token of a call may use a namespace.
        """
        self._directory = directory
        self._permit = permit
        self._forwarding = forwarding

    def check(self, name: str, metadata: Metadata) -> None:
        """Raise FieldInvalid for an invalid name, and what denies permission."""
        check_namespace(NAMESPACE, name)
        if self._permit is not None:
            self._permit(metadata, name)

    async def located(self, name: str) -> Space | Peer:
        """Return a namespace of this server, or the server that serves it.

        Raises NamespaceNotFound, NotOwner, StorageFailed.
        """
        return await located(self._directory, self._forwarding, name)

    def use(self, space: Space) -> Use:
        """Return a context in which the store of a namespace is open."""
        return self._directory.use(space)


def handler(store: Store, calls: Calls, elsewhere: Elsewhere) -> Handler:
    """Return the handler of TraceService/Export."""

    async def call(data: bytes, context: Context) -> ExportTraceServiceResponse:
        metadata = [
            (str(key), value)
            for key, value in context.invocation_metadata() or ()
            if isinstance(value, str)
        ]
        return await export(store, data, metadata, elsewhere)

    return calls.unary_bytes(f"{SERVICE}/Export", call, EXPORT_CODES)


async def export(
    store: Store, data: bytes, metadata: Metadata, elsewhere: Elsewhere
) -> ExportTraceServiceResponse:
    """Store the spans of a serialised request.

    `metadata` names the attempt where attributes do not; its keys are in lower case.

    Raises MalformedMessage, PayloadTooLarge, BatchTooLarge, Busy, StorageFailed, ShuttingDown.
    """
    await admit(store, data)
    if len(data) <= pieces.UNCOUNTED_BYTES:
        scopes = lenient.scopes(data)
        if scopes is None:
            raise MalformedMessage(ExportTraceServiceRequest.DESCRIPTOR.full_name)
        return await export_scopes(store, scopes, metadata, Counter(), elsewhere)
    async with store.ingest.intake.hold(len(data), HOLD_SECONDS):
        scopes = lenient.large_scopes(data, store.engine.limits)
        return await export_scopes(store, scopes, metadata, Counter(), elsewhere)


async def admit(store: Store, data: bytes) -> None:
    """Wait until there is room for an export. Raises PayloadTooLarge, Busy, StorageFailed."""
    check_size(data, store.engine.limits.message_bytes)
    await store.engine.committer.admit_soon(len(data), HOLD_SECONDS)


async def export_scopes(
    store: Store,
    scopes: list[lenient.Scope],
    metadata: Metadata,
    refused: Counter[lenient.Refusal],
    elsewhere: Elsewhere,
) -> ExportTraceServiceResponse:
    """Store the spans of scopes; `refused` counts the spans that were rejected before. Raises as `export`."""
    default = _metadata_owner(dict(metadata))
    by_namespace = _by_namespace(scopes, store.engine.namespace)
    if by_namespace is None:
        await _store_scopes(store, scopes, default, refused)
    else:
        _check_parsed(scopes)
        for name, part in by_namespace.items():
            if name == store.engine.namespace:
                await _store_scopes(store, part, default, refused)
            else:
                await _store_elsewhere(elsewhere, name, part, metadata, refused)
    for why, count in refused.items():
        if why.reason not in (CONFLICT, BY_OWNER):  # Counted where they were found.
            store.ingest.refused_spans.note(why.reason, count, why.message)
    return response(refused)


def response(refused: Counter[lenient.Refusal]) -> ExportTraceServiceResponse:
    """Return the answer to an export, given the spans that were rejected."""
    answer = ExportTraceServiceResponse()
    if total := sum(refused.values()):
        answer.partial_success.rejected_spans = total
        reasons = [f"{n} spans: {why.message[:SHOWN_LENGTH]}" for why, n in refused.most_common(5)]
        answer.partial_success.error_message = "; ".join(reasons)
    return answer


def _by_namespace(scopes: list[lenient.Scope], own: str) -> dict[str, list[lenient.Scope]] | None:
    """Return scopes by the namespace that their resource names, or else the call's; None if no resource names one."""
    resource, name, is_named = None, own, False
    names = []
    for scope in scopes:
        if scope.resource is not resource:  # mostly the resource of the previous scope
            resource, name = scope.resource, own
            for attribute in resource.attributes if resource is not None else ():
                if attribute.key == NAMESPACE:
                    name, is_named = attribute.value.string_value or own, True
        names.append(name)
    if not is_named:
        return None
    found: dict[str, list[lenient.Scope]] = {}
    for scope, name in zip(scopes, names, strict=True):
        found.setdefault(name, []).append(scope)
    return found


def _check_parsed(scopes: list[lenient.Scope]) -> None:
    """Raise MalformedMessage if any scope is malformed, before the first namespace stores any. Large ones are checked later."""
    for scope in scopes:
        if len(scope.data) <= pieces.PIECE_BYTES:
            _parse(scope.data, Counter())


async def _store_elsewhere(
    elsewhere: Elsewhere,
    name: str,
    scopes: list[lenient.Scope],
    metadata: Metadata,
    refused: Counter[lenient.Refusal],
) -> None:
    """Store the spans of scopes whose resource names another namespace than the call."""
    try:
        elsewhere.check(name, metadata)
        place = await elsewhere.located(name)
        if isinstance(place, Peer):
            refused += await forward(place, name, scopes, metadata)
            return
        async with elsewhere.use(place) as store:
            await _store_scopes(store, scopes, _metadata_owner(dict(metadata)), refused)
    except StoreError as error:
        if error.retry_delay is not None or isinstance(error, MalformedMessage):
            raise
        count = sum(scope.span_count or lenient.count_scope_spans(scope.data) for scope in scopes)
        refused[lenient.Refusal.of(error)] += count


async def forward(
    peer: Peer, name: str, scopes: Iterable[lenient.Scope], metadata: Metadata
) -> Counter[lenient.Refusal]:
    """Have the server that owns a namespace store the spans of scopes; return the spans that it rejects.

    Raises NotOwner, PeerError.
    """
    data = b"".join(_resource_spans(scope) for scope in scopes)
    headers = [(key, value) for key, value in metadata if key != NAMESPACE_KEY]
    answer = await peer.call(EXPORT, data, (*headers, (NAMESPACE_KEY, name)), FORWARD_SECONDS)
    rejected = ExportTraceServiceResponse.FromString(answer).partial_success
    refused: Counter[lenient.Refusal] = Counter()
    if rejected.rejected_spans:
        why = lenient.Refusal(BY_OWNER, rejected.error_message)
        refused[why] = rejected.rejected_spans
    return refused


def _resource_spans(scope: lenient.Scope) -> bytes:
    """Return a scope as the only one of its resource, in an ExportTraceServiceRequest."""
    head = ResourceSpans(schema_url=scope.resource_schema_url)
    if scope.resource is not None:
        head.resource.CopyFrom(scope.resource)
    of_resource = wire.field(ResourceSpans.SCOPE_SPANS_FIELD_NUMBER, scope.data)
    return wire.field(
        ExportTraceServiceRequest.RESOURCE_SPANS_FIELD_NUMBER,
        head.SerializeToString() + of_resource,
    )


async def _store_scopes(
    store: Store,
    scopes: list[lenient.Scope],
    default: Owner,
    refused: Counter[lenient.Refusal],
) -> None:
    """Store the spans of scopes in one namespace; returns when they are durable."""
    failures = store.engine.committer.failures
    size = sum([len(scope.data) for scope in scopes])
    count = sum([scope.span_count for scope in scopes])
    if size <= pieces.PIECE_BYTES and count <= pieces.PIECE_SPANS:
        # Everything is parsed before anything is stored: no half of a malformed request must be stored.
        unread: Counter[lenient.Refusal] = Counter()
        read = [(scope, _parse(scope.data, unread)) for scope in scopes]
        count = sum([len(batch.spans) for _, (batch, _) in read])
        if count <= pieces.PIECE_SPANS:
            refused.update(unread)
            await _store(store, read, default, refused)
        del read
    if size > pieces.PIECE_BYTES or count > pieces.PIECE_SPANS:
        await _store_large(store, scopes, default, refused)
    await store.engine.barrier_since(failures)


async def _store_large(
    store: Store, scopes: list[lenient.Scope], default: Owner, refused: Counter[lenient.Refusal]
) -> None:
    """Store large scopes piece by piece: only one piece at a time is in memory as objects."""
    async with store.ingest.taking_apart:
        turn = Turn()
        cuts = [(scope, store.ingest.cut(scope.data)) for scope in scopes]
        for _, cut in cuts:
            for piece in cut.pieces():
                _parse(cut.head + cut.spans(piece), Counter())
                if turn.over():
                    await turn.next()
        for scope, cut in cuts:
            for piece in cut.pieces():
                part = scope._replace(data=cut.head + cut.spans(piece))
                await _store(store, [(part, _parse(part.data, refused))], default, refused)
                if turn.over():
                    await turn.next()


async def _store(
    store: Store,
    scopes: list[tuple[lenient.Scope, tuple[SpanBatch, bool]]],
    default: Owner,
    refused: Counter[lenient.Refusal],
) -> None:
    """Store the spans of scopes that have been parsed."""
    turn = Turn()
    for scope, parsed in scopes:
        for batch, framed in _batches(scope, parsed, default, refused, store.engine.limits):
            tally = Tally()
            try:
                await store.ingest.add_batch(batch, framed, tally)
            except StoreError as error:
                # Not because of the spans: a retry may store them.
                if store.engine.committer.failure is not None or error.retry_delay is not None:
                    raise
                refused[lenient.Refusal.of(error)] += len(batch.spans)
            for rejection in tally.result.rejections:
                refused[lenient.Refusal(reason_name(rejection.reason), rejection.message)] += (
                    rejection.span_count
                )
            if turn.over():
                await turn.next()


#: Reason of spans that were rejected by the server that owns their namespace, and counted there.
BY_OWNER = "by_owner"
NO_ATTEMPT = lenient.Refusal(
    "no_attempt", f"no {ROLLOUT_ID} and {ATTEMPT_ID} among attributes and metadata"
)
CONFLICT = reason_name(ERROR_REASON_SPAN_EXISTS)


def _metadata_owner(metadata: dict[str, str]) -> Owner:
    def first(keys: tuple[str, ...]) -> str:
        return next((metadata[key] for key in keys if key in metadata), "")

    return first(ROLLOUT_KEYS), first(ATTEMPT_KEYS), _number(first(SEQUENCE_KEYS))


def _number(text: str) -> int:
    """Return the sequence id in a text, 0 for none. Python does not convert 5,000 digits."""
    return int(text) if text.isdecimal() and len(text) < 20 else 0


def _owner(attributes: Iterable[KeyValue], default: Owner) -> Owner:
    """Return rollout id, attempt id and sequence id of the attributes, or else the defaults."""
    rollout_id, attempt_id, sequence_id = default
    for attribute in attributes:
        if attribute.key == ROLLOUT_ID:
            rollout_id = attribute.value.string_value or rollout_id
        elif attribute.key == ATTEMPT_ID:
            attempt_id = attribute.value.string_value or attempt_id
        elif attribute.key == SEQUENCE_ID:
            value = attribute.value
            if value.HasField("int_value"):
                sequence_id = value.int_value
            else:
                sequence_id = _number(value.string_value) or sequence_id
    return rollout_id, attempt_id, sequence_id


def _batches(
    scope: lenient.Scope,
    parsed: tuple[SpanBatch, bool],
    default: Owner,
    refused: Counter[lenient.Refusal],
    limits: Limits,
) -> Iterator[tuple[SpanBatch, bytes | None]]:
    """Yield the valid spans of a scope as one batch an attempt, with its bytes where they exist already."""
    head = SpanBatch(resource=scope.resource, resource_schema_url=scope.resource_schema_url)
    owner = _owner(head.resource.attributes, default)
    whole, is_whole = parsed
    # If the bytes contain no attribute of ours, no span names another attempt.
    if is_whole and _MARK not in scope.data and owner[0] and owner[1] and not owner[2]:
        try:
            check_batch(whole, len(scope.data), limits.span_bytes)
        except StoreError:
            pass  # The valid spans are selected below.
        else:
            head.rollout_id, head.attempt_id = owner[:2]
            added = head.SerializeToString()
            whole.MergeFromString(added)
            yield whole, wire.field(_BATCH, scope.data + added)
            return
    groups: dict[tuple[str, str], tuple[list[Span], list[int]]] = {}
    for span in whole.spans:
        if (error := span_error(span, limits.span_bytes)) is not None:
            refused[lenient.Refusal.of(error)] += 1
            continue
        rollout_id, attempt_id, sequence_id = _owner(span.attributes, owner)
        if not rollout_id or not attempt_id:
            refused[NO_ATTEMPT] += 1
            continue
        spans, numbers = groups.setdefault((rollout_id, attempt_id), ([], []))
        spans.append(span)
        numbers.append(sequence_id if 0 <= sequence_id <= MAX_SEQUENCE_ID else 0)
    # Each group is stored with its own copy of resource and scope.
    largest = limits.message_bytes // max(1, len(groups))
    if len(groups) > 1 and (size := _batch(head, whole, ("", ""), [], []).ByteSize()) > largest:
        error = PayloadTooLarge(f"resource and scope of {len(groups)} attempts", size, largest)
        refused[lenient.Refusal.of(error)] += sum(len(spans) for spans, _ in groups.values())
        return
    for names, (spans, numbers) in groups.items():
        yield _batch(head, whole, names, spans, numbers), None


def _parse(data: bytes, refused: Counter[lenient.Refusal]) -> tuple[SpanBatch, bool]:
    """Return a ScopeSpans as a batch without its unreadable spans, and whether all were readable.

    Raises MalformedMessage.
    """
    try:
        return SpanBatch.FromString(data), True
    except DecodeError:
        part = lenient.readable_part(data, refused)
        if part is None:
            raise MalformedMessage(ExportTraceServiceRequest.DESCRIPTOR.full_name) from None
        return part, False


def _batch(
    head: SpanBatch,
    whole: SpanBatch,
    names: tuple[str, str],
    spans: list[Span],
    numbers: list[int],
) -> SpanBatch:
    batch = SpanBatch(
        rollout_id=names[0],
        attempt_id=names[1],
        resource_schema_url=head.resource_schema_url,
        schema_url=whole.schema_url,
        spans=spans,
        sequence_ids=numbers if any(numbers) else (),
    )
    if head.HasField("resource"):
        batch.resource.CopyFrom(head.resource)
    if whole.HasField("scope"):
        batch.scope.CopyFrom(whole.scope)
    return batch
