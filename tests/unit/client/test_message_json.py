"""Messages as JSON values: every field, words for enums, numbers for integers, texts for times."""

from __future__ import annotations

import json

from lightningstore.client._datasets import rows
from lightningstore.client.message_json import message_to_json
from lightningstore.v1 import attempt_pb2, resources_pb2, rollout_pb2, statistics_pb2, triplet_pb2


def test_every_field_is_there_though_nothing_is_set() -> None:
    for kind in (rollout_pb2.Rollout, attempt_pb2.Attempt, statistics_pb2.GetStatisticsResponse):
        names = [field.name.removesuffix("_json") for field in kind.DESCRIPTOR.fields]
        assert list(message_to_json(kind())) == names
    empty = message_to_json(rollout_pb2.Rollout())
    assert (empty["input"], empty["metadata"], empty["group_id"], empty["mode"]) == (
        None,
        {},
        "",
        None,
    )
    assert (empty["latest_attempt"], empty["end_time"], empty["priority"]) == (None, None, 0)
    assert empty["completion_number"] == 0


def test_enums_are_words_wherever_they_are() -> None:
    rollout = rollout_pb2.Rollout(
        status=rollout_pb2.ROLLOUT_STATUS_RUNNING, mode=rollout_pb2.ROLLOUT_MODE_VAL
    )
    rollout.config.retry_condition.append(attempt_pb2.ATTEMPT_STATUS_TIMEOUT)
    rollout.latest_attempt.status = attempt_pb2.ATTEMPT_STATUS_PREPARING
    found = message_to_json(rollout)
    assert (found["status"], found["mode"]) == ("running", "val")
    assert found["config"]["retry_condition"] == ["timeout"]
    assert found["latest_attempt"]["status"] == "preparing"
    template = resources_pb2.Resource()
    template.prompt_template.engine = resources_pb2.TEMPLATE_ENGINE_F_STRING
    assert message_to_json(template)["prompt_template"]["engine"] == "f_string"
    info = statistics_pb2.GetServerInfoResponse(durability=statistics_pb2.DURABILITY_FULL)
    assert message_to_json(info)["durability"] == "full"


def test_the_number_of_an_enum_value_of_a_newer_server_stays() -> None:
    assert message_to_json(rollout_pb2.Rollout(status=99))["status"] == 99  # type: ignore[arg-type]


def test_numbers_times_and_durations() -> None:
    rollout = rollout_pb2.Rollout(completion_number=1 << 60)
    rollout.start_time.FromJsonString("2026-01-02T03:04:05.678Z")
    rollout.config.timeout.FromSeconds(90)
    found = message_to_json(rollout)
    assert found["completion_number"] == 1 << 60
    assert found["start_time"] == "2026-01-02T03:04:05.678Z"
    assert (found["config"]["timeout"], found["config"]["unresponsive_timeout"]) == ("90s", None)


def test_json_fields_hold_their_values_and_odd_numbers_stay_text() -> None:
    digits = "8" * 5001
    shown = message_to_json(
        rollout_pb2.Rollout(input_json=f'{{"n": {digits}, "m": 7, "x": 1e999}}'.encode())
    )
    assert shown["input"] == {"n": digits, "m": 7, "x": "1e999"}


def test_a_map_whose_key_ends_in_json_is_left_alone() -> None:
    resources = resources_pb2.Resources()
    resources.resources["w_json"].custom.value_json = b"[1]"
    found = message_to_json(resources)["resources"]
    assert found["w_json"]["custom"] == {"type": "", "value": [1]}
    assert found["w_json"]["llm"] is None


def test_numbers_that_json_does_not_have_are_null() -> None:
    triplet = triplet_pb2.Triplet()
    triplet.response.logprobs.extend([-0.5, float("-inf"), float("nan")])
    found = message_to_json(triplet)["response"]["logprobs"]
    assert json.loads(json.dumps(found, allow_nan=False)) == [-0.5, None, None]


def test_an_export_writes_attempts_and_configurations_in_the_same_way() -> None:
    attempt = attempt_pb2.Attempt(attempt_id="at-1", status=attempt_pb2.ATTEMPT_STATUS_FAILED)
    attempt.failure.type = "ValueError"
    assert rows.attempt_to_json(attempt).items() <= message_to_json(attempt).items()
    assert rows.attempt_to_json(attempt)["failure"] == {
        "type": "ValueError",
        "message": "",
        "retryable": None,
    }
    config = rollout_pb2.RolloutConfig(max_attempts=2)
    assert rows.config_to_json(config) == {
        "timeout": None,
        "unresponsive_timeout": None,
        "max_attempts": 2,
        "retry_condition": [],
        "retry_backoff": None,
    }
