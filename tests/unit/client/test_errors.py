from __future__ import annotations

import pickle

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from lightningstore.client import (
    DataLossError,
    DeadlineExceededError,
    FieldViolation,
    InternalError,
    InvalidArgumentError,
    LightningStoreError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    UnimplementedError,
    errors,
)

from .fakes import rich


def test_every_code_but_the_vague_ones_has_a_class() -> None:
    vague = {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN}
    assert set(errors._CLASSES) == set(grpc.StatusCode) - vague
    for code, kind in errors._CLASSES.items():
        assert kind.code is code
        assert kind.__name__ in (errors.__doc__ or "")


def test_rich_status_is_read_from_the_trailers() -> None:
    code, text, trailers = rich(
        grpc.StatusCode.NOT_FOUND, "ERROR_REASON_ROLLOUT_NOT_FOUND", rolloutId="ro-1"
    )
    error = errors.from_ending(code, text, trailers)
    assert type(error) is NotFoundError
    assert error.reason == "ERROR_REASON_ROLLOUT_NOT_FOUND"
    assert error.metadata == {"rolloutId": "ro-1"}
    assert error.retry_delay is None
    assert str(error) == "NOT_FOUND (ROLLOUT_NOT_FOUND): NOT_FOUND it is"


def test_retry_delay_is_read() -> None:
    ending = rich(grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_BUSY", retry=0.25)
    error = errors.from_ending(*ending)
    assert type(error) is ResourceExhaustedError
    assert error.retry_delay == 0.25


def test_field_violations_are_read() -> None:
    request = error_details_pb2.BadRequest()
    request.field_violations.add(field="items[3].mode", description="unknown")
    status = status_pb2.Status(code=3, message="bad")
    status.details.add().Pack(request)
    error = errors.from_status(status)
    assert type(error) is InvalidArgumentError
    assert error.field_violations == (FieldViolation("items[3].mode", "unknown"),)


def test_details_that_cannot_be_read_hide_nothing() -> None:
    ending = (grpc.StatusCode.NOT_FOUND, "gone", ((errors.DETAILS_KEY, b"\xff\xff"),))
    error = errors.from_ending(*ending)
    assert type(error) is NotFoundError
    assert error.message == "gone"
    status = status_pb2.Status(code=5, message="gone")
    detail = status.details.add()
    detail.Pack(error_details_pb2.ErrorInfo(reason="R"))
    broken = status.details.add(type_url="type.googleapis.com/google.rpc.RetryInfo", value=b"\xff")
    assert broken.value
    assert errors.from_status(status).reason == "R"


def test_status_without_details_and_unknown_codes() -> None:
    error = errors.from_ending(grpc.StatusCode.DEADLINE_EXCEEDED, "late", None)
    assert type(error) is DeadlineExceededError
    assert (error.reason, error.metadata, error.field_violations) == ("", {}, ())
    unknown = errors.from_status(status_pb2.Status(code=99, message="?"))
    assert type(unknown) is LightningStoreError
    assert unknown.code is grpc.StatusCode.UNKNOWN


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.INTERNAL, "Received RST_STREAM with error code 2"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Stream removed (RST_STREAM with error code 11)"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Error in HTTP transport completing operation: x"),
        (grpc.StatusCode.UNKNOWN, "No status received"),
    ],
)
def test_a_broken_connection_is_unavailable_whatever_grpc_calls_it(
    code: grpc.StatusCode, text: str
) -> None:
    assert type(errors.from_ending(code, text, ())) is UnavailableError
    _, _, trailers = rich(code, "ERROR_REASON_BUSY")
    assert errors.from_ending(code, text, trailers).code is code  # the server's own words


def test_what_this_side_finds_too_large_stays_so() -> None:
    text = "CLIENT: Received message larger than max (6 vs. 4)"
    error = errors.from_ending(grpc.StatusCode.RESOURCE_EXHAUSTED, text, ())
    assert type(error) is ResourceExhaustedError


def test_a_call_that_the_server_lacks_tells_that_it_is_older() -> None:
    error = errors.from_ending(grpc.StatusCode.UNIMPLEMENTED, "Method not found!", ())
    assert type(error) is UnimplementedError
    assert "older than this client" in error.message
    assert "Method not found!" in error.message


def test_a_defect_of_the_server_is_internal() -> None:
    ending = rich(grpc.StatusCode.INTERNAL, "ERROR_REASON_INTERNAL", errorId="abc")
    error = errors.from_ending(*ending)
    assert type(error) is InternalError
    assert error.metadata["errorId"] == "abc"


def test_a_damaged_record_is_a_loss_of_data() -> None:
    ending = rich(grpc.StatusCode.DATA_LOSS, "ERROR_REASON_DATA_DAMAGED", rolloutId="ro-1")
    error = errors.from_ending(*ending)
    assert type(error) is DataLossError
    assert error.metadata["rolloutId"] == "ro-1"


def test_errors_survive_pickling() -> None:
    error = errors.from_ending(*rich(grpc.StatusCode.NOT_FOUND, "R", retry=1.0, a="b"))
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert back.__dict__ == error.__dict__
    assert str(back) == str(error)
