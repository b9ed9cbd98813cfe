"""list_samples of both clients: its requests, no duplicates after a break, and arrays that numpy and torch read."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightningstore.client import AttemptSamples, RolloutStatus, Sample
from lightningstore.v1 import sample_pb2

from tests.libraries import library

from .fakes import FakeServer, Fault, unavailable
from .twins import Twin

PAGE = Path(__file__).parents[3] / "docs" / "samples.md"
MESSAGE = sample_pb2.Sample(
    index=1,
    token_ids=[1, 2147483647, 3],
    mask=[False, True, True],
    logprobs=[0, -0.5, -2],
    segments=[{"first_token": 1, "end_token": 3, "reward": 0.25}],
    prompt_token_count=1,
    reward=1.0,
    scores={"style": 0.5},
    truncated=True,
    messages_json=b'[{"role":"user"}]',
    tools_json=b"[]",
    image_urls=["u"],
)
SAMPLE = Sample(MESSAGE, "ro-1", "at-1", "g")


def part(rollout_id: str, *numbers: int, complete: bool = True) -> Any:
    return sample_pb2.AttemptSamples(
        attempt={"rollout_id": rollout_id, "attempt_id": "at"},
        group_id="g",
        status="ROLLOUT_STATUS_SUCCEEDED",
        queue_time={"seconds": 1, "nanos": 500_000_000},
        samples=[{"index": number} for number in numbers],
        complete=complete,
        warning_count=int(complete),
    )


def answers(*messages: Any) -> Any:
    def handle(request: Any) -> Iterator[Any]:
        del request
        for item in messages:
            if isinstance(item, Fault):
                raise item
            yield sample_pb2.ListSamplesResponse(attempts=item)

    return handle


@pytest.mark.asyncio
async def test_attempts_come_whole_and_once_whatever_breaks(twin: Twin, server: FakeServer) -> None:
    tries = iter(
        [
            answers([part("a", 0), part("b", 0, complete=False)], unavailable()),
            answers([part("b", 0, complete=False)], [part("b", 1)]),
        ]
    )

    def handle(request: Any) -> Iterator[Any]:
        yield from next(tries)(request)

    server.on["ListSamples"] = handle
    found = await twin.call("list_samples", ["a", "b", "a"], "", final_rewards={"a": 1, "b": 2})
    assert [(a.rollout_id, a.attempt_id, [s.index for s in a]) for a in found] == [
        ("a", "at", [0]),
        ("b", "at", [0, 1]),
    ]
    (first, _) = found
    assert (first.group_id, first.status) == ("g", RolloutStatus.SUCCEEDED)
    assert (first.queue_seconds, first.run_seconds, first.warning_count) == (1.5, None, 1)
    _, again = server.requests("ListSamples")
    assert (list(again.rollout_ids), dict(again.final_rewards)) == (["b"], {"b": 2.0})


@pytest.mark.asyncio
async def test_options_are_sent_as_they_are_given(twin: Twin, server: FakeServer) -> None:
    server.on["ListSamples"] = answers()
    await twin.call("list_samples", ["a"])
    await twin.call(
        "list_samples", ["a", "b"], "", merge="none", source="proxy", reward_policy="by_sequence"
    )
    plain, full = server.requests("ListSamples")
    assert (plain.attempt_id, plain.merge, plain.source, plain.reward_policy) == ("latest", 2, 1, 0)
    assert (full.attempt_id, full.merge, full.source, full.reward_policy) == ("", 1, 2, 3)


def test_a_sample_shows_all_fields() -> None:
    assert (SAMPLE.rollout_id, SAMPLE.attempt_id, SAMPLE.group_id) == ("ro-1", "at-1", "g")
    assert SAMPLE.token_ids.tolist() == [1, 2147483647, 3]
    assert SAMPLE.mask.tolist() == [False, True, True]
    assert SAMPLE.logprobs is not None
    assert SAMPLE.logprobs.tolist() == [0, -0.5, -2]
    (segment,) = SAMPLE.segments
    assert (segment.first_token, segment.end_token, segment.reward) == (1, 3, 0.25)
    assert (SAMPLE.index, SAMPLE.turn_count, SAMPLE.sampled_token_count) == (1, 1, 2)
    assert (SAMPLE.reward, SAMPLE.scores, SAMPLE.truncated) == (1.0, {"style": 0.5}, True)
    assert (SAMPLE.messages, SAMPLE.tools, SAMPLE.image_urls) == ([{"role": "user"}], [], ["u"])
    empty = Sample(sample_pb2.Sample(), "", "", "")
    assert (empty.reward, empty.logprobs, empty.messages, empty.tools) == (None, None, None, None)
    assert (len(empty.token_ids), len(empty.mask)) == (0, 0)


def test_samples_are_compared_and_pickled_by_their_content() -> None:
    assert SAMPLE.token_ids  # pickled without what is derived
    copy = pickle.loads(pickle.dumps(SAMPLE))
    assert copy == SAMPLE
    assert copy.token_ids == SAMPLE.token_ids
    assert Sample(MESSAGE, "other", "at-1", "g") != SAMPLE
    assert repr(SAMPLE).startswith("Sample(rollout_id='ro-1', index=1, turn_count=1")


def test_no_attempt_shares_its_lists() -> None:
    assert AttemptSamples("a", "b").warnings is not AttemptSamples("a", "b").warnings


def test_numpy_reads_the_arrays_without_a_copy() -> None:
    numpy = library("numpy")
    tokens, mask = numpy.asarray(SAMPLE.token_ids), numpy.asarray(SAMPLE.mask)
    logprobs = numpy.asarray(SAMPLE.logprobs)
    assert (tokens.dtype, mask.dtype, logprobs.dtype) == (numpy.int32, bool, numpy.float32)
    assert tokens[mask].tolist() == [2147483647, 3]
    assert logprobs[mask].tolist() == [-0.5, -2]
    assert numpy.frombuffer(SAMPLE.token_ids, dtype=numpy.int32).tolist() == tokens.tolist()
    assert numpy.frombuffer(SAMPLE.mask, dtype=bool).tolist() == mask.tolist()
    assert numpy.shares_memory(tokens, numpy.frombuffer(SAMPLE.token_ids, dtype=numpy.int32))


def test_torch_reads_the_arrays_without_a_copy() -> None:
    torch: Any = pytest.importorskip("torch")
    tokens = torch.frombuffer(SAMPLE.token_ids, dtype=torch.int32)
    mask = torch.frombuffer(SAMPLE.mask, dtype=torch.bool)
    logprobs = torch.frombuffer(SAMPLE.logprobs, dtype=torch.float32)
    assert tokens[mask].tolist() == [2147483647, 3]
    assert logprobs[mask].tolist() == [-0.5, -2]


def test_the_page_runs_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    library("numpy")
    attempt = AttemptSamples("ro-1", "at-1")
    attempt.append(SAMPLE)
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    store = SimpleNamespace(list_samples=lambda _: [attempt])
    for snippet in snippets:
        names = {"store": store, "batch": [SimpleNamespace(rollout_id="ro-1")]}
        exec(compile(snippet, PAGE.name, "exec"), names)
    assert len(snippets) == 2
    assert "ro-1 3 1 1.0" in capsys.readouterr().out
