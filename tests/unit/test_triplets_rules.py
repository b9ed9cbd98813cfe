"""The rules of triplets one by one, on traces that are broken in every known way."""

from __future__ import annotations

import itertools
import random
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lightningstore.client import AttemptTriplets
from lightningstore.service.triplets import layouts, run
from lightningstore.service.triplets.nodes import Node
from lightningstore.service.triplets.tree import grow, preorder, repair

from tests.traces import extract, span, span_id

CALL = "openai.chat.completion"
REWARD = "agentlightning.annotation"


def call(word: str, parent: str = "", at: tuple[float, float] = (0, 0), **more: Any) -> Any:
    return span(word, CALL, parent, at, {"gen_ai.response.id": word, **more})


def reward(word: str, value: Any, parent: str = "", at: float = 0) -> Any:
    return span(word, REWARD, parent, (at, at), {"agentlightning.reward.0.value": value})


def of(*spans: Any, **options: Any) -> AttemptTriplets:
    return extract(list(enumerate(spans, 1)), **options)


def rewards(found: AttemptTriplets) -> dict[str, float | None]:
    return {t.response_id: t.reward for t in found}


def test_nothing_gives_nothing() -> None:
    assert of() == []
    assert of(span("a", "x")) == []


def test_lost_parents_make_stand_ins_in_a_defined_order() -> None:
    spans = [call("c", "gone2", (5, 6)), call("a", "gone1", (1, 2)), call("b", "gone2", (3, 4))]
    assert [t.response_id for t in of(*spans)] == ["a", "b", "c"]
    assert [t.response_id for t in of(*spans, repair_hierarchy=False)] == ["a", "b", "c"]


def test_cycles_are_kept_under_the_virtual_root() -> None:
    spans = [
        call("a", "b", (2, 3)),
        call("b", "a", (1, 4)),
        call("own", "own", (7, 8)),
        call("root", "", (5, 6)),
        call("below", "a", (2.5, 2.6)),
    ]
    assert [t.response_id for t in of(*spans)] == ["b", "a", "below", "root", "own"]


def test_only_a_cycle_is_a_trace_too() -> None:
    assert [t.response_id for t in of(call("a", "b", (2, 3)), call("b", "a", (1, 4)))] == ["b", "a"]


def test_missing_times_fall_back_to_sequence_ids() -> None:
    found = of(call("a"), reward("r1", 1), call("b"), call("c"), reward("r2", 2), reward("r3", 3))
    assert rewards(found) == {"a": 1.0, "b": 3.0, "c": 2.0}


def test_spans_without_a_start_stay_where_they_were_numbered() -> None:
    found = of(call("a", "", (1, 2)), call("b"), call("c", "", (3, 4)))
    assert [t.response_id for t in found] == ["a", "b", "c"]


def test_a_reward_goes_to_the_last_call_that_ended_before_it() -> None:
    spans = [
        call("a", "", (1, 2)),
        call("long", "", (2, 9)),
        call("b", "", (3, 4)),
        reward("r1", 1, at=5),
        reward("r2", 2, at=6),
        reward("r3", 3, at=7),
    ]
    found = of(*spans)
    assert rewards(found) == {"a": 2.0, "long": None, "b": 1.0}
    assert found.unmatched_rewards == [3.0]
    assert rewards(of(*spans, reward_policy="REWARD_POLICY_BY_SEQUENCE")) == {
        "a": 3.0,
        "long": 2.0,
        "b": 1.0,
    }


def test_first_sibling_looks_at_the_children_of_one_span() -> None:
    spans = [
        span("p", "x", "", (0, 4)),
        span("q", "x", "", (4, 9)),
        call("a", "p", (1, 2)),
        call("b", "q", (5, 6)),
        reward("r1", 1, "p", 7),
        reward("r2", 2, "", 8),
    ]
    found = of(*spans, reward_policy="REWARD_POLICY_FIRST_SIBLING", repair_hierarchy=False)
    assert rewards(found) == {"a": 1.0, "b": None}
    assert found.unmatched_rewards == [2.0]


def test_by_sequence_wants_a_smaller_number() -> None:
    spans = [(1, call("a")), (2, call("b")), (2, reward("r", 1)), (2, reward("s", 2))]
    found = extract(spans, reward_policy="REWARD_POLICY_BY_SEQUENCE")
    assert rewards(found)["b"] is None
    assert len(found.unmatched_rewards) == 1


def test_equal_response_ids_are_taken_once() -> None:
    spans = [call("a", "", (1, 2)), call("b", "", (3, 4), **{"gen_ai.response.id": "a"})]
    assert [t.span_id for t in of(*spans)] == [span_id("a").hex()]
    assert len(of(*spans, deduplicate=False)) == 2


def test_calls_under_rewards_are_left_out_unless_wanted() -> None:
    judge = span(
        "j",
        "agentlightning.operation",
        "",
        (1, 4),
        {"agentlightning.operation.name": "agentlightning.reward"},
    )
    spans = [judge, call("a", "j", (2, 3)), call("b", "", (5, 6))]
    assert [t.response_id for t in of(*spans)] == ["b"]
    assert [t.response_id for t in of(*spans, exclude_calls_under_rewards=False)] == ["a", "b"]


def test_a_malformed_reward_still_shields_what_is_under_it() -> None:
    found = of(reward("j", "much", at=1), call("a", "j", (2, 3)))
    assert found == []
    assert "agentlightning.reward.0.value" in [warning[0] for warning in found.warnings]


def test_a_call_is_not_matched_by_its_own_agent_name() -> None:
    spans = [call("a", "", (1, 2), **{"agent.name": "x"}), call("b", "a", (1.1, 1.2))]
    found = of(*spans, agent_match="x")
    assert [(t.response_id, t.agent_name) for t in found] == [("b", "x")]


def test_calls_without_tokens_compete_for_no_reward() -> None:
    ids = {"prompt_token_ids": [1], "response_token_ids": [2]}
    spans = [call("a", "", (1, 2), **ids), call("b", "", (3, 4)), reward("r", 1, at=5)]
    assert rewards(of(*spans)) == {"a": None, "b": 1.0}
    assert rewards(of(*spans, skip_without_tokens=True)) == {"a": 1.0}


def test_final_reward_takes_the_place_of_the_last_one() -> None:
    found = of(call("a", "", (1, 2)), reward("r", 1, at=3), final=0.5)
    assert rewards(found) == {"a": 0.5}


@pytest.mark.parametrize(
    ("attributes", "name", "value"),
    [
        ({"agentlightning.reward": 0.5}, "x", 0.5),
        (
            {"agentlightning.reward": '[{"name": "n", "value": 2}, {"name": "m", "value": 3}]'},
            "x",
            2.0,
        ),
        ({"agentlightning.reward": [{"name": "n", "value": 2}]}, "x", 2.0),
        ({"agentlightning.reward.2.value": 2, "agentlightning.reward.10.value": 3}, "x", 2.0),
        ({"reward": 3}, "agentlightning.annotation", 3.0),
        ({"reward": 3}, "agentlightning.reward", 3.0),
        ({"reward": True}, "agentlightning.reward", 1.0),
        ({"agentops.entity.output": {"type": "reward", "value": 4}}, "x", 4.0),
        ({"agentops.task.output": "{'type': 'reward', 'value': 4.5}"}, "x", 4.5),
        (
            {
                "agentops.task.output": "[1]",
                "agentops.entity.output": '{"type":"reward","value":5}',
            },
            "x",
            5.0,
        ),
        ({"reward": 3}, "x", None),
        ({"agentops.task.output": 'just "reward"'}, "x", None),
    ],
    ids=str,
)
def test_rewards_are_read_wherever_they_are_written(
    attributes: dict[str, Any], name: str, value: float | None
) -> None:
    found = of(call("a", "", (1, 2)), span("r", name, "", (3, 3), attributes))
    assert rewards(found) == {"a": value}
    assert found.warnings == []


@pytest.mark.parametrize(
    ("attributes", "key"),
    [
        ({"agentlightning.reward.0.value": "1"}, "agentlightning.reward.0.value"),
        ({"agentlightning.reward": float("inf")}, "agentlightning.reward"),
        ({"agentlightning.reward": "[" * 100_000}, "agentlightning.reward"),
        ({"agentops.task.output": '{"type": "reward", '}, "agentops.task.output"),
        ({"agentops.task.output": '{"type": "reward", "value": "x"}'}, "agentops.task.output"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_malformed_rewards_are_left_out_with_a_warning(attributes: Any, key: str) -> None:
    found = of(call("a", "", (1, 2)), span("r", "x", "", (3, 3), attributes))
    assert rewards(found) == {"a": None}
    assert [warning[0] for warning in found.warnings] == [key]


def test_a_malformed_second_dimension_leaves_the_first() -> None:
    attributes = {"agentlightning.reward.0.value": 1, "agentlightning.reward.1.value": "x"}
    found = of(call("a", "", (1, 2)), span("r", "x", "", (3, 3), attributes))
    assert rewards(found) == {"a": 1.0}
    assert found.warning_count == 1


@pytest.mark.parametrize(
    ("attributes", "key"),
    [
        ({"prompt_token_ids": [1, "x"]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1, 0.5]}, "prompt_token_ids"),
        ({"prompt_token_ids": [1 << 40]}, "prompt_token_ids"),
        ({"response_token_ids": 5}, "response_token_ids"),
        ({"logprobs.content": "[{"}, "logprobs.content"),
        ({"gen_ai.prompt": "x", "gen_ai.prompt" + ".0" * 80: 1}, None),
        ({"gen_ai.prompt" + ".0" * 80: 1}, "gen_ai.prompt" + ".0" * 80),
        ({"gen_ai.prompt.0": 1, "gen_ai.prompt.0.content": "x"}, "gen_ai.prompt.0"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_malformed_values_are_left_out_with_a_warning(attributes: Any, key: str | None) -> None:
    found = of(span("a", CALL, "", (1, 2), attributes))
    assert len(found) == 1
    assert [warning[0] for warning in found.warnings] == ([] if key is None else [key])


#: Numbers of every length on the wire, and what looks like the wire format within numbers and texts.
NUMBERS = [
    0,
    2,
    3,
    10,
    24,
    126,
    127,
    128,
    1304,
    1 << 14,
    1 << 21,
    (1 << 28) - 1,
    1 << 28,
    (1 << 31) - 1,
]
NO_TOKENS = [
    -1,
    1 << 31,
    True,
    1.5,
    "",
    "\n\x02\x18",
    "\x18x",
    "\n\x02\x18\x01\n\x03\x18\x02",
    {},
]


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.sampled_from(NUMBERS), max_size=40), st.sampled_from([None, *NO_TOKENS]))
def test_token_ids_come_back_as_they_were_or_not_at_all(ids: list[int], odd: Any) -> None:
    values = ids if odd is None else [*ids, odd, *ids[:3]]
    attributes = {"prompt_token_ids": [1, 2], "response_token_ids": values}
    found = of(span("a", CALL, "", (1, 2), attributes))
    assert found[0].prompt_token_ids == [1, 2]
    assert found[0].response_token_ids == (ids if odd is None else [])
    assert found.warning_count == (0 if odd is None else 1)


def test_spans_with_the_same_keys_keep_their_own_values() -> None:
    keys = ["gen_ai.prompt.0.content", "gen_ai.prompt.1.content", "gen_ai.request.model"]
    spans = [
        call(word, "", (at, at + 0.5), **{key: f"{word} {key}" for key in keys})
        for at, word in enumerate("abc", 1)
    ]
    for triplet in of(*spans):
        word = triplet.response_id
        assert triplet.prompt == [{"content": f"{word} {key}"} for key in keys[:2]]
        assert triplet.request_metadata == {"model": f"{word} {keys[2]}"}


def test_keys_of_any_length_are_read_and_only_short_ones_kept() -> None:
    kept = layouts._layouts.cache_info().currsize
    long = "x" * 10_000
    for at in range(3):
        (found,) = of(call("a", "", (1, 2), **{f"gen_ai.prompt.{long}{at}": "y"}))
        assert found.prompt == {f"{long}{at}": "y"}
    assert layouts._layouts.cache_info().currsize == kept


def test_repair_puts_loose_calls_under_the_tightest_span() -> None:
    spans = [
        span("root", "x", "", (0, 10)),
        span("wide", "x", "root", (1, 9), {"agent.name": "wide"}),
        span("tight", "x", "wide", (2, 6), {"agent.name": "tight"}),
        call("in", "root", (3, 5)),
        call("same", "root", (1, 9)),
        call("out", "root", (9, 10)),
    ]
    agents = {t.response_id: t.agent_name for t in of(*spans)}
    assert agents == {"in": "tight", "same": "*", "out": "*"}
    assert {t.agent_name for t in of(*spans, repair_hierarchy=False)} == {"*"}


def test_a_span_is_never_put_below_itself() -> None:
    spans = [
        span("root", "x", "", (0, 10)),
        call("a", "root", (5, 6)),
        call("skewed", "a", (4, 7)),
        call("b", "root", (8, 9)),
    ]
    assert [t.response_id for t in of(*spans)] == ["a", "skewed", "b"]


def test_a_call_under_a_skewed_clock_goes_to_the_next_span_around_it() -> None:
    spans = [
        span("session", "x", "", (1, 100)),
        span("alpha", "x", "session", (5, 50), {"agent.name": "alpha"}),
        call("a", "session", (10, 20)),
        span("http a", "x", "a", (9, 21)),
        call("b", "session", (10.5, 20.5)),
        span("http b", "x", "b", (9.5, 21.5)),
    ]
    assert [t.response_id for t in of(*spans[:4], agent_match="alpha")] == ["a"]
    assert [t.response_id for t in of(*spans, agent_match="alpha")] == ["b", "a"]


def tree(shape: list[tuple[int, int, int]]) -> list[Node]:
    nodes = []
    for number, (parent, start, length) in enumerate(shape, 1):
        above = b"" if parent >= number else bytes([parent])
        nodes.append(Node(bytes([number]), above, number, start + 1, start + 1 + length))
    return nodes


def naive(root: Node) -> None:
    """The rule as documented, span by span."""
    node = root
    while len(node.children) == 1:
        node = node.children[0]
    every = [n for n in preorder(node) if n is not node]
    for child in list(node.children):
        if len(node.children) == 1:
            break
        own = set(map(id, preorder(child)))
        slack = {
            (child.start - n.start) + (n.end - child.end): n
            for n in reversed(every)
            if n.start <= child.start
            and n.end >= child.end
            and (n.start, n.end) != (child.start, child.end)
            and id(n) not in own
        }
        if slack:
            node.remove(child)
            slack[min(slack)].add(child)
    for n in preorder(root):
        n.children = sorted(n.children, key=lambda c: c.order)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 12), st.integers(0, 12)),
        min_size=1,
        max_size=20,
    )
)
def test_repair_does_what_the_rule_says(shape: list[tuple[int, int, int]]) -> None:
    fast, slow = run(grow(tree(shape))), run(grow(tree(shape)))
    assert fast is not None
    assert slow is not None
    run(repair(fast))
    naive(slow)
    assert [(n.span_id, [c.span_id for c in n.children]) for n in preorder(fast)] == [
        (n.span_id, [c.span_id for c in n.children]) for n in preorder(slow)
    ]


def test_numbers_by_arrival_change_nothing_where_times_tell() -> None:
    dice = random.Random(3)
    spans = [span("root", "x", "", (1, 99))]
    for at in range(2, 60):
        parent = dice.choice(["root", "lost", f"c{at - 1}"])
        spans.append(call(f"c{at}", parent, (at, at + dice.choice([0.5, 3.25]))))
        if at % 3 == 0:
            spans.append(reward(f"r{at}", at, "root", at + 0.7))
    first = rewards(of(*spans))
    order = [t.response_id for t in of(*spans)]
    for _ in range(10):
        dice.shuffle(spans)
        found = of(*spans)
        assert rewards(found) == first
        assert [t.response_id for t in found] == order


@pytest.mark.parametrize("shape", ["deep", "wide", "loose", "cycles", "nested", "skewed"])
def test_large_traces_take_time_in_proportion(shape: str) -> None:
    count = 20_000
    spans = []
    for i in range(count):
        parent, at = "", (float(i + 1), i + 1.5)
        if shape == "deep":
            parent, at = (str(i - 1) if i else ""), (1 + i * 1e-3, 1000 - i * 1e-3)
        elif shape == "loose":
            parent, at = "lost", (float(i + 1), 2.0 * count - i % 77)
        elif shape == "cycles":
            parent = str(i ^ 1)
        elif shape == "nested":
            at = (1 + i * 1e-3, 1000 - i * 1e-3)
        elif shape == "skewed":
            spans.append(span(f"s{i}", "x", str(i), (1, 3.0 * count + i)))
        spans.append(call(str(i), parent, at))
        if i % 4 == 0:
            spans.append(reward(f"r{i}", i, parent, at[1] + 0.01))
    began = time.process_time()
    found = extract(list(enumerate(spans, 1)))
    assert len(found) == count
    assert time.process_time() - began < 10


def test_hostile_texts_are_read_in_time_in_proportion() -> None:
    hostile = [
        "'" + "\\'" * 500_000,
        "'" * 1_000_001,
        "\"'" * 500_000,
        "[" * 1_000_000,
        "{'a':" * 300_000,
    ]
    began = time.process_time()
    for text, key in itertools.product(hostile, ["choices", "response_token_ids"]):
        attributes = {"llm.hosted_vllm.prompt_token_ids": "[1]", f"llm.hosted_vllm.{key}": text}
        found = extract(
            [(1, span("a", "raw_gen_ai_request", "", (1, 2), attributes))],
            source="TRIPLET_SOURCE_PROXY",
        )
        assert found == []
        assert found.warning_count >= 1
    assert time.process_time() - began < 10
