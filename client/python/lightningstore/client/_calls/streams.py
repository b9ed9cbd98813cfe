"""The state of waits, watches and queries, without I/O: what to request, also after a broken connection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message
from lightningstore.client._calls.traces import DerivedRequest
from lightningstore.client._values import convert
from lightningstore.client._values.samples import AttemptSamples
from lightningstore.client._values.spans import Span, spans_of
from lightningstore.client._values.text import check
from lightningstore.client._values.triplets import AttemptTriplets
from lightningstore.client.values import Resources, Rollout
from lightningstore.v1 import completion_pb2, resources_pb2, span_pb2

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A", AttemptTriplets, AttemptSamples)


class ReadState(Protocol[T_co]):
    """Where a query stands: what to request, and which results of a response are new."""

    method: str

    def request(self) -> Message:
        """Return what to request from the server, also after a broken connection."""

    def take(self, answer: Any) -> Sequence[T_co]:
        """Return the results of a response that are new."""


class StreamState(Protocol[T]):
    """Where a wait or a watch stands."""

    method: str
    ended: bool

    def request(self) -> Message | None:
        """Return what to request from the server; None if nothing is left to request."""

    def take(self, answer: Any) -> list[T]:
        """Return the items of a response that are new."""

    def passed_on(self, item: T, /) -> None:
        """Note that the caller has an item."""

    def passed_on_all(self) -> None:
        """Note that the caller has all items that were taken."""


class WaitState:
    """Where a wait stands."""

    method = "WaitForRollouts"

    def __init__(
        self,
        rollout_ids: Iterable[str],
        group_ids: Iterable[str],
        min_count: int | None,
        timeout: float | None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wait for rollouts and groups. The timeout, in seconds, starts with the first request."""
        self._ids = dict.fromkeys(convert.ids(rollout_ids, "rollout_ids"))
        self._groups = convert.ids(group_ids, "group_ids")
        self._min_count = min_count
        self._timeout = timeout
        self._now = now
        self._until: float | None = None
        self._seen: set[str] = set()
        self._begun = False
        #: Set at the end.
        self.open_rollout_ids: list[str] = []
        self.finished_count = 0
        self.ended = False

    def request(self) -> completion_pb2.WaitForRolloutsRequest | None:
        """Return what to request from the server; None if only the end was lost, which is known.

        After a broken connection only rollouts that are open are requested. The members of groups are known to the
        server only: with groups, everything is requested again.
        """
        remaining = self._timeout
        if remaining is not None:
            self._until = self._now() + remaining if self._until is None else self._until
            if self._begun:
                remaining = max(self._until - self._now(), 0.0)
        ids, min_count = list(self._ids), self._min_count
        if self._begun and not self._groups:
            ids = [i for i in ids if i not in self._seen]
            required = len(self._ids) if min_count is None else min_count
            if not ids or len(self._seen) >= required:
                self._end(ids)
                return None
            min_count = None if min_count is None else min_count - len(self._seen)
        request = completion_pb2.WaitForRolloutsRequest(
            rollout_ids=ids, group_ids=self._groups, min_count=min_count
        )
        if remaining is not None:
            request.timeout.CopyFrom(convert.to_duration(remaining))
        return request

    def take(self, answer: completion_pb2.WaitForRolloutsResponse) -> list[Rollout]:
        """Return the rollouts of a response that are new."""
        self._begun = True
        new = [Rollout(r) for r in answer.rollouts if r.rollout_id not in self._seen]
        self._seen.update(rollout.rollout_id for rollout in new)
        self.finished_count = len(self._seen)
        if answer.HasField("summary"):
            self._end(answer.summary.open_rollout_ids)
        return new

    def passed_on(self, rollout: Rollout) -> None:
        """Note that the caller has a rollout. A wait knows what it has taken, which is enough."""

    def passed_on_all(self) -> None:
        """Note that the caller has all rollouts that were taken."""

    def _end(self, open_ids: Iterable[str]) -> None:
        self.open_rollout_ids = list(open_ids)
        self.ended = True


class WatchState:
    """Where a watch stands. It never ends by itself."""

    method = "WatchRollouts"
    ended = False

    def __init__(self, after_completion_number: int | None, store_id: str) -> None:
        """Start after a completion number. None: from now on."""
        check("store_id", store_id)
        #: The caller has all finishes up to this number. None: the server has not said yet.
        self.through_completion_number = after_completion_number
        self.store_id = store_id
        self._last: completion_pb2.WatchRolloutsResponse | None = None

    def request(self) -> completion_pb2.WatchRolloutsRequest:
        """Return what to request from the server."""
        return completion_pb2.WatchRolloutsRequest(
            after_completion_number=self.through_completion_number, store_id=self.store_id
        )

    def take(self, answer: completion_pb2.WatchRolloutsResponse) -> list[Rollout]:
        """Return the rollouts of a response."""
        self.store_id = answer.store_id
        self._last = answer
        if not answer.rollouts:
            self.passed_on_all()
        return [Rollout(rollout) for rollout in answer.rollouts]

    def passed_on(self, rollout: Rollout) -> None:
        """Note that the caller has a rollout."""
        self.through_completion_number = rollout.completion_number

    def passed_on_all(self) -> None:
        """Note that the caller has all rollouts of the last response, and so all finishes up to its number."""
        if self._last is not None:
            self.through_completion_number = self._last.through_completion_number
            self._last = None


class ResourceWatchState:
    """Where a watch of resources stands. It never ends by itself."""

    method = "WatchResources"
    ended = False

    def __init__(self, after_publish_number: int | None, store_id: str) -> None:
        """Start after a publish number. None: from now on."""
        check("store_id", store_id)
        #: The caller has all publications up to this number. None: the server has not said yet.
        self.through_publish_number = after_publish_number
        self.store_id = store_id
        self._last: resources_pb2.WatchResourcesResponse | None = None

    def request(self) -> resources_pb2.WatchResourcesRequest:
        """Return what to request from the server."""
        return resources_pb2.WatchResourcesRequest(
            after_publish_number=self.through_publish_number, store_id=self.store_id
        )

    def take(self, answer: resources_pb2.WatchResourcesResponse) -> list[Resources]:
        """Return the versions of a response."""
        self.store_id = answer.store_id
        self._last = answer
        if not answer.resources:
            self.passed_on_all()
        return [Resources(version) for version in answer.resources]

    def passed_on(self, version: Resources) -> None:
        """Note that the caller has a version."""
        self.through_publish_number = version.publish_number

    def passed_on_all(self) -> None:
        """Note that the caller has all versions of the last response, and so all up to its number."""
        if self._last is not None:
            self.through_publish_number = self._last.through_publish_number
            self._last = None


class AttemptListState(Generic[A]):
    """Where a list of triplets or of samples stands. Attempts are complete, in the order of the rollouts."""

    def __init__(self, request: DerivedRequest, empty: Callable[[str, str], A]) -> None:
        """Take the request, and what makes an empty list of an attempt out of its ids."""
        self.method = request.DESCRIPTOR.name.removesuffix("Request")
        self._request = request
        self._empty: Callable[[str, str], A] = empty
        self._ids = list(dict.fromkeys(request.rollout_ids))
        self._index = 0
        self._done: set[tuple[str, str]] = set()
        self._partial: A | None = None

    def request(self) -> DerivedRequest:
        """Return what to request from the server; after a broken connection without complete rollouts."""
        self._partial = None
        if not self._index:
            return self._request
        rest = type(self._request)()
        rest.MergeFrom(self._request)  # type: ignore[arg-type]
        del rest.rollout_ids[:]
        rest.rollout_ids.extend(self._ids[self._index :])
        for rollout_id in set(rest.final_rewards) - set(rest.rollout_ids):
            del rest.final_rewards[rollout_id]
        return rest

    def take(self, answer: Any) -> list[A]:
        """Return the attempts that a response completes, except those returned before."""
        complete = []
        for part in answer.attempts:
            ids = part.attempt.rollout_id, part.attempt.attempt_id
            while self._index + 1 < len(self._ids) and self._ids[self._index] != ids[0]:
                self._index += 1
            if self._partial is None:
                self._partial = self._empty(*ids)
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
        """Return what to request from the server, the same after a broken connection."""
        return self._request

    def take(self, answer: span_pb2.QuerySpansResponse) -> list[Span]:
        """Return the spans of a response that are new: a broken query starts from its beginning again."""
        new = []
        for span in spans_of(answer):
            key = (span.attempt_id, span.otlp.span_id)
            if key not in self._seen:
                self._seen.add(key)
                new.append(span)
        return new
