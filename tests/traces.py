"""Traces written down as small files: the shapes that agent stacks give their spans, and what is expected.

A file holds the options of the request, the spans and the triplets. Ids are words; times are seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from lightningstore.client import AttemptTriplets, Triplet
from lightningstore.service import samples, triplets
from lightningstore.v1.sample_pb2 import ListSamplesRequest, Sample
from lightningstore.v1.span_pb2 import SpanBatch
from lightningstore.v1.triplet_pb2 import ListTripletsRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span

FOLDER = Path(__file__).parent / "unit" / "traces"
TRACES = sorted(path.stem for path in FOLDER.glob("*.json"))
TRACE_ID = bytes(range(1, 17))
SECOND = 1_000_000_000
ABOUT = samples.About(None, (), 0)


def load(name: str) -> dict[str, Any]:
    """Read a file."""
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text())
    return found


def span_id(word: str) -> bytes:
    """Return the span id that a word stands for."""
    return hashlib.sha256(word.encode()).digest()[:8] if word else b""


def any_value(value: Any) -> AnyValue:
    """Return a plain value as OTLP has it."""
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    found = AnyValue()
    if isinstance(value, Mapping):
        found.kvlist_value.SetInParent()
        for key, item in value.items():
            found.kvlist_value.values.add(key=key).value.CopyFrom(any_value(item))
    elif isinstance(value, list):
        found.array_value.SetInParent()
        found.array_value.values.extend(map(any_value, value))
    return found


def span(
    word: str,
    name: str,
    parent: str = "",
    at: tuple[float, float] | list[float] = (0, 0),
    attributes: Mapping[str, Any] | None = None,
    **_: Any,
) -> Span:
    """Return a span. `at`: start and end in seconds, 0 for none."""
    return Span(
        trace_id=TRACE_ID,
        span_id=span_id(word),
        parent_span_id=span_id(parent),
        name=name,
        start_time_unix_nano=int(at[0] * SECOND),
        end_time_unix_nano=int(at[1] * SECOND),
        attributes=[
            KeyValue(key=key, value=any_value(value)) for key, value in (attributes or {}).items()
        ],
    )


def batch(spans: Iterable[Mapping[str, Any]], rollout_id: str, attempt_id: str) -> SpanBatch:
    """Return spans of a file as a batch; they are numbered as they stand unless they say otherwise."""
    sent = SpanBatch(rollout_id=rollout_id, attempt_id=attempt_id)
    for number, described in enumerate(spans, 1):
        sent.spans.append(span(**described))
        sent.sequence_ids.append(described.get("number", number))
    return sent


def extract(
    spans: Iterable[tuple[int, Span]], final: float | None = None, **options: Any
) -> AttemptTriplets:
    """Return the triplets of numbered spans, as the service finds them."""
    request = ListTripletsRequest(rollout_ids=["r"], **options)
    chosen = triplets.Options.of(request)
    warnings = triplets.Warnings()
    stored: dict[bytes, Span] = {}
    nodes = []
    for at, (number, one) in enumerate(spans):
        stored[one.span_id] = one
        nodes.append(triplets.Node.of(one, number, triplets.Place(1, at), chosen, warnings))
    trace = triplets.run(triplets.find_calls(nodes, chosen, warnings))
    found = AttemptTriplets("r", "a")
    for call in trace.calls:
        records = [stored[node.span_id] for node in call.records]
        tools = [stored[node.span_id] for node in call.tools]
        message = triplets.triplet_of(call, records, tools, chosen, warnings)
        if call.following is not None and triplets.lacks_answer(call, message):
            triplets.add_answer(message, stored[call.following.span_id])
        found.append(Triplet(message, "r", "a"))
    if final is not None and found:
        found[-1].message.reward.CopyFrom(triplets.final_reward(final))
    found.unmatched_rewards = [node.reward[0].value for node in trace.unmatched]
    found.warnings = [(w.attribute, w.message) for w in warnings.messages()]
    found.warning_count = warnings.count
    return found


def numbered(name: str) -> list[tuple[int, Span]]:
    """Return the spans of a file with their sequence ids."""
    sent = batch(load(name)["spans"], "r", "a")
    return list(zip(sent.sequence_ids, sent.spans, strict=True))


def shown(triplet: Triplet) -> dict[str, Any]:
    """Return what there is of a triplet, as the files write it."""
    told = {
        "prompt_tokens": triplet.prompt_token_ids,
        "response_tokens": triplet.response_token_ids,
        "prompt": triplet.prompt,
        "response": triplet.response,
        "images": triplet.image_urls,
        "logprobs": triplet.logprobs,
        "reward": triplet.reward,
        "rewards": triplet.rewards if len(triplet.rewards) > 1 else None,
        "response_id": triplet.response_id,
        "agent": triplet.agent_name,
        "request": triplet.request_metadata,
        "response_metadata": triplet.response_metadata,
    }
    return {key: value for key, value in told.items() if value not in (None, [], {}, "")}


class RowOf(NamedTuple):
    """A sample, with lists for arrays."""

    tokens: list[int]
    mask: list[bool]
    logprobs: list[float] | None
    sample: Sample


def fold(
    spans: Iterable[tuple[int, Span]], about: samples.About = ABOUT, **options: Any
) -> tuple[list[RowOf], list[str]]:
    """Return the samples of numbered spans and the warnings, as the service makes them."""
    merges = options.pop("merge", "") != "SAMPLE_MERGE_NONE"
    chosen = triplets.Options.of(ListSamplesRequest(rollout_ids=["r"], **options))
    warnings = triplets.Warnings()
    stored: dict[bytes, Span] = {}
    nodes = []
    for at, (number, one) in enumerate(spans):
        stored[one.span_id] = one
        nodes.append(triplets.Node.of(one, number, triplets.Place(1, at), chosen, warnings))
    calls = triplets.run(triplets.find_calls(nodes, chosen, warnings)).calls
    ids: dict[int, samples.Ids] = {}
    folded = samples.Fold()
    reader = samples.IdsReader()
    for key, call in enumerate(calls):
        records = [stored[node.span_id] for node in call.records]
        ids[key] = reader.of(call, records, chosen, warnings)
        if ids[key].prompt and ids[key].response:
            folded.add(key, call.node.where, *ids[key])
    for key in folded.unplaced() if merges else ():
        folded.place(key, ids[key].prompt)
    rows, aside = folded.rows()
    found = []
    for index, row in enumerate(rows):
        members = [calls[member.key] for member in row.calls]
        answers = []
        for call in members:
            records = [stored[node.span_id] for node in call.records]
            tools = [stored[node.span_id] for node in call.tools]
            is_last = call is members[-1]
            answer = samples.answer_of(call, records, tools, chosen, warnings, is_last=is_last)
            if call.following is not None and samples.lacks_answer(call, answer):
                answer = samples.add_answer(answer, stored[call.following.span_id])
            answers.append(answer)
        array = b"".join(ids[row.last.key])
        data = samples.sample_of(index, row, array, members, answers, about, warnings)
        found.append(Sample.FromString(data))
    told = [warning.message for warning in warnings.messages()]
    told += [f"aside {call.where[0]}" for call in aside]
    return [
        RowOf(list(s.token_ids), list(s.mask), list(s.logprobs) or None, s) for s in found
    ], told
