from __future__ import annotations

import threading
from typing import Any

import pytest
from lightningstore.client._calls.streams import QueryState, WaitState, WatchState
from lightningstore.client._sync.streams import ItemStream
from lightningstore.v1 import span_pb2
from lightningstore.v1.completion_pb2 import (
    WaitForRolloutsResponse,
    WaitSummary,
    WatchRolloutsResponse,
)
from lightningstore.v1.rollout_pb2 import Rollout


def answer(*ids: str, summary: WaitSummary | None = None) -> WaitForRolloutsResponse:
    return WaitForRolloutsResponse(rollouts=[Rollout(rollout_id=i) for i in ids], summary=summary)


def request_of(state: WaitState) -> Any:
    request = state.request()
    assert request is not None
    return request


def test_a_wait_asks_again_only_for_what_is_open() -> None:
    state = WaitState(["a", "b", "c", "a"], (), 2, None)
    first = request_of(state)
    assert list(first.rollout_ids) == ["a", "b", "c"]
    assert first.min_count == 2
    assert not first.HasField("timeout")
    assert [r.rollout_id for r in state.take(answer("b"))] == ["b"]
    second = request_of(state)
    assert list(second.rollout_ids) == ["a", "c"]
    assert second.min_count == 1


def test_a_wait_passes_nothing_on_twice() -> None:
    state = WaitState(["a", "b"], (), None, None)
    assert len(state.take(answer("a"))) == 1
    assert [r.rollout_id for r in state.take(answer("a", "b"))] == ["b"]
    assert state.finished_count == 2


def test_a_wait_whose_summary_was_lost_ends_all_the_same() -> None:
    state = WaitState(["a", "b", "c"], (), 2, None)
    state.request()
    state.take(answer("c", "a"))
    assert state.request() is None
    assert state.ended
    assert state.open_rollout_ids == ["b"]


def test_a_wait_for_groups_asks_for_all_of_them_again() -> None:
    state = WaitState((), ["g"], None, None)
    state.request()
    state.take(answer("a"))
    assert list(request_of(state).group_ids) == ["g"]
    summary = WaitSummary(finished_count=2, open_count=1, open_rollout_ids=["c"])
    assert [r.rollout_id for r in state.take(answer("a", "b", summary=summary))] == ["b"]
    assert state.ended
    assert state.open_rollout_ids == ["c"]


def test_the_time_of_a_wait_runs_on_through_a_break() -> None:
    now = [10.0]
    state = WaitState(["a", "b"], (), None, 5.0, now=lambda: now[0])
    assert request_of(state).timeout.seconds == 5
    state.take(answer("a"))
    now[0] += 3
    assert request_of(state).timeout.seconds == 2
    now[0] += 30
    assert request_of(state).timeout.seconds == 0
    assert request_of(state).HasField("timeout")


def test_ids_are_a_list() -> None:
    with pytest.raises(TypeError, match="rollout_ids"):
        WaitState("ro-1", (), None, None)


def test_a_watch_goes_on_where_its_user_stands() -> None:
    state = WatchState(None, "")
    assert not state.request().HasField("after_completion_number")
    # An answer without rollouts moves the watch on by itself.
    state.take(WatchRolloutsResponse(through_completion_number=4, store_id="s"))
    assert state.request().after_completion_number == 4
    assert state.request().store_id == "s"
    # Three came in one message. The user has one of them, then all.
    three = WatchRolloutsResponse(through_completion_number=8, store_id="s")
    for number in (5, 6, 7):
        three.rollouts.add(completion_number=number)
    rollouts = state.take(three)
    assert state.request().after_completion_number == 4
    state.passed_on(rollouts[0])
    assert state.request().after_completion_number == 5
    state.passed_on_all()
    assert state.request().after_completion_number == 8


def test_a_watch_from_the_beginning_says_so() -> None:
    assert WatchState(0, "").request().HasField("after_completion_number")


def test_a_query_passes_no_span_on_twice() -> None:
    state = QueryState(span_pb2.QuerySpansRequest())
    batch = span_pb2.SpanBatch(attempt_id="at-1", sequence_ids=[1, 2])
    batch.spans.add(span_id=b"1" * 8)
    batch.spans.add(span_id=b"2" * 8)
    first = span_pb2.QuerySpansResponse(batches=[batch])
    assert [s.sequence_id for s in state.take(first)] == [1, 2]
    assert state.take(first) == []
    batch.attempt_id = "at-2"  # the same span id in another attempt is another span
    assert len(state.take(span_pb2.QuerySpansResponse(batches=[batch]))) == 2


def test_a_stream_that_another_thread_closes_while_its_call_starts_ends() -> None:
    class Call:
        closed = False

        def ready(self) -> None:
            raise AssertionError("the call goes on")

        def __next__(self) -> None:
            raise AssertionError("the call goes on")

        def close(self) -> None:
            self.closed = True

    class Wire:
        def __init__(self) -> None:
            self.calls: list[Call] = []

        def server_stream(self, *_: object) -> Call:
            closer = threading.Thread(target=stream.close)
            closer.start()
            closer.join()
            self.calls.append(Call())
            return self.calls[-1]

    for read in (list, ItemStream.registered):
        wire = Wire()
        stream = ItemStream(wire, WaitState(["ro-1"], (), None, None), None)
        read(stream)
        assert [call.closed for call in wire.calls] == [True]
