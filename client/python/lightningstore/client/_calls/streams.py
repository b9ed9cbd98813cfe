"""The state of waits, watches and queries, without I/O: what to ask for, again after a break too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

from google.protobuf.message import Message
from lightningstore.client._values import convert
from lightningstore.client._values.spans import Span, spans_of
from lightningstore.client._values.text import check
from lightningstore.client._values.triplets import AttemptTriplets
from lightningstore.client.values import Rollout
from lightningstore.v1 import completion_pb2, span_pb2, triplet_pb2

T_co = TypeVar("T_co", covariant=True)


class ReadState(Protocol[T_co]):
    """Where a query stands: what to ask for, and what of an answer is new."""

    method: str

    def request(self) -> Message:
        """Return what to ask the server for, after a break too."""

    def take(self, answer: Any) -> Sequence[T_co]:
        """Return what is new in an answer."""


class WaitState:
    """Where a wait stands."""

    def __init__(
        self,
        rollout_ids: Iterable[str],
        group_ids: Iterable[str],
        min_count: int | None,
        timeout: float | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take what is waited for; the timeout, in seconds, runs from the first request on."""
        self._ids = dict.fromkeys(convert.ids(rollout_ids, "rollout_ids"))
        self._groups = convert.ids(group_ids, "group_ids")
        self._min_count = min_count
        self._timeout = timeout
        self._now = now
        self._until: float | None = None
        self._seen: set[str] = set()
        self._begun = False
        #: Set when the server said how it ended.
        self.open_rollout_ids: list[str] = []
        self.finished_count = 0
        self.ended = False

    def request(self) -> completion_pb2.WaitForRolloutsRequest | None:
        """Return what to ask the server for; None if the end was lost, but can be told without it.

        After a break only what is still open is asked for. Members of groups are known to the server
        alone: there all are asked for again.
        """
        left = self._timeout
        if left is not None:
            self._until = self._now() + left if self._until is None else self._until
            if self._begun:
                left = max(self._until - self._now(), 0.0)
        ids, min_count = list(self._ids), self._min_count
        if self._begun and not self._groups:
            ids = [i for i in ids if i not in self._seen]
            wanted = len(self._ids) if min_count is None else min_count
            if not ids or len(self._seen) >= wanted:
                self._end(ids)
                return None
            min_count = None if min_count is None else min_count - len(self._seen)
        request = completion_pb2.WaitForRolloutsRequest(
            rollout_ids=ids, group_ids=self._groups, min_count=min_count
        )
        if left is not None:
            request.timeout.CopyFrom(convert.to_duration(left))
        return request

    def take(self, answer: completion_pb2.WaitForRolloutsResponse) -> list[Rollout]:
        """Return the rollouts of an answer that are new."""
        self._begun = True
        new = [Rollout(r) for r in answer.rollouts if r.rollout_id not in self._seen]
        self._seen.update(rollout.rollout_id for rollout in new)
        self.finished_count = len(self._seen)
        if answer.HasField("summary"):
            self._end(answer.summary.open_rollout_ids)
        return new

    def _end(self, open_ids: Iterable[str]) -> None:
        self.open_rollout_ids = list(open_ids)
        self.ended = True


class WatchState:
    """Where a watch stands."""

    def __init__(self, after_completion_number: int | None, store_id: str) -> None:
        """Take where to begin; None: from now on."""
        check("store_id", store_id)
        #: All finishes up to this number have been passed on. None: the server has not said yet.
        self.through_completion_number = after_completion_number
        self.store_id = store_id

    def request(self) -> completion_pb2.WatchRolloutsRequest:
        """Return what to ask the server for."""
        return completion_pb2.WatchRolloutsRequest(
            after_completion_number=self.through_completion_number, store_id=self.store_id
        )

    def passed_on(self, rollout: Rollout) -> None:
        """Note that the user has got a rollout."""
        self.through_completion_number = rollout.completion_number

    def passed_on_all(self, answer: completion_pb2.WatchRolloutsResponse) -> None:
        """Note that the user has got all of an answer."""
        self.through_completion_number = answer.through_completion_number


class TripletState:
    """Where a list of triplets stands. Attempts are passed on whole, in the order of the rollouts."""

    method = "ListTriplets"

    def __init__(self, request: triplet_pb2.ListTripletsRequest) -> None:
        self._asked = request
        self._ids = list(dict.fromkeys(request.rollout_ids))
        self._place = 0
        self._done: set[tuple[str, str]] = set()
        self._partial: AttemptTriplets | None = None

    def request(self) -> triplet_pb2.ListTripletsRequest:
        """Return what to ask the server for; after a break without the rollouts that are through."""
        self._partial = None
        if not self._place:
            return self._asked
        left = triplet_pb2.ListTripletsRequest()
        left.CopyFrom(self._asked)
        del left.rollout_ids[:]
        left.rollout_ids.extend(self._ids[self._place :])
        for rollout_id in set(left.final_rewards) - set(left.rollout_ids):
            del left.final_rewards[rollout_id]
        return left

    def take(self, answer: triplet_pb2.ListTripletsResponse) -> list[AttemptTriplets]:
        """Return the attempts that an answer completes, but those that came before a break."""
        complete = []
        for part in answer.attempts:
            ids = part.attempt.rollout_id, part.attempt.attempt_id
            while self._place + 1 < len(self._ids) and self._ids[self._place] != ids[0]:
                self._place += 1
            if self._partial is None:
                self._partial = AttemptTriplets(*ids)
            self._partial.add(part)
            if part.complete:
                if ids not in self._done:
                    self._done.add(ids)
                    complete.append(self._partial)
                self._partial = None
        return complete


class QueryState:
    """Where a query of spans stands."""

    method = "QuerySpans"

    def __init__(self, request: span_pb2.QuerySpansRequest) -> None:
        self._request = request
        self._seen: set[tuple[str, bytes]] = set()

    def request(self) -> span_pb2.QuerySpansRequest:
        """Return what to ask the server for, the same after a break."""
        return self._request

    def take(self, answer: span_pb2.QuerySpansResponse) -> list[Span]:
        """Return the spans of an answer that are new: a query that broke is asked from its beginning."""
        new = []
        for span in spans_of(answer):
            key = (span.attempt_id, span.otlp.span_id)
            if key not in self._seen:
                self._seen.add(key)
                new.append(span)
        return new
