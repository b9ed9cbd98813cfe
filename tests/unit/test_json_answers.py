"""Answers as JSON: the same as protobuf's own, whatever the sizes of their parts, and never made in one step."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from lightningstore.service.http import json_answers
from lightningstore.service.rpc.handlers import SERVICE
from lightningstore.v1.resources_pb2 import GetResourcesResponse
from lightningstore.v1.rollout_pb2 import GetRolloutResponse, ListRolloutsResponse
from lightningstore.v1.sample_pb2 import AttemptSamples
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

KINDS = {m.name: GetMessageClass(m.output_type) for m in SERVICE.methods}
TEXTS = ("", "plain", 'quoted "\\\n\t\u2028 é', "😀" * 30)


def filled(chance: random.Random, kind: type[Message], depth: int = 0) -> Any:
    """Return a message of which most fields are set, at random."""
    message: Any = kind()
    for field in kind.DESCRIPTOR.fields:
        if chance.random() < 0.2 or depth > 6:
            continue
        count = chance.randrange(4) if field.is_repeated else 1
        value = getattr(message, field.name)
        for number in range(count):
            if field.message_type is None:
                one = scalar(chance, field)
                value.append(one) if field.is_repeated else setattr(message, field.name, one)
            elif field.message_type.GetOptions().map_entry:
                entry(
                    chance,
                    value,
                    f"key {number}",
                    field.message_type.fields_by_name["value"],
                    depth,
                )
            else:
                one = filled(chance, GetMessageClass(field.message_type), depth + 1)
                (value.add() if field.is_repeated else value).CopyFrom(one)
    return message


def entry(chance: random.Random, values: Any, key: str, field: Any, depth: int) -> None:
    if field.message_type is None:
        values[key] = scalar(chance, field)
    else:
        values[key].CopyFrom(filled(chance, GetMessageClass(field.message_type), depth + 1))


def scalar(chance: random.Random, field: Any) -> Any:
    if field.enum_type is not None:
        return chance.choice(field.enum_type.values).number
    if field.type == field.TYPE_STRING:
        return chance.choice(TEXTS)
    if field.type == field.TYPE_BYTES:
        return chance.randbytes(chance.randrange(50))
    if field.type == field.TYPE_BOOL:
        return True
    if field.type in (field.TYPE_DOUBLE, field.TYPE_FLOAT):
        return chance.choice((0.5, -1e30, float("inf"), float("nan")))
    return chance.randrange(100)


def as_json(message: Message) -> Any:
    parts = list(json_answers.parts(message.SerializeToString(), type(message)))
    assert all(parts)
    return json.loads(b"".join(parts))


@pytest.mark.parametrize("large", [0, 20, 300, 64 << 10])
@pytest.mark.parametrize("name", KINDS)
def test_json_is_that_of_protobuf(name: str, large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_answers, "LARGE_BYTES", large)
    monkeypatch.setattr(json_answers, "PART_BYTES", 100)
    monkeypatch.setattr(json_answers, "PIECE_BYTES", 3 * max(1, large // 20))
    monkeypatch.setattr(json_answers, "PIECE_VALUES", 2)
    for seed in range(10):
        message = filled(random.Random(seed), KINDS[name])
        assert as_json(message) == json.loads(json.dumps(MessageToDict(message))), seed


@pytest.mark.parametrize("large", [0, 64 << 10])
def test_last_of_several_values_counts(large: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_answers, "LARGE_BYTES", large)
    two = (
        AnyValue(string_value="x" * 9).SerializeToString()
        + AnyValue(int_value=5).SerializeToString()
    )
    found = json.loads(b"".join(json_answers.parts(two, AnyValue)))
    assert found == {"intValue": "5"}
    first, second = GetRolloutResponse(), GetRolloutResponse()
    first.rollout.rollout_id, second.rollout.group_id = "r", "g"
    merged = first.SerializeToString() + second.SerializeToString()
    found = json.loads(b"".join(json_answers.parts(merged, GetRolloutResponse)))
    assert found == {"rollout": {"rolloutId": "r", "groupId": "g"}}


def many_rollouts() -> Message:
    answer = ListRolloutsResponse()
    for number in range(2000):
        answer.rollouts.add(rollout_id=f"r-{number}", input_json=b"x" * 100, labels={"a": "b"})
    return answer


def large_input() -> Message:
    answer = GetRolloutResponse()
    answer.rollout.input_json = bytes(range(256)) * 8000
    return answer


def large_template() -> Message:
    answer = GetResourcesResponse()
    for name in ("a", "b"):
        answer.resources.resources[name].prompt_template.template = 'é"' * 600_000
    return answer


def many_tokens() -> Message:
    answer = AttemptSamples()
    sample = answer.samples.add()
    sample.token_ids.extend(range(300_000))
    sample.mask.extend([True] * 300_000)
    return answer


def many_spans() -> Message:
    batch = SpanBatch()
    for number in range(3000):
        span = batch.spans.add(name=f"s-{number}", trace_id=b"t" * 16, span_id=b"s" * 8)
        span.attributes.add(key="k").value.string_value = "v" * 50
    return batch


@pytest.mark.parametrize(
    "make", [many_rollouts, large_input, large_template, many_tokens, many_spans]
)
def test_large_answer_is_made_in_small_steps(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    message = make()
    expected = json.loads(json.dumps(MessageToDict(message)))
    sizes: list[int] = []
    encode, build = json_answers.msgspec.json.encode, json_answers._built

    def counted(value: Any) -> bytes:
        text: bytes = encode(value)
        sizes.append(len(text))
        return text

    def counted_build(data: bytes, kind: Any) -> Any:
        # Numbers are read in one step, into an array.
        sizes.append(0 if make is many_tokens else len(data))
        return build(data, kind)

    monkeypatch.setattr(json_answers.msgspec.json, "encode", counted, raising=True)
    monkeypatch.setattr(json_answers, "_built", counted_build)
    parts = list(json_answers.parts(message.SerializeToString(), type(message)))
    assert json.loads(b"".join(parts)) == expected
    assert len(parts) > 10
    assert max(len(part) for part in parts) < 200_000
    assert max(sizes) < 200_000


def test_fields_of_a_later_version_are_left_out() -> None:
    data = GetRolloutResponse().SerializeToString() + b"\xfa\x07\x03abc"
    assert b"".join(json_answers.parts(data * (1 << 15), GetRolloutResponse)) == b"{}"
