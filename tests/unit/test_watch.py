"""What --watch takes for a change, what workers are shown as, and which stack traces a trace shows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from lightningstore.client.connection import protocol_hint, resolve
from lightningstore.service.cli import trace
from lightningstore.service.cli.lists import _worker_status
from lightningstore.service.cli.output import Listing, Output
from lightningstore.service.cli.rollouts import COLUMNS, _row
from lightningstore.service.cli.watch import Changes, keyed
from lightningstore.service.traces.timeline import read
from lightningstore.v1 import attempt_pb2, rollout_pb2, worker_pb2
from opentelemetry.proto.trace.v1.trace_pb2 import Span

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def listing(seconds: float, status: str = "RUNNING") -> Listing:
    """A list of one rollout whose attempt has run for some seconds."""
    attempt = attempt_pb2.Attempt(attempt_id="at-1")
    attempt.start_time.FromDatetime(NOW)
    number = rollout_pb2.RolloutStatus.Value(f"ROLLOUT_STATUS_{status}")
    rollout = rollout_pb2.Rollout(
        rollout_id="ro-1", status=number, latest_attempt=attempt, start_time=attempt.start_time
    )
    row = _row(rollout, None, NOW + timedelta(seconds=seconds))
    return Listing("rollout", COLUMNS, [row], [{}])


@pytest.mark.parametrize("form", [None, "wide"])
def test_time_that_goes_by_is_no_change(form: str | None) -> None:
    output, changes = Output({"format": form}), Changes()
    first = list(changes.of(keyed(output, listing(1))))
    assert len(first) == (2 if form else 1)
    assert list(changes.of(keyed(output, listing(2)))) == []
    (changed,) = changes.of(keyed(output, listing(100, "SUCCEEDED")))
    assert "succeeded" in changed


@pytest.mark.parametrize(
    ("status", "ago", "shown"),
    [("IDLE", 60, "idle"), ("IDLE", 300, "gone"), ("UNKNOWN", 300, "gone"), ("BUSY", 300, "busy")],
)
def test_worker_that_was_not_seen_for_minutes_is_gone(status: str, ago: int, shown: str) -> None:
    worker = worker_pb2.Worker(status=worker_pb2.WorkerStatus.Value(f"WORKER_STATUS_{status}"))
    worker.last_heartbeat_time.FromDatetime(NOW - timedelta(seconds=ago))
    cell = _worker_status(worker, NOW)
    assert (cell.text, cell.raw) == (shown, status.lower())
    worker.last_dequeue_time.FromDatetime(NOW)
    assert _worker_status(worker, NOW).text == status.lower()


def raised(number: int, parent: int, frames: list[str]) -> tuple[int, Span]:
    """A span through which an exception passed."""
    span = Span(name=f"s{number}", trace_id=b"t" * 16, span_id=bytes([number]) * 8)
    span.parent_span_id = bytes([parent]) * 8 if parent else b""
    span.start_time_unix_nano, span.end_time_unix_nano = number, 100 - number
    span.status.code = 2  # type: ignore[assignment]
    event = span.events.add(name="exception")
    stack = "\n".join(["Traceback (most recent call last):", *frames, "ValueError: no luck"])
    for key, text in (("type", "ValueError"), ("message", "no luck"), ("stacktrace", stack)):
        event.attributes.add(key=f"exception.{key}").value.string_value = text
    return number, span


def test_stack_trace_is_shown_once_by_the_innermost_span() -> None:
    inner = ["  File inner.py, line 1", "    fail()"]
    outer = ["  File outer.py, line 1", "    inner()"]
    shown = read([raised(1, 0, outer + inner), raised(2, 1, outer + inner), raised(3, 2, inner)])
    lines = list(trace._tree("title", [], shown, None))
    assert sum("Traceback" in line for line in lines) == 1
    assert sum("ValueError: no luck" in line and "s" in line for line in lines) >= 3
    at = next(n for n, line in enumerate(lines) if "Traceback" in line)
    assert "s3" in lines[at - 1]


def test_line_breaks_stay_what_they_are_in_json() -> None:
    number, span = raised(1, 0, [])
    span.attributes.add(key="k").value.string_value = "one\ntwo"
    (line,) = read([(number, span)]).lines
    assert trace._plain(line)["details"]["k"] == "one\ntwo"
    assert trace._plain(line)["exceptions"][0]["stack_trace"].count("\n") == 1


@pytest.mark.parametrize(
    ("details", "hint"),
    [
        ("x WRONG_VERSION_NUMBER x", "does not use TLS"),
        ("Trying to connect an http1.x server", "name the gRPC port"),
        ("CERTIFICATE_VERIFY_FAILED: self signed", "is not trusted"),
        ("Expected SETTINGS frame as the first frame", "write https://h:1"),
        ("Connection refused", ""),
    ],
)
def test_error_of_another_protocol_says_what_would_be_right(details: str, hint: str) -> None:
    found = protocol_hint("h:1", details)
    assert hint in found
    assert bool(found) == bool(hint)


@pytest.mark.parametrize(
    "address", ["localhost", "https://store", "[::1]", "10.0.0.7", "https://h/"]
)
def test_address_without_a_port_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="has no port: "):
        resolve(address)


@pytest.mark.parametrize("address", ["h:1", "https://h:1", "[::1]:1", "dns:///h", "unix:///tmp/s"])
def test_other_addresses_are_left_to_grpc(address: str) -> None:
    assert resolve(address) == address
