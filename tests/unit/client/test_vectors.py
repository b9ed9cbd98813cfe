"""The vectors of all clients, kept by this one: templates, a proxy's routes, rewards."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import pytest
from lightningstore.client import PromptTemplate, ProxyLLM, Span, emit_reward, find_final_reward
from lightningstore.v1.span_pb2 import SpanBatch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.traces import span

VECTORS = Path(__file__).parents[2] / "conformance" / "vectors"

ERRORS: dict[tuple[str, str], type[Exception] | tuple[type[Exception], ...]] = {
    ("f_string", "missing"): KeyError,
    ("f_string", "malformed"): ValueError,
    ("f_string", "refused"): ValueError,
    ("jinja", "missing"): jinja2.UndefinedError,
    ("jinja", "malformed"): jinja2.TemplateSyntaxError,
    ("jinja", "refused"): (jinja2.sandbox.SecurityError, jinja2.UndefinedError, TypeError),
    ("poml", "no_library"): ImportError,
}


def cases(file: str, key: str) -> list[Any]:
    """Return the cases of a file, each under its name."""
    found = json.loads((VECTORS / file).read_text(encoding="utf-8"))[key]
    return [pytest.param(c, id=f"{c.get('engine', '')} {c['name']}".strip()) for c in found]


@pytest.mark.parametrize("case", cases("templates.json", "cases"))
def test_templates(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "poml", None)
    template = PromptTemplate(case["template"], case["engine"])
    text = case.get("text", case.get("python"))
    if text is not None:
        assert template.format(**case["variables"]) == text
        return
    with pytest.raises(ERRORS[case["engine"], case["error"]], match=case.get("names")):
        template.format(**case["variables"])


@pytest.mark.parametrize("case", cases("base_urls.json", "cases"))
def test_base_urls(case: dict[str, Any]) -> None:
    proxy = ProxyLLM(case["endpoint"])
    ids = case["rollout_id"], case["attempt_id"]
    if "url" in case:
        assert proxy.base_url(*ids) == case["url"]
        return
    with pytest.raises(ValueError, match=case["error"]):
        proxy.base_url(*ids)


@pytest.mark.parametrize("case", cases("rewards.json", "find_final_reward"))
def test_final_rewards(case: dict[str, Any]) -> None:
    batch = SpanBatch(rollout_id="r", attempt_id="a")
    found = find_final_reward(
        Span(span(str(at), s["name"], "", (1, 2), s["attributes"]), batch, s["sequence_id"])
        for at, s in enumerate(case["spans"])
    )
    assert found == case["reward"]


@pytest.mark.parametrize("case", cases("rewards.json", "emit_reward"))
def test_emitted_rewards(case: dict[str, Any]) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    given = case["reward"]
    reward = {k: float(v) for k, v in given} if isinstance(given, list) else float(given)

    def emit() -> None:
        emit_reward(reward, primary_key=case.get("primary"), tracer=provider.get_tracer("t"))

    if "error" in case:
        with pytest.raises(ValueError, match=case["error"]):
            emit()
        assert not exporter.get_finished_spans()
        return
    emit()
    (written,) = exporter.get_finished_spans()
    assert written.name == "agentlightning.annotation"
    assert list((written.attributes or {}).items()) == list(case["attributes"].items())
