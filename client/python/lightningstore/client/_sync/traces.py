# Generated from _async/traces.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Spans, resources and the server itself, of the blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from lightningstore.client._calls import traces as calls
from lightningstore.client._calls.call import Call
from lightningstore.client.values import (
    AttemptTriplets,
    IngestResult,
    Page,
    Resources,
    SequenceIdRange,
    ServerInfo,
    Span,
    Statistics,
)
from lightningstore.v1.span_pb2 import QuerySpansRequest, SpanBatch
from lightningstore.v1.triplet_pb2 import ListTripletsRequest

T = TypeVar("T")


class TraceCalls:
    """The calls of the trace store."""

    def _send(self, call: Call[T]) -> T:
        raise NotImplementedError

    def _ingest(self, batches: Iterable[SpanBatch]) -> IngestResult:
        raise NotImplementedError

    def _query(self, request: QuerySpansRequest) -> Iterator[Span]:
        raise NotImplementedError

    def _triplets(self, request: ListTripletsRequest) -> Iterator[AttemptTriplets]:
        raise NotImplementedError

    def ingest_spans(self, batches: Iterable[SpanBatch]) -> IngestResult:
        """Store batches of spans over one stream. What the result counts is durable.

        Each batch belongs to one attempt. A bad one (unknown attempt, bad span) is rejected as a whole and
        counted; the rest goes on. A list, or what can be iterated again, is sent again when the connection
        breaks: what had been stored then counts as duplicates. An iterator is not: UnavailableError.

        There is no deadline while batches flow; tries are given up when nothing has worked for the
        client's timeout.
        """
        return self._ingest(batches)

    def add_spans(self, batch: SpanBatch, *, request_id: str | None = None) -> IngestResult:
        """Store one batch of spans, all of it or nothing.

        Safe to repeat: spans already stored are counted as duplicates, or with a request id as they were
        at first. Raises NotFoundError for an unknown attempt and InvalidArgumentError for a bad span.
        """
        return self._send(calls.add_spans(batch, request_id))

    def allocate_sequence_ids(
        self, demands: Iterable[tuple[str, str, int]], *, request_id: str | None = None
    ) -> list[SequenceIdRange]:
        """Reserve sequence ids, to number spans before they are sent.

        `demands`: (rollout id, attempt id, how many) each. The ranges come in the same order; no number is
        handed out twice. Raises NotFoundError and InvalidArgumentError.
        """
        return self._send(calls.allocate_sequence_ids(demands, request_id))

    def query_spans(
        self,
        rollout_id: str,
        attempt_id: str = "",
        *,
        trace_id: str | None = None,
        trace_id_contains: str | None = None,
        span_id: str | None = None,
        span_id_contains: str | None = None,
        parent_span_id: str | None = None,
        parent_span_id_contains: str | None = None,
        name: str | None = None,
        name_contains: str | None = None,
        filter_logic: str | int = "and",
        order_by: str = "",
        limit: int | None = -1,
        offset: int = 0,
    ) -> Iterator[Span]:
        """Iterate over spans of a rollout, streamed: `list(store.query_spans(id))`.

        `attempt_id`: an id, "latest", or empty for all attempts. Ids of traces and spans are lower-case
        hex digits; `parent_span_id=""` finds roots. Filters are joined by `filter_logic`, "and" or "or";
        None takes part in nothing. `order_by`: "sequence_id" unless said otherwise, "start_time desc" for
        instance. `limit`: most spans, -1 or None for all. `offset`: spans to pass over first.

        While iterating raises NotFoundError, InvalidArgumentError, and FailedPreconditionError if the
        spans were evicted. A connection that breaks is taken up again; no span comes twice.
        """
        return self._query(
            calls.query_spans(
                rollout_id,
                attempt_id,
                filters={
                    "trace_id": (trace_id, trace_id_contains),
                    "span_id": (span_id, span_id_contains),
                    "parent_span_id": (parent_span_id, parent_span_id_contains),
                    "name": (name, name_contains),
                },
                filter_logic=filter_logic,
                order_by=order_by,
                limit=limit,
                offset=offset,
            )
        )

    def list_triplets(
        self,
        rollout_ids: Iterable[str],
        attempt_id: str = "latest",
        *,
        source: str | int = "tracer",
        llm_call_match: str = "",
        agent_match: str = "",
        exclude_calls_under_rewards: bool = True,
        deduplicate: bool = True,
        repair_hierarchy: bool = True,
        skip_without_tokens: bool = False,
        reward_policy: str | int | None = None,
        final_rewards: Mapping[str, float] | float | None = None,
    ) -> Iterator[AttemptTriplets]:
        """Iterate over rollouts as training data: for each attempt the list of its calls with their rewards.

        `attempt_id`: "latest", with one rollout an attempt's id, or empty for all attempts, each on its own.
        `source`: "tracer" reads the agent's tree of spans, "proxy" the spans of a LiteLLM proxy before
        vLLM. `llm_call_match` and `agent_match` are regular expressions (RE2) for the names of calls
        (unset: those of OpenAI's chat completions) and of the agents that they are under (unset: any).

        `exclude_calls_under_rewards` leaves out a judge's own calls, `deduplicate` takes one call a response
        id, `repair_hierarchy` puts loose spans under what encloses them in time, `skip_without_tokens`
        leaves out calls without token ids. `reward_policy`: "first_occurrence", "first_sibling" or
        "by_sequence". `final_rewards`: the reward of each rollout's last call, by rollout id, or one for
        all.

        Comes in the order of `rollout_ids`; a rollout without attempts gives one empty list. While iterating
        raises NotFoundError, InvalidArgumentError, and FailedPreconditionError if spans were evicted. A
        connection that breaks is taken up again; no attempt comes twice.
        """
        return self._triplets(
            calls.list_triplets(
                rollout_ids,
                attempt_id,
                source=source,
                llm_call_match=llm_call_match,
                agent_match=agent_match,
                exclude_calls_under_rewards=exclude_calls_under_rewards,
                deduplicate=deduplicate,
                repair_hierarchy=repair_hierarchy,
                skip_without_tokens=skip_without_tokens,
                reward_policy=reward_policy,
                final_rewards=final_rewards,
            )
        )

    def add_resources(
        self,
        resources: Mapping[str, Any],
        *,
        resources_id: str = "",
        request_id: str | None = None,
    ) -> Resources:
        """Store new resources by name, and make them the latest.

        Values are LLM, ProxyLLM, PromptTemplate or CustomResource; any other JSON value becomes a
        CustomResource without type. Without an id the server makes one. Raises AlreadyExistsError if the
        id is taken, InvalidArgumentError, and TypeError or ValueError for a value that is no JSON.
        """
        return self._send(calls.add_resources(resources, resources_id, request_id))

    def update_resources(
        self, resources_id: str, resources: Mapping[str, Any], *, request_id: str | None = None
    ) -> Resources:
        """Replace resources, count their version up and make them the latest.

        An id that is not there yet is created. Raises InvalidArgumentError, and TypeError or ValueError
        for a value that is no JSON.
        """
        return self._send(calls.update_resources(resources_id, resources, request_id))

    def get_resources(self, resources_id: str = "") -> Resources:
        """Get resources in their current version; without an id the latest. Raises NotFoundError."""
        return self._send(calls.get_resources(resources_id))

    def list_resources(
        self, *, resources_id_contains: str = "", page_size: int = 0, page_token: str = ""
    ) -> Page[Resources]:
        """List resources in the order in which they were first added, one page of them.

        Raises InvalidArgumentError.
        """
        return self._send(calls.list_resources(resources_id_contains, page_size, page_token))

    def get_statistics(self) -> Statistics:
        """Count what there is."""
        return self._send(calls.get_statistics())

    def get_server_info(self) -> ServerInfo:
        """Tell what the server is: version, store id, back end, durability, limits."""
        return self._send(calls.get_server_info())
