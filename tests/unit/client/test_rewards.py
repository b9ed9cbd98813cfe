"""Writing rewards and finding the last one; templates that fill themselves in; routes of a proxy."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
from lightningstore.client import (
    UNSET,
    InvalidArgumentError,
    LightningStore,
    PromptTemplate,
    ProxyLLM,
    Span,
    emit_reward,
    find_final_reward,
)
from lightningstore.v1.attempt_pb2 import REWARD_SOURCE_REPORTED
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.traces import span

from .runners import Start, results


def emitted(*arguments: Any, **options: Any) -> dict[str, Any]:
    """Return the attributes of the span that emit_reward writes."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    emit_reward(*arguments, tracer=provider.get_tracer("t"), **options)
    (written,) = exporter.get_finished_spans()
    assert written.name == "agentlightning.annotation"
    return dict(written.attributes or {})


def test_a_number_is_the_primary_dimension() -> None:
    assert emitted(1) == {
        "agentlightning.reward.0.name": "primary",
        "agentlightning.reward.0.value": 1.0,
    }


def test_the_primary_dimension_goes_first() -> None:
    written = emitted({"style": 0.5, "right": 1}, primary_key="right")
    assert written == {
        "agentlightning.reward.0.name": "right",
        "agentlightning.reward.0.value": 1.0,
        "agentlightning.reward.1.name": "style",
        "agentlightning.reward.1.value": 0.5,
    }
    assert emitted({"only": 2})["agentlightning.reward.0.name"] == "only"


@pytest.mark.parametrize(
    ("arguments", "options", "error", "text"),
    [
        (["1"], {}, TypeError, "number"),
        ([None], {}, TypeError, "number"),
        ([float("nan")], {}, ValueError, "finite"),
        ([{}], {}, ValueError, "at least one"),
        ([{"a": 1, "b": 2}], {}, ValueError, "primary_key"),
        ([{"a": 1}], {"primary_key": "b"}, ValueError, "must be one of a"),
        ([1], {"primary_key": "b"}, ValueError, "mapping"),
    ],
)
def test_wrong_rewards_are_told(
    arguments: list[Any], options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        emitted(*arguments, **options)


def spans(*described: tuple[int, str, dict[str, Any]]) -> list[Span]:
    batch = SpanBatch(rollout_id="r", attempt_id="a")
    return [
        Span(span(str(at), name, "", (1, 2), attributes), batch, number)
        for at, (number, name, attributes) in enumerate(described)
    ]


def test_the_final_reward_is_the_last_by_sequence_id() -> None:
    found = spans(
        (9, "agentlightning.annotation", {"agentlightning.reward.0.value": 0.5}),
        (3, "agentlightning.annotation", {"agentlightning.reward.0.value": 1.0}),
        (12, "agentlightning.annotation", {"agentlightning.reward.0.value": "bad"}),
        (11, "x", {"agentops.task.output": '{"type": "reward", "value": null}'}),
    )
    assert find_final_reward(found) == 0.5
    assert find_final_reward(reversed(found)) == 0.5
    assert find_final_reward([]) is None


@pytest.mark.parametrize(
    ("name", "attributes", "reward"),
    [
        ("agentlightning.annotation", {"reward": 2}, 2.0),
        ("agentlightning.reward", {"reward": 2}, 2.0),
        ("x", {"reward": 2}, None),
        ("x", {"agentlightning.reward": 3}, 3.0),
        ("x", {"agentlightning.reward": '[{"name": "a", "value": 4}]'}, 4.0),
        ("x", {"agentlightning.reward.3.value": 5, "agentlightning.reward.10.value": 6}, 5.0),
        ("x", {"agentops.entity.output": '{"type": "reward", "value": 7}'}, 7.0),
        ("x", {"agentops.entity.output": {"type": "reward", "value": 8}}, 8.0),
        ("x", {"agentops.entity.output": '["reward"]'}, None),
    ],
)
def test_rewards_are_found_wherever_they_are_written(
    name: str, attributes: dict[str, Any], reward: float | None
) -> None:
    assert find_final_reward(spans((1, name, attributes))) == reward


def test_a_reward_in_a_runner_goes_to_its_attempt(store: Any, start: Start) -> None:
    def agent(task: Any, resources: Any, tracer: Any, context: Any) -> None:
        emit_reward({"a": 1.0, "b": 2.0}, primary_key="b")

    rollout = store.enqueue_rollout({"q": 1})
    start(agent, max_rollouts=1).join()
    results(store, rollout)
    assert find_final_reward(store.query_spans(rollout.rollout_id)) == 2.0


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://h:1/v1", "http://h:1/rollout/r/attempt/a%2Fb/v1"),
        ("http://h:1/v1/", "http://h:1/rollout/r/attempt/a%2Fb/v1"),
        ("http://h:1", "http://h:1/rollout/r/attempt/a%2Fb"),
    ],
)
def test_a_proxy_has_a_base_url_an_attempt(endpoint: str, url: str) -> None:
    proxy = ProxyLLM(endpoint)
    assert proxy.base_url("r", "a/b") == url
    assert proxy.base_url() == endpoint
    for half in (("r", None), (None, "a"), ("r", "")):
        with pytest.raises(ValueError, match="both"):
            proxy.base_url(*half)


def test_f_strings_are_filled_in() -> None:
    assert PromptTemplate("{a}, {b[0]:.1f} {{x}}").format(a="Hi", b=[1.25]) == "Hi, 1.2 {x}"
    with pytest.raises(KeyError, match="a"):
        PromptTemplate("{a}").format(b=1)
    for template in ("{a.__class__}", "{a[0].__init__}", "{a._x}"):
        with pytest.raises(ValueError, match="underscore"):
            PromptTemplate(template).format(a=["x"])
    with pytest.raises(ValueError, match="must have a name"):
        PromptTemplate("{}").format(a=1)
    for template in ("{a:>9999999999}", "{a:{b}}", "{a:.99999f}"):
        with pytest.raises(ValueError, match="at most 9999"):
            PromptTemplate(template).format(a=1.5, b=10**6)


def test_jinja_is_filled_in_within_its_sandbox() -> None:
    from jinja2.exceptions import SecurityError, UndefinedError

    template = PromptTemplate("{% for x in xs %}{{ x }};{% endfor %}\n", "jinja")
    assert template.format(xs=[1, 2]) == "1;2;\n"
    with pytest.raises(UndefinedError):
        PromptTemplate("{{ missing }}", "jinja").format()
    with pytest.raises(SecurityError):
        PromptTemplate("{{ x.__class__.__mro__ }}", "jinja").format(x=1)


@pytest.mark.parametrize(("engine", "module"), [("jinja", "jinja2"), ("poml", "poml")])
def test_a_missing_library_is_named(
    engine: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"lightningstore\[{engine}\]"):
        PromptTemplate("<p>x</p>", engine).format()


def test_poml_gives_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    def poml(markup: str, context: Any, format: str) -> Any:  # noqa: A002
        return [{"speaker": "human", "content": (markup, context, format)}]

    library = types.ModuleType("poml")
    library.poml = poml  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "poml", library)
    (message,) = PromptTemplate("<p>{{x}}</p>", "poml").format(x=1)
    assert message["content"] == ("<p>{{x}}</p>", {"x": 1}, "message_dict")
    with pytest.raises(ValueError, match="tag"):
        PromptTemplate("/etc/hostname", "poml").format()


def test_a_runner_sends_the_reward_as_a_span_and_on_the_record(
    store: LightningStore, start: Start
) -> None:
    with_one, with_zero, without = (store.enqueue_rollout(n) for n in (0.5, 0, None))
    start(lambda task, *_: task, max_rollouts=3).join()
    found = results(store, with_one, with_zero, without)
    assert [r.reward for r in found] == [0.5, 0.0, None]
    for rollout in found[:2]:
        record = rollout.attempt.message
        assert record.reward_source == REWARD_SOURCE_REPORTED
        assert record.span_reward.value == record.reward


def test_a_server_that_knows_no_rewards_gets_the_report_without_one(
    store: LightningStore, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    update = LightningStore.update_attempt
    sent = []

    def older(self: LightningStore, *ids: str, **fields: Any) -> Any:
        sent.append(fields["reward"])
        if fields.pop("reward") is not UNSET:
            raise InvalidArgumentError("update_mask.paths[1]: 'reward' must be one of status")
        return update(self, *ids, **fields)

    monkeypatch.setattr(LightningStore, "update_attempt", older)
    rollout = store.enqueue_rollout(0.5)
    start(lambda task, *_: task, max_rollouts=1).join()
    (found,) = results(store, rollout)
    assert found.status == "succeeded"
    assert sent == [0.5, UNSET]
