"""Samples that cost much to make are made in a thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from lightningstore.service import samples
from lightningstore.v1.sample_pb2 import AttemptSamples, ListSamplesRequest, ListSamplesResponse

from tests.calls import Calls
from tests.traces import span
from tests.unit.test_triplets_costly import store, stored

__all__ = ["store"]  # the fixture

pytestmark = pytest.mark.asyncio


def call(word: str, prompt: list[int], response: list[int]) -> Any:
    told = {"prompt_token_ids": prompt, "response_token_ids": response}
    return span(
        word, "openai.chat.completion", "", (1, 2), {**told, "gen_ai.request.model": "m" * 100}
    )


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[bool]]:
    """Return by kind of work whether it was done in the thread of the event loop."""
    seen: dict[str, set[bool]] = {"of": set(), "sample_of": set()}
    loop = threading.get_ident()

    def noting(kind: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*args: Any, **options: Any) -> Any:
            seen[kind].add(threading.get_ident() == loop)
            return work(*args, **options)

        return noted

    for owner, kind in ((samples.IdsReader, "of"), (samples, "sample_of")):
        monkeypatch.setattr(owner, kind, noting(kind, getattr(owner, kind)))
    return seen


async def listing(store: Calls, rollout_id: str) -> AttemptSamples:
    """Return the samples of the only attempt of a rollout, as one message."""
    found = AttemptSamples()
    async for answer in store.list_samples(ListSamplesRequest(rollout_ids=[rollout_id])):
        for part in ListSamplesResponse.FromString(answer or b"").attempts:
            found.MergeFrom(part)
    return found


async def test_many_tokens_and_many_segments_are_handled_in_a_thread(
    store: Calls, threads: dict[str, set[bool]]
) -> None:
    ids = list(range(300_000))
    found = await listing(store, await stored(store, [call("a", ids, [1])]))
    assert len(found.samples[0].token_ids) == 300_001
    assert threads == {"of": {False}, "sample_of": {False}}
    for kinds in threads.values():
        kinds.clear()
    turns = [call(str(n), list(range(2 * n + 1)), [2 * n + 1]) for n in range(200)]
    found = await listing(store, await stored(store, turns))
    assert [len(sample.segments) for sample in found.samples] == [200]
    assert threads == {"of": {True}, "sample_of": {False}}


async def test_ordinary_calls_are_handled_on_the_event_loop(
    store: Calls, threads: dict[str, set[bool]]
) -> None:
    found = await listing(store, await stored(store, [call("a", [1, 2], [3])]))
    assert len(found.samples) == 1
    assert threads == {"of": {True}, "sample_of": {True}}
