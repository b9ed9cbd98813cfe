"""Requests about spans, resources and the server itself, and the conversion of their responses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lightningstore.client._calls.call import Call
from lightningstore.client._calls.control import or_new
from lightningstore.client._values import convert
from lightningstore.client._values.resources import to_resources
from lightningstore.client._values.rollouts import FILTER_LOGIC
from lightningstore.client._values.text import names_fields
from lightningstore.client.values import (
    IngestResult,
    Page,
    Resources,
    SequenceIdRange,
    ServerInfo,
    Statistics,
)
from lightningstore.v1 import resources_pb2, sample_pb2, span_pb2, statistics_pb2, triplet_pb2

#: Maximum rollouts of one ListTriplets or ListSamples: the server's default limit.
DERIVED_ROLLOUTS = 10_000
TRIPLET_SOURCE = triplet_pb2.TripletSource.DESCRIPTOR
REWARD_POLICY = triplet_pb2.RewardPolicy.DESCRIPTOR
SAMPLE_MERGE = sample_pb2.SampleMerge.DESCRIPTOR
#: Requests for what is derived from spans.
DerivedRequest = triplet_pb2.ListTripletsRequest | sample_pb2.ListSamplesRequest


@names_fields
def add_spans(batch: span_pb2.SpanBatch, request_id: str | None) -> Call[IngestResult]:
    """AddSpans. A retry is safe without a request id."""
    request = span_pb2.AddSpansRequest(batch=batch, request_id=request_id or "")
    return Call("AddSpans", request, ingest_result)


def ingest_messages(batch: span_pb2.SpanBatch) -> list[span_pb2.IngestSpansRequest]:
    """Return the message of IngestSpans that carries a batch."""
    return [span_pb2.IngestSpansRequest(batch=batch)]


def ingest_result(answer: Any) -> IngestResult:
    """Convert the response of AddSpans or IngestSpans."""
    return IngestResult.from_message(answer.result)


@names_fields
def allocate_sequence_ids(
    demands: Iterable[tuple[str, str, int]], request_id: str | None
) -> Call[list[SequenceIdRange]]:
    """AllocateSequenceIds."""
    request = span_pb2.AllocateSequenceIdsRequest(request_id=or_new(request_id))
    for rollout_id, attempt_id, count in demands:
        request.demands.add(rollout_id=rollout_id, attempt_id=attempt_id, count=count)
    return Call(
        "AllocateSequenceIds",
        request,
        lambda answer: [SequenceIdRange.from_message(r) for r in answer.ranges],
    )


@names_fields
def query_spans(
    rollout_id: str,
    attempt_id: str,
    *,
    filters: Mapping[str, tuple[str | None, str | None]],
    filter_logic: str | int,
    order_by: str,
    limit: int | None,
    offset: int,
) -> span_pb2.QuerySpansRequest:
    """Return the request of QuerySpans. `filters`: the exact text and the contained text of each field.

    Raises ValueError if a field has both.
    """
    request = span_pb2.QuerySpansRequest(
        rollout_id=rollout_id,
        attempt_id=attempt_id,
        filter_logic=convert.to_number(FILTER_LOGIC, filter_logic),  # type: ignore[arg-type]
        order_by=order_by,
        limit=limit,
        offset=offset,
    )
    for field, (equals, contains) in filters.items():
        if equals is not None and contains is not None:
            raise ValueError(f"only one of {field} and {field}_contains can be given")
        if equals is not None:
            getattr(request, field).equals = equals
        elif contains is not None:
            getattr(request, field).contains = contains
    return request


@names_fields
def list_triplets(
    rollout_ids: Iterable[str], attempt_id: str, **options: Any
) -> triplet_pb2.ListTripletsRequest:
    """Return the request of ListTriplets. Raises ValueError for an unknown word."""
    return triplet_pb2.ListTripletsRequest(**_derived(rollout_ids, attempt_id, **options))


@names_fields
def list_samples(
    rollout_ids: Iterable[str], attempt_id: str, *, merge: str | int, **options: Any
) -> sample_pb2.ListSamplesRequest:
    """Return the request of ListSamples. Raises ValueError for an unknown word."""
    fields = _derived(rollout_ids, attempt_id, **options)
    number: Any = convert.to_number(SAMPLE_MERGE, merge)
    return sample_pb2.ListSamplesRequest(merge=number, **fields)


def _derived(
    rollout_ids: Iterable[str],
    attempt_id: str,
    *,
    source: str | int,
    reward_policy: str | int | None,
    final_rewards: Mapping[str, float] | float | None,
    **options: Any,
) -> dict[str, Any]:
    """Return what the requests of ListTriplets and ListSamples have in common, by field."""
    ids = convert.ids(rollout_ids, "rollout_ids")
    if isinstance(final_rewards, int | float):
        final_rewards = dict.fromkeys(ids, float(final_rewards))
    return {
        "rollout_ids": ids,
        "attempt_id": attempt_id,
        "source": convert.to_number(TRIPLET_SOURCE, source),
        "reward_policy": convert.to_number(REWARD_POLICY, reward_policy),
        "final_rewards": final_rewards or {},
        **options,
    }


def parts_of(request: DerivedRequest) -> list[DerivedRequest]:
    """Split a request into requests with at most as many rollouts as one call takes."""
    ids = list(dict.fromkeys(request.rollout_ids))
    if len(ids) <= DERIVED_ROLLOUTS:
        return [request]
    kind: Any = type(request)
    common, rewards = kind(), dict(request.final_rewards)
    common.CopyFrom(request)
    common.ClearField("rollout_ids")
    common.ClearField("final_rewards")
    parts = []
    for first in range(0, len(ids), DERIVED_ROLLOUTS):
        part = kind()
        part.CopyFrom(common)
        part.rollout_ids.extend(ids[first : first + DERIVED_ROLLOUTS])
        for rollout_id in part.rollout_ids:
            if rollout_id in rewards:
                part.final_rewards[rollout_id] = rewards[rollout_id]
        parts.append(part)
    return parts


def _resources(answer: Any) -> Resources:
    return Resources(answer.resources)


@names_fields
def add_resources(
    resources: Mapping[str, Any], resources_id: str, request_id: str | None
) -> Call[Resources]:
    """AddResources."""
    request = resources_pb2.AddResourcesRequest(
        resources=to_resources(resources),
        names=list(resources),
        resources_id=resources_id,
        request_id=or_new(request_id),
    )
    return Call("AddResources", request, _resources)


@names_fields
def update_resources(
    resources_id: str, resources: Mapping[str, Any], request_id: str | None
) -> Call[Resources]:
    """UpdateResources."""
    request = resources_pb2.UpdateResourcesRequest(
        resources_id=resources_id,
        resources=to_resources(resources),
        names=list(resources),
        request_id=or_new(request_id),
    )
    return Call("UpdateResources", request, _resources)


@names_fields
def get_resources(resources_id: str, version: int, publish_number: int) -> Call[Resources]:
    """GetResources."""
    request = resources_pb2.GetResourcesRequest(
        resources_id=resources_id, version=version, publish_number=publish_number
    )
    return Call("GetResources", request, _resources)


@names_fields
def list_resources(
    resources_id_contains: str, page_size: int, page_token: str
) -> Call[Page[Resources]]:
    """ListResources."""
    request = resources_pb2.ListResourcesRequest(
        resources_id_contains=resources_id_contains, page_size=page_size, page_token=page_token
    )
    return Call(
        "ListResources",
        request,
        lambda answer: Page([Resources(r) for r in answer.resources], answer.next_page_token),
    )


def get_statistics(labels: Mapping[str, str] | None = None) -> Call[Statistics]:
    """GetStatistics."""
    request = statistics_pb2.GetStatisticsRequest(labels=convert.labels(labels))
    return Call("GetStatistics", request, Statistics)


def get_server_info() -> Call[ServerInfo]:
    """GetServerInfo."""
    return Call("GetServerInfo", statistics_pb2.GetServerInfoRequest(), ServerInfo)
