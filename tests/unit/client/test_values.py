from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from lightningstore.client import (
    LLM,
    Attempt,
    AttemptStatus,
    CustomResource,
    Failure,
    Page,
    PromptTemplate,
    ProxyLLM,
    RawJSON,
    Resources,
    RetryBackoff,
    Rollout,
    RolloutConfig,
    RolloutMode,
    RolloutSpec,
    RolloutStatus,
    Span,
    Stop,
    StopReason,
    Worker,
    WorkerStatus,
)
from lightningstore.client._calls import control, series
from lightningstore.client._values import convert
from lightningstore.client._values.resources import from_resource, to_resource
from lightningstore.client.values import UNSET, SpanEvent, SpanException, SpanLink, SpanStatus
from lightningstore.v1 import attempt_pb2, resources_pb2, rollout_pb2, span_pb2, worker_pb2
from opentelemetry.proto.trace.v1 import trace_pb2


def test_json_keeps_integers_text_and_order() -> None:
    value = {"b": 2**60 + 1, "a": "ü\u2028", "c": [1, 1.5, None, True]}
    text = convert.to_json(value)
    assert text == '{"b":1152921504606846977,"a":"ü\u2028","c":[1,1.5,null,true]}'.encode()
    assert convert.from_json(text) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {"x": float("-inf")}])
def test_json_refuses_what_other_languages_cannot_read(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        convert.to_json(value)


@pytest.mark.parametrize("value", [{1, 2}, b"bytes", object()])
def test_json_refuses_what_is_no_json(value: object) -> None:
    with pytest.raises(TypeError):
        convert.to_json(value)


def test_raw_json_goes_out_as_it_is() -> None:
    assert RolloutSpec(RawJSON(b'{ "a": 1.0 }')).to_message().input_json == b'{ "a": 1.0 }'
    assert RolloutSpec(1, metadata=RawJSON(b"[]")).to_message().metadata_json == b"[]"


def test_metadata_must_be_a_mapping() -> None:
    with pytest.raises(TypeError, match="mapping"):
        RolloutSpec(1, metadata=[1]).to_message()  # type: ignore[arg-type]


def test_empty_metadata_is_left_out_and_read_as_empty_dict() -> None:
    assert RolloutSpec(1, metadata={}).to_message().metadata_json == b""
    assert Rollout(rollout_pb2.Rollout()).metadata == {}


@pytest.mark.parametrize("seconds", [0.0, 0.25, 1.5, 90.000000001, -1.5, 1e9])
def test_durations_survive_the_way_there_and_back(seconds: float) -> None:
    assert convert.from_duration(convert.to_duration(seconds)) == seconds


@pytest.mark.parametrize("seconds", [float("nan"), float("inf")])
def test_durations_are_finite(seconds: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        convert.to_duration(seconds)


@pytest.mark.parametrize("seconds", [1e300, -1e300, 2.0**63, 2**70])
def test_seconds_that_no_duration_holds_are_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="must be below 2"):
        convert.to_duration(seconds)


def test_times_are_utc_whatever_the_zone_they_came_in() -> None:
    east = datetime(2026, 1, 15, 10, 30, 45, 123456, timezone(timedelta(hours=2)))
    back = convert.from_timestamp(convert.to_timestamp(east))
    assert back == east
    assert back.tzinfo is UTC
    before = datetime(1969, 12, 31, 23, 59, 59, 500000, UTC)
    assert convert.from_timestamp(convert.to_timestamp(before)) == before


def test_naive_times_are_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        convert.to_timestamp(datetime(2026, 1, 15))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("failure", "it broke", "failure must be a Failure or None, not str"),
        (
            "last_heartbeat_time",
            5,
            "last_heartbeat_time: must be a datetime with a time zone, not int",
        ),
    ],
)
def test_a_value_of_a_wrong_type_clears_no_field_of_an_attempt(
    field: str, value: Any, wanted: str
) -> None:
    names = (
        "status",
        "failure",
        "worker_id",
        "last_heartbeat_time",
        "metadata",
        "reward",
        "scores",
    )
    fields = {**dict.fromkeys(names, UNSET), field: value}
    with pytest.raises(TypeError, match=wanted):
        control.update_attempt("ro-1", "at-1", fields, None, None)


def test_a_time_of_a_series_is_a_datetime() -> None:
    given: dict[str, Any] = {"score_name": "", "numbers": (0, 0), "filters": {}, "start_time": None}
    with pytest.raises(TypeError, match="end_time: must be a datetime with a time zone, not float"):
        series.get_series("reward", "completion_time", 10, **given, end_time=1.5)


def test_statuses_are_their_words() -> None:
    rollout = Rollout(rollout_pb2.Rollout(status=rollout_pb2.ROLLOUT_STATUS_QUEUING))
    assert rollout.status is RolloutStatus.QUEUING
    assert rollout.status == "queuing"
    assert not rollout.is_finished
    assert Rollout(rollout_pb2.Rollout(status=6)).is_finished  # type: ignore[arg-type]


def test_values_of_a_newer_server_do_not_break_views() -> None:
    rollout = Rollout(rollout_pb2.Rollout(status=77, mode=78))  # type: ignore[arg-type]
    assert rollout.status is RolloutStatus.UNRECOGNIZED
    assert rollout.mode is RolloutMode.UNRECOGNIZED
    assert rollout.message.status == 77
    assert not rollout.is_finished
    attempt = Attempt(attempt_pb2.Attempt(status=79))  # type: ignore[arg-type]
    assert attempt.status is AttemptStatus.UNRECOGNIZED
    worker = Worker(worker_pb2.Worker(status=80))  # type: ignore[arg-type]
    assert worker.status is WorkerStatus.UNRECOGNIZED
    stop = Stop.from_message(attempt_pb2.Stop(reason=81))  # type: ignore[arg-type]
    assert stop.reason is StopReason.UNRECOGNIZED
    config = rollout_pb2.RolloutConfig(retry_condition=[4, 82])  # type: ignore[list-item]
    assert RolloutConfig.from_message(config).retry_condition == ("failed", "unrecognized")
    assert isinstance(from_resource(resources_pb2.Resource()), resources_pb2.Resource)


def test_unknown_words_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="train, val, test"):
        RolloutSpec(1, mode="training").to_message()
    assert RolloutSpec(1, mode=79).to_message().mode == 79


def test_a_string_is_no_list_of_words() -> None:
    with pytest.raises(TypeError, match="not a single string"):
        RolloutConfig(retry_condition="failed")
    assert RolloutConfig(retry_condition=["failed"]) == RolloutConfig(retry_condition=("failed",))
    with pytest.raises(TypeError, match="not a single string"):
        convert.ids("ro-1", "rollout_ids")


def test_specs_are_taken_as_mappings() -> None:
    spec = RolloutSpec.of({"input": [1], "mode": "val", "priority": 3})
    assert spec == RolloutSpec([1], "val", 3)
    with pytest.raises(TypeError, match="inputs"):
        RolloutSpec.of({"inputs": 1})
    with pytest.raises(TypeError, match="'input'"):
        RolloutSpec.of({"mode": "val"})


def test_config_survives_the_way_there_and_back() -> None:
    config = RolloutConfig(
        timeout=1.5,
        unresponsive_timeout=0.25,
        max_attempts=3,
        retry_condition=(AttemptStatus.FAILED, AttemptStatus.TIMEOUT),
        retry_backoff=RetryBackoff(initial_delay=1.0, factor=2.0, max_delay=60.0, jitter=0.1),
    )
    assert RolloutConfig.from_message(config.to_message()) == config
    assert RolloutConfig.from_message(rollout_pb2.RolloutConfig()) == RolloutConfig()


def test_failure_tells_unset_from_false() -> None:
    for retryable in (None, True, False):
        failure = Failure("ValueError", "no", retryable)
        assert Failure.from_message(failure.to_message()) == failure


@pytest.mark.parametrize(
    "resource",
    [
        LLM("http://host/v1", "m", "secret", {"temperature": 0.5}),
        ProxyLLM("http://host/v1", "m"),
        PromptTemplate("Hello {name}"),
        CustomResource("weights", [[0.5, 1]]),
    ],
)
def test_resources_survive_the_way_there_and_back(resource: object) -> None:
    back = from_resource(to_resource(resource))
    assert back == resource
    assert type(back) is type(resource)


def test_any_json_value_is_a_custom_resource() -> None:
    assert from_resource(to_resource({"a": 1})) == CustomResource("", {"a": 1})


def test_keys_are_not_shown() -> None:
    assert "secret" not in repr(LLM("http://host", api_key="secret"))


@pytest.mark.parametrize(
    ("endpoint", "routed"),
    [
        ("http://h:1/v1", "http://h:1/rollout/r/attempt/a/v1"),
        ("http://h:1/v1/", "http://h:1/rollout/r/attempt/a/v1"),
        ("http://h:1", "http://h:1/rollout/r/attempt/a"),
        ("http://h:1/api/v1", "http://h:1/api/rollout/r/attempt/a/v1"),
    ],
)
def test_proxy_routes_per_attempt(endpoint: str, routed: str) -> None:
    llm = ProxyLLM(endpoint, "m", "k", {"t": 1}).routed("r", "a")
    assert llm == LLM(routed, "m", "k", {"t": 1})
    assert type(llm) is LLM


def test_views_compare_by_content_and_survive_pickling() -> None:
    message = rollout_pb2.Rollout(rollout_id="ro-1", input_json=b'{"a":1}')
    message.latest_attempt.attempt_id = "at-1"
    rollout = Rollout(message)
    assert rollout.input == {"a": 1}
    assert rollout.attempt.attempt_id == "at-1"
    back = pickle.loads(pickle.dumps(rollout))
    assert back == rollout
    assert back.input == {"a": 1}
    assert rollout != Rollout(rollout_pb2.Rollout())
    assert rollout != message
    assert repr(Rollout(rollout_pb2.Rollout(rollout_id="x", status=1))) == (  # type: ignore[arg-type]
        "Rollout(rollout_id='x', status='queuing', latest_attempt_id='')"
    )


def test_a_rollout_without_claim_has_no_attempt() -> None:
    rollout = Rollout(rollout_pb2.Rollout(rollout_id="ro-1"))
    assert rollout.latest_attempt is None
    with pytest.raises(LookupError, match="ro-1"):
        _ = rollout.attempt


def test_resources_are_a_mapping_of_sorts() -> None:
    message = resources_pb2.Resources(resources_id="rs-1", version=2)
    message.resources["w"].custom.value_json = b"[1]"
    resources = Resources(message)
    assert resources["w"] == CustomResource("", [1])
    assert "w" in resources
    assert "v" not in resources


def test_pages_are_lists() -> None:
    page = Page([1, 2], "token", 7)
    assert page == [1, 2]
    assert (page.next_page_token, page.total_size) == ("token", 7)


def make_span() -> Span:
    batch = span_pb2.SpanBatch(rollout_id="ro-1", attempt_id="at-1", sequence_ids=[4, 5])
    batch.resource.attributes.add(key="service.name").value.string_value = "agent"
    batch.spans.add(name="other", span_id=bytes(8))
    span = batch.spans.add(name="call", trace_id=bytes(range(16)), span_id=bytes(range(8)))
    span.start_time_unix_nano = 5
    span.attributes.add(key="n").value.int_value = 3
    tokens = span.attributes.add(key="tokens").value.array_value
    for number in (1, 2):
        tokens.values.add().int_value = number
    pairs = span.attributes.add(key="map").value.kvlist_value
    pairs.values.add(key="k").value.bool_value = True
    span.attributes.add(key="nothing")
    return Span(span, batch, 5)


def test_spans_show_otlp_as_python_values() -> None:
    span = make_span()
    assert (span.rollout_id, span.attempt_id, span.sequence_id) == ("ro-1", "at-1", 5)
    assert span.span_id == "0001020304050607"
    assert span.trace_id == bytes(range(16)).hex()
    assert span.parent_span_id == ""
    assert (span.start_time_ns, span.end_time_ns) == (5, 0)
    assert span.attributes == {"n": 3, "tokens": [1, 2], "map": {"k": True}, "nothing": None}
    assert span.resource_attributes == {"service.name": "agent"}
    assert span.otlp.name == span.name == "call"


def test_a_span_shows_how_it_ended_and_what_happened_meanwhile() -> None:
    otlp = trace_pb2.Span(name="call")
    assert Span(otlp, span_pb2.SpanBatch(), 1).status == ("unset", "")
    assert Span(otlp, span_pb2.SpanBatch(), 1).events == []
    otlp.status.code, otlp.status.message = 2, "no answer"
    event = otlp.events.add(name="exception", time_unix_nano=7)
    for part, text in (("type", "ValueError"), ("message", "no"), ("stacktrace", "Traceback ...")):
        event.attributes.add(key=f"exception.{part}").value.string_value = text
    otlp.events.add(name="retry", time_unix_nano=8).attributes.add(key="n").value.int_value = 3
    otlp.links.add(trace_id=bytes(16), span_id=bytes(8))
    span = pickle.loads(pickle.dumps(Span(otlp, span_pb2.SpanBatch(), 1)))
    assert span.status == SpanStatus("error", "no answer")
    assert span.events[1] == SpanEvent("retry", 8, {"n": 3})
    assert span.exceptions == [SpanException("ValueError", "no", "Traceback ...", 7)]
    assert span.links == [SpanLink("0" * 32, "0" * 16, {})]


def test_a_pickled_span_takes_its_resource_along_and_no_other_span() -> None:
    span = make_span()
    back = pickle.loads(pickle.dumps(span))
    assert back == span
    assert back.resource_attributes == {"service.name": "agent"}
    assert not back._batch.spans


def test_payloads_that_an_answer_left_out_are_not_taken_for_empty_ones() -> None:
    rollout = Rollout(rollout_pb2.Rollout(rollout_id="ro-1", payloads_omitted=True))
    for field in ("input", "metadata"):
        with pytest.raises(LookupError, match="payloads of rollout ro-1: get_rollout returns them"):
            getattr(rollout, field)
    rollout.fill(Rollout(rollout_pb2.Rollout(input_json=b"[1]", metadata_json=b'{"a":2}')))
    assert (rollout.payloads_omitted, rollout.input, rollout.metadata) == (False, [1], {"a": 2})
