"""Values that users have at hand as JSON: dataclasses, pydantic models, numpy scalars and arrays."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from lightningstore.client import CustomResource, LightningStore, RolloutSpec
from lightningstore.client._values.convert import to_json, to_json_object
from pydantic import BaseModel

from tests.libraries import library

from .runners import Start, results


@dataclass
class Task:
    question: str
    options: list[Any] = field(default_factory=list)
    inner: Any = None


class Model(BaseModel):
    name: str
    when: datetime | None = None
    scores: list[float] = []


class Scalar:
    """A number as numpy has them: with a dtype, and turned into Python's by `tolist`."""

    dtype = "float32"

    def __init__(self, value: Any) -> None:
        self._value = value

    def tolist(self) -> Any:
        return self._value

    def __float__(self) -> float:
        return float(self._value)


NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Task("?", [1]), {"question": "?", "options": [1], "inner": None}),
        ([Task("?", [], Task("!"))], None),
        (Model(name="m", when=NOON), {"name": "m", "when": "2026-01-02T12:00:00Z", "scores": []}),
        ({"model": Task("?", [Model(name="m")])}, None),
        (Scalar(0.5), 0.5),
        ({"array": Scalar([[1, 2], [3, 4]])}, {"array": [[1, 2], [3, 4]]}),
        (Scalar([Task("?")]), [{"question": "?", "options": [], "inner": None}]),
    ],
)
def test_common_values_are_json(value: Any, expected: Any) -> None:
    text = json.loads(to_json(value))
    assert expected is None or text == expected
    assert json.loads(RolloutSpec(value).to_message().input_json) == text
    custom = CustomResource("any", value).to_message().custom
    assert json.loads(custom.value_json) == text


def test_objects_may_be_dataclasses_and_models() -> None:
    for value in (Task("?"), Model(name="m")):
        spec = RolloutSpec(1, metadata=value)
        assert json.loads(spec.to_message().metadata_json) == json.loads(to_json(value))
    with pytest.raises(TypeError, match="metadata must be a mapping, not Scalar"):
        to_json_object(Scalar([1]), "metadata")  # type: ignore[arg-type]


def test_a_class_is_not_taken_for_its_instances() -> None:
    for kind in (Task, Model):
        with pytest.raises(TypeError, match=r"input is of type .*, which has no JSON"):
            RolloutSpec(kind).to_message()


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (Task("?", [1, {2}]), TypeError, "input['options'][1] is of type set, which has no JSON"),
        (Model(name="m", scores=[float("nan")]), ValueError, "input['scores'][0] is nan"),
        ({"a": Scalar([1.0, float("inf")])}, ValueError, "input['a'][1] is inf"),
        (Scalar(NOON), TypeError, "input is of type datetime, which has no JSON"),
    ],
)
def test_a_part_of_them_that_has_no_json_is_named(value: Any, kind: Any, text: str) -> None:
    with pytest.raises(kind) as caught:
        RolloutSpec(value).to_message()
    assert str(caught.value).startswith(text)


def test_one_that_contains_itself_is_refused() -> None:
    task = Task("?")
    task.inner = task
    with pytest.raises(ValueError, match="input: Circular"):
        RolloutSpec(task).to_message()


def test_a_model_that_cannot_be_dumped_is_named() -> None:
    class Broken:
        def model_dump(self, *, mode: str) -> dict[str, Any]:
            raise ValueError(f"no {mode} here")

    with pytest.raises(ValueError, match=r"^input\['b'\]: no json here"):
        RolloutSpec({"b": Broken()}).to_message()


def test_numpy_itself() -> None:
    numpy = library("numpy")
    value = {
        "float32": numpy.float32(0.5),
        "int64": numpy.int64(3),
        "bool": numpy.bool_(True),
        "array": numpy.arange(4).reshape(2, 2),
        "empty": numpy.array([]),
        "texts": numpy.array(["a"]),
    }
    assert json.loads(to_json(value)) == {
        "float32": 0.5,
        "int64": 3,
        "bool": True,
        "array": [[0, 1], [2, 3]],
        "empty": [],
        "texts": ["a"],
    }
    with pytest.raises(ValueError, match=r"input\['x'\]\[1\] is nan"):
        RolloutSpec({"x": numpy.array([1.0, numpy.nan])}).to_message()


def test_a_function_may_return_such_a_number(store: LightningStore, start: Start) -> None:
    rollout = store.enqueue_rollout(Task("?"), metadata=Model(name="m"))
    start(lambda *_: Scalar(0.5), max_rollouts=1).join()
    [done] = results(store, rollout)
    assert done.status.value == "succeeded"
    assert done.input["question"] == "?"
    assert done.metadata["name"] == "m"
    [span] = store.query_spans(rollout.rollout_id)
    assert span.attributes["agentlightning.reward.0.value"] == 0.5
