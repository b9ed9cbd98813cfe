"""What `enqueue_rollouts` takes, and what it says about what it does not take."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from lightningstore.client import LightningStore, RolloutConfig, RolloutSpec


@dataclasses.dataclass
class Task:
    question: int = 1


@pytest.mark.parametrize(
    ("specs", "why"),
    [
        ([Task()], r"rollouts\[0\]: a rollout must be a RolloutSpec or a mapping, not Task"),
        (["x"], r"rollouts\[0\]: a rollout must be a RolloutSpec or a mapping, not str"),
        ([("input", 1)], r"rollouts\[0\]: .* not tuple"),
        ({"input": 1}, "specs must be a list of RolloutSpec objects or mappings, not dict"),
        (RolloutSpec(1), "specs must be a list .* not RolloutSpec; enqueue_rollout adds one"),
        ("text", "specs must be a list .* not str"),
        (None, "specs must be a list .* not NoneType"),
        ([{"config": {}}], r"with 'input' .*, not one with \['config'\]"),
        ([{"input": 1, 2: 3}], r"not one with \['2', 'input'\]"),
        ([{"input": 1, "config": {"retries": 3}}], "config has no retries: its fields are"),
        ([{"input": 1, "config": 3}], "config must be a RolloutConfig or a mapping, not int"),
        ([{"input": 1, "priority": "high"}], "priority must be an int, not str"),
        ([{"input": 1, "group_id": 7}], "group_id must be a str, not int"),
        ([{"input": 1, "mode": object()}], 'mode must be None, "train", "val" or "test"'),
    ],
)
def test_what_is_no_list_of_rollouts_is_refused_with_what_would_be_right(
    specs: Any, why: str
) -> None:
    with LightningStore("127.0.0.1:1") as store, pytest.raises(TypeError, match=why):
        store.enqueue_rollouts(specs)


def test_config_may_be_a_mapping() -> None:
    config = {"max_attempts": 3, "retry_condition": ["failed"]}
    spec = RolloutSpec.of({"input": Task(), "config": config})
    right = RolloutSpec(Task(), config=RolloutConfig(max_attempts=3, retry_condition=["failed"]))
    assert spec.to_message() == right.to_message()
