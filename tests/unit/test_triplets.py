"""Triplets of traces as real agent stacks shape them, whatever the order in which the spans arrive."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.traces import TRACES, extract, load, numbered, shown, span


@pytest.mark.parametrize("name", TRACES)
def test_trace_gives_the_triplets_written_beside_it(name: str) -> None:
    trace = load(name)
    found = extract(numbered(name), **trace.get("options", {}))
    assert [shown(triplet) for triplet in found] == trace["triplets"]
    assert found.unmatched_rewards == trace.get("unmatched", [])
    assert found.warnings == []


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("policy", ["FIRST_OCCURRENCE", "FIRST_SIBLING", "BY_SEQUENCE"])
def test_recorded_traces_do_not_depend_on_order(name: str, policy: str) -> None:
    options = dict(load(name).get("options", {}))
    if "source" not in options:
        options["reward_policy"] = f"REWARD_POLICY_{policy}"
    spans = numbered(name)
    first = snapshot(extract(spans, **options))
    dice = random.Random(7)
    for _ in range(20):
        dice.shuffle(spans)
        assert snapshot(extract(spans, **options)) == first


def snapshot(found: Any) -> Any:
    return [t.message for t in found], found.unmatched_rewards, found.warnings


words = st.integers(0, 12).map(str)


@st.composite
def anything(draw: Any) -> list[dict[str, Any]]:
    """Spans with any parents (missing, cyclic, themselves), any times (missing, equal, the wrong way round)."""
    count = draw(st.integers(1, 12))
    spans = []
    for number in range(count):
        attributes: dict[str, Any] = {}
        if draw(st.booleans()):
            attributes["agent.name"] = draw(st.sampled_from(["a", "b"]))
        if draw(st.booleans()):
            attributes["gen_ai.response.id"] = draw(st.sampled_from(["x", "y", "z"]))
        if draw(st.booleans()):
            attributes["agentlightning.reward.0.value"] = draw(
                st.sampled_from([number, 0.5, "bad", float("nan")])
            )
        if draw(st.booleans()):
            attributes["prompt_token_ids"] = attributes["response_token_ids"] = [number]
        spans.append(
            {
                "word": str(number),
                "number": draw(st.integers(1, 12)),
                "name": draw(st.sampled_from(["openai.chat.completion", "litellm_request", "x"])),
                "parent": draw(st.one_of(st.just(""), words)),
                "at": (draw(st.integers(0, 5)), draw(st.integers(0, 5))),
                "attributes": attributes,
            }
        )
    return spans


chosen = st.fixed_dictionaries(
    {
        "exclude_calls_under_rewards": st.booleans(),
        "deduplicate": st.booleans(),
        "repair_hierarchy": st.booleans(),
        "skip_without_tokens": st.booleans(),
        "reward_policy": st.sampled_from(range(4)),
        "agent_match": st.sampled_from(["", "a"]),
    }
)


@settings(max_examples=300, deadline=None)
@given(anything(), chosen, st.randoms(use_true_random=False))
def test_no_order_of_arrival_changes_the_result(
    spans: list[dict[str, Any]], options: dict[str, Any], dice: random.Random
) -> None:
    ordered = [(s["number"], span(**s)) for s in spans]
    shuffled = list(ordered)
    dice.shuffle(shuffled)
    for case in (options, {"source": "TRIPLET_SOURCE_PROXY"}):
        assert snapshot(extract(shuffled, **case)) == snapshot(extract(ordered, **case))


@settings(max_examples=200, deadline=None)
@given(anything())
def test_every_call_and_every_reward_is_accounted_for(spans: list[dict[str, Any]]) -> None:
    plain = {"deduplicate": False, "exclude_calls_under_rewards": False}
    found = extract([(s["number"], span(**s)) for s in spans], **plain)
    calls = [
        s
        for s in spans
        if s["name"] == "openai.chat.completion" or "prompt_token_ids" in s["attributes"]
    ]
    assert len(found) == len(calls)
    assert len({t.span_id for t in found}) == len(calls)
    values = [s["attributes"].get("agentlightning.reward.0.value") for s in spans]
    rewards = [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
    given_out = [t.reward for t in found if t.reward is not None]
    assert sorted([*given_out, *found.unmatched_rewards]) == sorted(rewards)
