"""Maps each method of the contract to its operation and kind (unary, long poll, stream)."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from lightningstore.service.operations.store import Store


class Kind(Enum):
    """How a method is called."""

    #: One message in, one out.
    UNARY = 1
    #: The same; the operation also takes the seconds until the call's deadline, None without one.
    LONG_POLL = 2
    #: One message in; yields None once the stream is established, then serialised messages.
    SERVER_STREAM = 3
    #: An async iterator of messages in, one message out.
    CLIENT_STREAM = 4
    #: Like UNARY and CLIENT_STREAM, with batches of spans whose bytes are stored unchanged.
    SPAN_BATCH = 5
    SPAN_STREAM = 6


class Operation(NamedTuple):
    """An operation bound to its store."""

    call: Callable[..., Any]
    kind: Kind = Kind.UNARY

    @property
    def takes_time_remaining(self) -> bool:
        """Whether the second argument is the time in seconds until the call's deadline."""
        return self.kind is Kind.LONG_POLL


def table(store: Store) -> dict[str, Operation]:
    """Return the operation of each method of LightningStoreService, by its name in the contract."""
    return _of_rollouts(store) | _of_consumers(store) | _of_data(store)


def _of_rollouts(store: Store) -> dict[str, Operation]:
    """Return the operations on rollouts and attempts."""
    return {
        "EnqueueRollouts": Operation(store.enqueue.enqueue_rollouts),
        "GetRollout": Operation(store.rollouts.get_rollout),
        "ListRollouts": Operation(store.rollouts.list_rollouts),
        "UpdateRollout": Operation(store.rollouts.update_rollout),
        "CancelRollouts": Operation(store.rollouts.cancel_rollouts),
        "DeleteRollouts": Operation(store.deletions.delete_rollouts),
        "DequeueRollouts": Operation(store.claims.dequeue_rollouts, Kind.LONG_POLL),
        "StartRollout": Operation(store.claims.start_rollout),
        "StartAttempt": Operation(store.claims.start_attempt),
        "PauseClaims": Operation(store.pauses.pause_claims),
        "ResumeClaims": Operation(store.pauses.resume_claims),
        "UpdateAttempt": Operation(store.attempts.update_attempt),
        "GetAttempt": Operation(store.attempts.get_attempt),
        "ListAttempts": Operation(store.attempts.list_attempts),
    }


def _of_consumers(store: Store) -> dict[str, Operation]:
    """Return the operations on consumers."""
    return {
        "CreateConsumer": Operation(store.consumers.create_consumer),
        "GetConsumer": Operation(store.consumers.get_consumer),
        "ListConsumers": Operation(store.consumers.list_consumers),
        "UpdateConsumer": Operation(store.consumers.update_consumer),
        "DeleteConsumer": Operation(store.consumers.delete_consumer),
        "PullFinished": Operation(store.pulls.pull_finished, Kind.LONG_POLL),
        "Acknowledge": Operation(store.consumers.acknowledge),
        "ModifyAckDeadline": Operation(store.consumers.modify_ack_deadline),
        "ListDeliveries": Operation(store.consumers.list_deliveries),
    }


def _of_data(store: Store) -> dict[str, Operation]:
    """Return the operations on streams, spans, resources, workers and the store itself."""
    ingest = store.ingest
    return {
        "WaitForRollouts": Operation(store.completions.wait_for_rollouts, Kind.SERVER_STREAM),
        "WatchRollouts": Operation(store.completions.watch_rollouts, Kind.SERVER_STREAM),
        "GetGroup": Operation(store.groups.get_group),
        "ListGroups": Operation(store.groups.list_groups),
        "WatchGroups": Operation(store.groups.watch_groups, Kind.SERVER_STREAM),
        "IngestSpans": Operation(ingest.ingest_spans, Kind.SPAN_STREAM),
        "AddSpans": Operation(ingest.add_spans, Kind.SPAN_BATCH),
        "AllocateSequenceIds": Operation(store.sequence_ids.allocate_sequence_ids),
        "QuerySpans": Operation(store.spans.query_spans, Kind.SERVER_STREAM),
        "ListTriplets": Operation(store.triplets.list_triplets, Kind.SERVER_STREAM),
        "ListSamples": Operation(store.samples.list_samples, Kind.SERVER_STREAM),
        "ImportRollouts": Operation(store.imports.import_rollouts, Kind.CLIENT_STREAM),
        "GetSeries": Operation(store.series.get_series),
        "AddResources": Operation(store.resources.add_resources),
        "UpdateResources": Operation(store.resources.update_resources),
        "GetResources": Operation(store.resources.get_resources),
        "ListResources": Operation(store.resources.list_resources),
        "WatchResources": Operation(store.resources.watch_resources, Kind.SERVER_STREAM),
        "Heartbeat": Operation(store.workers.heartbeat),
        "GetWorker": Operation(store.workers.get_worker),
        "ListWorkers": Operation(store.workers.list_workers),
        "GetStatistics": Operation(store.info.get_statistics),
        "GetServerInfo": Operation(store.info.get_server_info),
    }
