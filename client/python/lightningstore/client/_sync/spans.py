# Generated from _async/spans.py by make_blocking.py. Edit that file, then run `make blocking`.
"""Spans, and the triplets and samples in them, in the blocking client."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing

from lightningstore.client._calls import traces as calls
from lightningstore.client._calls.streams import A, AttemptListState, QueryState
from lightningstore.client._sync import streams
from lightningstore.client._sync.caller import Caller
from lightningstore.client.values import (
    AttemptSamples,
    AttemptTriplets,
    IngestResult,
    SequenceIdRange,
    Span,
)
from lightningstore.v1.span_pb2 import SpanBatch


class SpanCalls(Caller):
    """The calls on spans, and on triplets and samples, which are derived from spans."""

    def ingest_spans(self, batches: Iterable[SpanBatch]) -> IngestResult:
        """Store batches of spans over one stream.

        An invalid batch (unknown attempt, invalid span) is rejected as a whole and counted; the others are stored.
        The call has no deadline while the server accepts batches. It fails if the server accepts none for as long as
        the client's timeout. After a broken connection a list, or another iterable that can be iterated again, is sent again; spans
        stored before then count as duplicates.

        Args:
            batches: The batches, each for one attempt.

        Returns:
            The numbers of stored, duplicate and rejected spans, and the attempts to stop. Everything that is counted
            is durable.

        Raises:
            UnavailableError: The connection broke, and `batches` is an iterator or the client's timeout has passed.
            DeadlineExceededError: The server accepted nothing for the client's timeout.

        Example:
            rollout = store.start_rollout({"question": 1})
            batch = SpanBatch(rollout_id=rollout.rollout_id, attempt_id="latest")
            batch.spans.add(name="step", trace_id=bytes(15) + b"1", span_id=bytes(7) + b"1")
            result = store.ingest_spans([batch])
            assert result.accepted_count == 1
        """
        return self._upload("IngestSpans", batches, calls.ingest_messages, calls.ingest_result)

    def add_spans(self, batch: SpanBatch, *, request_id: str | None = None) -> IngestResult:
        """Store one batch of spans: all of it or nothing.

        Retries are safe: spans stored before are counted as duplicates.

        Args:
            batch: The spans of one attempt.
            request_id: Id of the call for retries of your own. With one, a retry gets the same counts.

        Returns:
            The numbers of stored and duplicate spans, and the attempts to stop.

        Raises:
            NotFoundError: The rollout or the attempt does not exist.
            InvalidArgumentError: A span is invalid.
            ResourceExhaustedError: A span or the batch exceeds a limit.
        """
        return self._send(calls.add_spans(batch, request_id))

    def allocate_sequence_ids(
        self, demands: Iterable[tuple[str, str, int]], *, request_id: str | None = None
    ) -> list[SequenceIdRange]:
        """Reserve sequence ids, to number spans before they are sent.

        Args:
            demands: Rollout id, attempt id and number of sequence ids, for each range. At most 10,000 by default.
            request_id: Id of the call for retries of your own. None: the client creates one.

        Returns:
            The ranges, in the order of `demands`. No sequence id is ever allocated twice.

        Raises:
            NotFoundError: A rollout or an attempt does not exist.
            InvalidArgumentError: A count is not positive.
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
        """Iterate over spans of a rollout, over a stream.

        After a broken connection the query resumes; no span occurs twice. Ids of traces and spans are lower-case hex
        digits. A filter that is None is ignored.

        Args:
            rollout_id: Id of the rollout.
            attempt_id: Id of an attempt, or "latest". Empty: all attempts.
            trace_id: Only spans with this trace id.
            trace_id_contains: Only spans whose trace id contains this text.
            span_id: Only the span with this id.
            span_id_contains: Only spans whose id contains this text.
            parent_span_id: Only children of this span; "" finds root spans.
            parent_span_id_contains: Only spans whose parent's id contains this text.
            name: Only spans with this name.
            name_contains: Only spans whose name contains this text.
            filter_logic: How the filters are combined: "and" or "or".
            order_by: A field and a direction, such as "start_time desc". Empty: "sequence_id".
            limit: Maximum spans. -1 or None: all.
            offset: Number of spans to leave out first.

        Returns:
            An iterator over the spans, to be iterated once.

        Raises:
            NotFoundError: While iterating: the rollout or the attempt does not exist.
            InvalidArgumentError: While iterating: a filter or the order is invalid.
            FailedPreconditionError: While iterating: the spans were evicted from memory.
            ValueError: A field has both an exact filter and a `_contains` filter.

        Example:
            rollout = store.start_rollout({"question": 1})
            spans = [span for span in store.query_spans(rollout.rollout_id, "latest")]
            print([span.name for span in spans], spans[-1].attributes if spans else {})
        """
        request = calls.query_spans(
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
        return streams.query(self._transport, QueryState(request), self._timeout)

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
        as_messages: bool = False,
    ) -> Iterator[AttemptTriplets]:
        """Iterate over rollouts as training data: the model calls of each attempt, with their rewards.

        After a broken connection the list resumes; no attempt occurs twice.

        Args:
            rollout_ids: Ids of the rollouts, any number: the client splits the list into calls.
            attempt_id: "latest", or empty for all attempts. With one rollout: the id of an attempt.
            source: "tracer" reads the agent's tree of spans, "proxy" the spans of a LiteLLM proxy before vLLM.
            llm_call_match: Regular expression (RE2) for the names of model calls. Empty: the default rules.
            agent_match: Regular expression (RE2) for the names of agents; only calls under these. Empty: any.
            exclude_calls_under_rewards: Whether to leave out model calls under a reward span, such as a judge's.
            deduplicate: Whether calls with the same response id count once.
            repair_hierarchy: Whether to attach root model calls to the span that encloses them in time.
            skip_without_tokens: Whether to leave out calls without token ids.
            reward_policy: How rewards are matched with calls: "first_occurrence", "first_sibling" or "by_sequence".
                None: "first_occurrence" for the tracer, "by_sequence" for the proxy.
            final_rewards: Final rewards by rollout id, or one number for all rollouts. Each replaces the traced reward
                of the rollout's last triplet.
            as_messages: Whether to return prompts and responses as messages of one form, in `prompt_messages` and
                `response_messages`, instead of as traced, in `prompt`, `response` and `image_urls`.

        Returns:
            An iterator over the attempts in the order of `rollout_ids`, to be iterated once. A rollout without
            attempts gives one empty list.

        Raises:
            NotFoundError: While iterating: a rollout or the attempt does not exist.
            InvalidArgumentError: While iterating: an option is invalid, such as a regular expression.
            FailedPreconditionError: While iterating: spans were evicted from memory.
            ValueError: `source` or `reward_policy` is unknown.

        Example:
            rollout = store.start_rollout({"question": 1})
            for attempt in store.list_triplets([rollout.rollout_id], final_rewards=1.0):
                for triplet in attempt:
                    print(triplet.prompt, triplet.response, triplet.reward)
        """
        request = calls.list_triplets(
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
            as_messages=as_messages,
        )
        return self._derived(request, AttemptTriplets)

    def list_samples(
        self,
        rollout_ids: Iterable[str],
        attempt_id: str = "latest",
        *,
        merge: str | int = "prefix",
        source: str | int = "tracer",
        llm_call_match: str = "",
        agent_match: str = "",
        exclude_calls_under_rewards: bool = True,
        deduplicate: bool = True,
        repair_hierarchy: bool = True,
        reward_policy: str | int | None = None,
        final_rewards: Mapping[str, float] | float | None = None,
    ) -> Iterator[AttemptSamples]:
        """Iterate over rollouts as rows of tokens to train on: each row has all turns of a conversation.

        The calls of a model need token ids of prompt and response. After a broken connection the list resumes; no
        attempt occurs twice.

        Args:
            rollout_ids: Ids of the rollouts, any number: the client splits the list into calls.
            attempt_id: "latest", or empty for all attempts. With one rollout: the id of an attempt.
            merge: How calls become rows: "prefix" continues the row whose tokens a prompt begins with, "none" makes a
                row of each call.
            source: "tracer" reads the agent's tree of spans, "proxy" the spans of a LiteLLM proxy before vLLM.
            llm_call_match: Regular expression (RE2) for the names of model calls. Empty: the default rules.
            agent_match: Regular expression (RE2) for the names of agents; only calls under these. Empty: any.
            exclude_calls_under_rewards: Whether to leave out model calls under a reward span, such as a judge's.
            deduplicate: Whether calls with the same response id count once.
            repair_hierarchy: Whether to attach root model calls to the span that encloses them in time.
            reward_policy: How the rewards of segments are matched with calls: "first_occurrence", "first_sibling" or
                "by_sequence". None: "first_occurrence" for the tracer, "by_sequence" for the proxy.
            final_rewards: Rewards of samples by rollout id, or one number for all rollouts, instead of the rewards of
                the attempts.

        Returns:
            An iterator over the attempts in the order of `rollout_ids`, to be iterated once. A rollout without
            attempts gives one empty list.

        Raises:
            NotFoundError: While iterating: a rollout or the attempt does not exist.
            InvalidArgumentError: While iterating: an option is invalid, such as a regular expression.
            FailedPreconditionError: While iterating: spans were evicted from memory.
            ValueError: `merge`, `source` or `reward_policy` is unknown.

        Example:
            rollout = store.start_rollout({"question": 1})
            for attempt in store.list_samples([rollout.rollout_id]):
                for sample in attempt:
                    print(len(sample.token_ids), sum(sample.mask), sample.reward)
        """
        return self._derived(
            calls.list_samples(
                rollout_ids,
                attempt_id,
                merge=merge,
                source=source,
                llm_call_match=llm_call_match,
                agent_match=agent_match,
                exclude_calls_under_rewards=exclude_calls_under_rewards,
                deduplicate=deduplicate,
                repair_hierarchy=repair_hierarchy,
                reward_policy=reward_policy,
                final_rewards=final_rewards,
            ),
            AttemptSamples,
        )

    def _derived(
        self, request: calls.DerivedRequest, empty: Callable[[str, str], A]
    ) -> Iterator[A]:
        for part in calls.parts_of(request):
            state = AttemptListState(part, empty)
            with closing(streams.query(self._transport, state, self._timeout)) as attempts:
                yield from attempts
