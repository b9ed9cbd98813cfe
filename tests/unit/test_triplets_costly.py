"""Spans that cost much to read: what is read in a thread, and that no single step takes long."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service import triplets
from lightningstore.service.operations import traces
from lightningstore.service.operations.store import Store
from lightningstore.service.rules.json_values import has_more_objects
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import open_store
from lightningstore.service.triplets import kinds, steps, tokens, trace, values
from lightningstore.v1.claim_pb2 import StartRolloutRequest
from lightningstore.v1.rollout_pb2 import RolloutSpec
from lightningstore.v1.span_pb2 import AddSpansRequest, SpanBatch
from lightningstore.v1.triplet_pb2 import (
    AttemptTriplets,
    ListTripletsRequest,
    ListTripletsResponse,
    Triplet,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.calls import Calls
from tests.traces import any_value, span

CALL = {"gen_ai.operation.name": "chat"}
MESSAGES = "gen_ai.input.messages"


@pytest_asyncio.fixture
async def store() -> AsyncIterator[Calls]:
    service: Store = await open_store(Config(backend="memory", port=0))
    yield Calls(service)
    await service.close()


def call(word: str = "a", /, **attributes: Any) -> Span:
    return span(word, "x", "", (1, 2), {**CALL, **attributes})


def with_events(name: str, count: int, **attributes: Any) -> Span:
    made = call()
    for _ in range(count):
        event = made.events.add(name=name)
        for key, value in attributes.items():
            event.attributes.add(key=key).value.CopyFrom(any_value(value))
    return made


def listed(item: str, count: int) -> str:
    return "[" + ",".join([item] * count) + "]"


#: Each took 90 to 800 ms of the event loop in one go.
COSTLY: dict[str, Callable[[], Span]] = {
    "attributes of an indexed prompt": lambda: call(
        **{f"gen_ai.prompt.{n}.content": "x" for n in range(20_000)}
    ),
    "attributes of no kind": lambda: call(**{f"k{n}": "" for n in range(30_000)}),
    "rewards": lambda: call(**{f"agentlightning.reward.{n}.value": 1.0 for n in range(20_000)}),
    "a Python literal": lambda: call(**{"output.value": listed("'a'", 200_000)}),
    "a Python literal with both quotes": lambda: call(
        **{"output.value": listed("\"a'\",'b\"'", 100_000)}
    ),
    "numbers that JSON does not have": lambda: call(**{"output.value": listed("NaN", 200_000)}),
    "events of a call": lambda: with_events("gen_ai.choice", 20_000, message="{}"),
    "a list of events": lambda: call(
        events=listed('{"event.name":"gen_ai.user.message","content":"x"}', 40_000)
    ),
    "parts of a message": lambda: call(
        **{MESSAGES: json.dumps([{"role": "user", "parts": [{"type": "text"}] * 60_000}])}
    ),
    "nested values": lambda: call(**{"gen_ai.prompt": {f"k{n}": [1] for n in range(40_000)}}),
}


async def stored(store: Calls, spans: Iterable[Span]) -> str:
    """Store spans as those of a new rollout, and return its id."""
    started = await store.start_rollout(
        StartRolloutRequest(rollout=RolloutSpec(input_json=b"null"))
    )
    rollout_id: str = started.rollout.rollout_id
    batch = SpanBatch(rollout_id=rollout_id, attempt_id="latest", spans=spans)
    await store.add_spans(AddSpansRequest(batch=batch))
    return rollout_id


async def listing(store: Calls, rollout_id: str, **options: Any) -> AttemptTriplets:
    """Return the triplets of the only attempt of a rollout, as one message."""
    found = AttemptTriplets()
    request = ListTripletsRequest(rollout_ids=[rollout_id], **options)
    async for answer in store.list_triplets(request):
        for part in ListTripletsResponse.FromString(answer or b"").attempts:
            found.MergeFrom(part)
    return found


class Steps:
    """Counts the processor time of a coroutine's steps, and of nothing else that its event loop does."""

    def __init__(self, coroutine: Coroutine[Any, Any, object]) -> None:
        self._coroutine = coroutine
        self.seconds = 0.0

    def __await__(self) -> Generator[Any, Any, None]:
        while True:
            begun = time.thread_time()
            try:
                awaited = self._coroutine.send(None)
            except StopIteration:
                return
            finally:
                self.seconds += time.thread_time() - begun
            yield awaited


@pytest.fixture
def uncollected() -> Iterator[None]:
    """No garbage collection: which thread collects that of all tests is chance."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[bool]]:
    """Return by kind of work whether it was done in the thread of the event loop."""
    seen: dict[str, set[bool]] = {"triplet": set(), "node": set(), "trace": set()}
    loop = threading.get_ident()

    def noting(kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any) -> Any:
            seen[kind].add(threading.get_ident() == loop)
            return work(*args)

        return noted

    monkeypatch.setattr(triplets, "triplet_of", noting("triplet", triplets.triplet_of))
    monkeypatch.setattr(triplets.Node, "of", noting("node", triplets.Node.of))
    monkeypatch.setattr(trace, "_call", noting("trace", trace._call))
    return seen


@pytest.mark.parametrize("name", COSTLY)
@pytest.mark.asyncio
async def test_costly_span_is_read_in_a_thread(
    store: Calls, threads: dict[str, set[bool]], name: str
) -> None:
    found = await listing(store, await stored(store, [COSTLY[name]()]))
    assert len(found.triplets) == 1
    assert threads["node"] == threads["triplet"] == {False}


@pytest.mark.asyncio
async def test_ordinary_spans_are_read_on_the_event_loop(
    store: Calls, threads: dict[str, set[bool]]
) -> None:
    text = "x" * 10_000
    spans = [call(str(n), **{MESSAGES: text}) for n in range(20)]
    found = await listing(store, await stored(store, spans))
    assert len(found.triplets) == 20
    assert threads == {"triplet": {True}, "node": {True}, "trace": {True}}


@pytest.mark.asyncio
async def test_calls_of_a_large_trace_are_found_in_a_thread(
    store: Calls, threads: dict[str, set[bool]]
) -> None:
    spans = [call(str(n)) for n in range(traces.LARGE_TRACE + 1)]
    found = await listing(store, await stored(store, spans))
    assert len(found.triplets) == traces.LARGE_TRACE + 1
    assert threads == {"triplet": {True}, "node": {True}, "trace": {False}}


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("options", [{}, {"skip_without_tokens": True}, {"source": 2}], ids=str)
@pytest.mark.asyncio
async def test_costly_spans_leave_the_event_loop_to_others(
    store: Calls, options: dict[str, Any]
) -> None:
    spans = [make() for make in COSTLY.values()]
    for number, one in enumerate(spans):
        one.span_id = bytes([number + 1] * 8)
    rollout_id = await stored(store, spans)
    steps = Steps(listing(store, rollout_id, **options))
    loop, everything = time.thread_time(), time.process_time()
    turns = 0
    task = asyncio.ensure_future(steps)
    while not task.done():
        turns += 1
        await asyncio.sleep(0.001)
    others = time.process_time() - everything - (time.thread_time() - loop)
    # The loop's thread only parses the spans as protobuf, which takes a tenth of the whole.
    assert steps.seconds < others
    assert turns > 10


@given(st.lists(st.tuples(st.integers(0, 5), st.integers())), st.integers(1, 7))
def test_sorting_in_runs_is_sorting(items: list[tuple[int, int]], at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "_SORTED_AT_ONCE", at_once)
        assert steps.sort(items, key=lambda i: i[0]) == sorted(items, key=lambda i: i[0])


def test_objects_of_a_text_are_counted_outside_of_its_strings() -> None:
    code = json.dumps(["{" * 50, {"a": "{"}])
    assert not has_more_objects(code.encode(), 1)
    assert has_more_objects(code.encode(), 0)


def test_text_with_too_many_objects_stays_a_text() -> None:
    text = listed("{}", values.MAX_OBJECTS + 1)
    assert values.parsed(text) is text
    with pytest.raises(ValueError, match="more than 100000 objects"):
        values.read_json(text)


_LEAVES = st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8)


@given(st.recursive(_LEAVES, lambda v: st.lists(v) | st.dictionaries(st.text(max_size=4), v)))
def test_what_python_prints_is_read_as_its_value(value: Any) -> None:
    assert values.read_json(str([value])) == [value]


def test_numbers_that_json_does_not_have_become_null() -> None:
    words = ["NaN", "nan", "inf", "-inf", "+inf", "Infinity", "-Infinity", "-nan"]
    for quote in ("'", '"'):
        text = f"[{','.join(words)},{quote}NaN inf{quote},-1,1e-5]"
        assert values.read_json(text) == [None] * len(words) + ["NaN inf", -1, 1e-5]


def test_keys_that_differ_in_a_number_mean_the_same() -> None:
    dice = random.Random(1)
    made = [
        "gen_ai.prompt.{}.content",
        "llm.input_messages.{}.message.role",
        "agentlightning.reward.{}.value",
        "a{}.span.kind",
        "llm.p{}.choices",
        "x{}",
    ]
    for key in made:
        first = kinds.mark_of(key.format(0))
        assert {kinds.mark_of(key.format(dice.randrange(10**6))) for _ in range(50)} == {first}


def test_new_keys_are_remembered_after_any_number_of_others() -> None:
    for number in range(3 * kinds._REMEMBERED):
        kinds.mark_of(f"key{number}")
    kinds.mark_of("gen_ai.request.model")
    assert "gen_ai.request.model" in kinds._known
    assert len(kinds._known) <= kinds._REMEMBERED


@pytest.mark.parametrize("odd", [None, "x", -1])
def test_long_arrays_of_token_ids_are_read_in_parts(
    monkeypatch: pytest.MonkeyPatch, odd: Any
) -> None:
    monkeypatch.setattr(tokens, "_AT_ONCE", 4)
    ids = [1, 127, 128, 1 << 20, (1 << 31) - 1, 0, 5, 1 << 28, 9]
    array = tokens.read(any_value(ids if odd is None else [*ids, odd]).SerializeToString())
    if odd is not None:
        assert array is None
        return
    assert array is not None
    assert tokens.count(array) == len(ids)
    found = Triplet()
    tokens.put(found, array, b"")
    assert list(found.prompt.token_ids) == ids


def test_text_of_very_many_lists_is_not_token_ids() -> None:
    lists = any_value(listed("[1]", tokens._MAX_LISTS))
    assert tokens.read(lists.SerializeToString()) is None
    first = tokens.read(any_value("[[1,2],[3]]").SerializeToString())
    assert first == tokens.array_of([1, 2])
