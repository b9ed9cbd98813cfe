"""Requests in JSON: bytes are base64, and an error names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf.message import Message
from lightningstore.service.http.json_messages import serialised
from lightningstore.service.rules.errors import FieldInvalid, StoreError
from lightningstore.v1.attempt_pb2 import UpdateAttemptRequest
from lightningstore.v1.resources_pb2 import AddResourcesRequest
from lightningstore.v1.rollout_pb2 import EnqueueRolloutsRequest
from lightningstore.v1.span_pb2 import AddSpansRequest


def read(kind: type[Message], request: Any) -> Any:
    """Return the message of a request."""
    return kind.FromString(serialised(json.dumps(request).encode(), kind))


def rollout(**fields: Any) -> dict[str, Any]:
    return {"rollouts": [{"inputJson": "e30="}, fields]}


def error_of(kind: type[Message], request: Any) -> FieldInvalid:
    """Return the error that a request is refused with."""
    with pytest.raises(FieldInvalid) as caught:
        read(kind, request)
    return caught.value


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("e30=", b"{}"),
        ("e30", b"{}"),
        ("", b""),
        ("_-8=", b"\xff\xef"),
        ("/+8", b"\xff\xef"),
        ("e3\n0=\n", b"{}"),
        (None, b""),
    ],
)
def test_base64_of_either_alphabet_with_or_without_padding(text: str | None, data: bytes) -> None:
    assert read(EnqueueRolloutsRequest, rollout(inputJson=text)).rollouts[1].input_json == data


SPAN = {"attributes": [{"key": "k", "value": {"arrayValue": {"values": [{"bytesValue": "{}"}]}}}]}


@pytest.mark.parametrize(
    ("kind", "request_", "field"),
    [
        (EnqueueRolloutsRequest, rollout(inputJson="{}"), "rollouts[1].inputJson"),
        (EnqueueRolloutsRequest, rollout(input_json="é"), "rollouts[1].input_json"),
        (EnqueueRolloutsRequest, rollout(inputJson="e"), "rollouts.inputJson"),
        (EnqueueRolloutsRequest, rollout(metadataJson="!!!"), "rollouts[1].metadataJson"),
        (EnqueueRolloutsRequest, rollout(metadataJson={"a": 1}), "rollouts[1].metadataJson"),
        (EnqueueRolloutsRequest, rollout(metadataJson=["a"]), "rollouts[1].metadataJson"),
        (EnqueueRolloutsRequest, rollout(metadataJson=5), "rollouts[1].metadataJson"),
        (
            AddResourcesRequest,
            {"resources": {"weights": {"custom": {"valueJson": "{}"}}}},
            "resources['weights'].custom.valueJson",
        ),
        (
            AddSpansRequest,
            {"batch": {"spans": [SPAN]}},
            "batch.spans[0].attributes[0].value.arrayValue.values[0].bytesValue",
        ),
    ],
)
def test_bytes_that_are_not_base64_are_refused(
    kind: type[Message], request_: Any, field: str
) -> None:
    error = error_of(kind, request_)
    assert error.metadata["field"] == field
    assert "base64" in error.message


@pytest.mark.parametrize(
    ("kind", "request_", "field"),
    [
        (
            EnqueueRolloutsRequest,
            rollout(config={"timeout": "5"}),
            "rollouts[1].config.timeout",
        ),
        (EnqueueRolloutsRequest, rollout(mode="NONE"), "rollouts[1].mode"),
        (EnqueueRolloutsRequest, rollout(labels=[]), "rollouts[1].labels"),
        (EnqueueRolloutsRequest, {"rollouts": {"inputJson": "e30="}}, "rollouts"),
        (AddResourcesRequest, {"resources": [{"custom": {"valueJson": "e30="}}]}, "resources"),
        (
            UpdateAttemptRequest,
            {"attempt": {"lastHeartbeatTime": "now"}},
            "attempt.lastHeartbeatTime",
        ),
    ],
)
def test_the_path_of_an_error_ends_with_its_field(
    kind: type[Message], request_: Any, field: str
) -> None:
    assert error_of(kind, request_).metadata["field"] == field


def test_values_that_nest_too_deep_are_refused() -> None:
    value: dict[str, Any] = {"bytesValue": "e30="}
    for _ in range(300):
        value = {"arrayValue": {"values": [value]}}
    request = {"batch": {"spans": [{"attributes": [{"key": "k", "value": value}]}]}}
    with pytest.raises(StoreError):
        read(AddSpansRequest, request)
