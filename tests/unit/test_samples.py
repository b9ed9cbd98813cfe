"""Samples of hand-made traces: which calls share a row, what is masked, and what a row says besides its tokens."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service import samples
from lightningstore.service.samples import Fold, HeldIds, Ids, folding
from lightningstore.service.triplets import tokens

from tests import recorded
from tests.traces import TRACES, RowOf, fold, load, numbered, span

Tokens = list[int]


def call(word: str, prompt: Tokens, response: Tokens, **attributes: Any) -> Any:
    """Return a call of a model with token ids; its word is its response id."""
    told = {
        "gen_ai.operation.name": "chat",
        "gen_ai.response.id": word,
        "prompt_token_ids": prompt,
        "response_token_ids": response,
        **attributes,
    }
    return span(word, "chat m", "", (1, 2), told)


def rows(*calls: Any, **options: Any) -> list[tuple[Tokens, str]]:
    """Return the rows of calls, numbered in their order: the tokens, and the mask as digits."""
    found, _ = fold(enumerate(calls, 1), **options)
    return [(row.tokens, "".join(str(int(bit)) for bit in row.mask)) for row in found]


TURN_1 = call("t1", [1, 2, 3], [4, 5])
TURN_2 = call("t2", [1, 2, 3, 4, 5, 6, 7], [8])
TURN_3 = call("t3", [1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11])


def test_turns_of_a_conversation_are_one_row() -> None:
    assert rows(TURN_1, TURN_2, TURN_3) == [([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], "00011001011")]


def test_a_single_call_is_a_row() -> None:
    assert rows(TURN_1) == [([1, 2, 3, 4, 5], "00011")]


def test_without_merging_each_call_is_a_row() -> None:
    assert rows(TURN_1, TURN_2, merge="SAMPLE_MERGE_NONE") == [
        ([1, 2, 3, 4, 5], "00011"),
        ([1, 2, 3, 4, 5, 6, 7, 8], "00000001"),
    ]


def test_a_turn_without_new_prompt_tokens_continues_too() -> None:
    assert rows(call("a", [1], [2]), call("b", [1, 2], [3])) == [([1, 2, 3], "011")]


def test_of_branches_the_longest_continues_and_the_others_are_masked_up_to_their_response() -> None:
    short = call("short", [1, 2, 3, 4, 5, 6], [9])
    found = rows(TURN_1, short, TURN_2)
    assert found == [([1, 2, 3, 4, 5, 6, 7, 8], "00011001"), ([1, 2, 3, 4, 5, 6, 9], "0000001")]


def test_answers_to_the_same_prompt_are_rows_of_their_own() -> None:
    retried = call("again", [1, 2, 3], [4, 6])
    assert rows(TURN_1, retried, TURN_2) == [
        ([1, 2, 3, 4, 5, 6, 7, 8], "00011001"),
        ([1, 2, 3, 4, 6], "00011"),
    ]


def test_which_of_two_branches_continues_does_not_depend_on_their_numbers() -> None:
    one, other = call("one", [1, 2, 3, 4, 5, 6], [20]), call("other", [1, 2, 3, 4, 5, 6], [21])
    both = [
        {tuple(tokens): mask for tokens, mask in rows(TURN_1, *pair)}
        for pair in ((one, other), (other, one))
    ]
    assert both[0] == both[1]
    assert Counter(both[0].values()) == {"0001101": 1, "0000001": 1}


def test_a_call_that_continues_two_equal_ones_is_set_aside_and_the_next_begins_a_row() -> None:
    twin = call("twin", [1, 2, 3], [4, 5])
    found, told = fold(enumerate([TURN_1, twin, TURN_2, TURN_3], 1))
    assert told == ["aside 3"]
    assert [(row.tokens, sum(row.mask)) for row in found] == [
        ([1, 2, 3, 4, 5], 2),
        ([1, 2, 3, 4, 5], 2),
        ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], 2),
    ]


def test_an_equal_beginning_that_is_cut_elsewhere_is_ambiguous_too() -> None:
    cut = call("cut", [1, 2], [3, 4, 5])
    assert fold(enumerate([TURN_1, cut, TURN_2], 1))[1] == ["aside 3"]


def test_an_answer_that_is_tokenised_anew_begins_a_row() -> None:
    retokenised = call("t2", [1, 2, 3, 45, 6, 7], [8])
    assert rows(TURN_1, retokenised) == [
        ([1, 2, 3, 4, 5], "00011"),
        ([1, 2, 3, 45, 6, 7, 8], "0000001"),
    ]


def test_a_changed_system_prompt_begins_a_row() -> None:
    changed = call("t2", [99, 2, 3, 4, 5, 6, 7], [8])
    assert rows(TURN_1, changed) == [
        ([1, 2, 3, 4, 5], "00011"),
        ([99, 2, 3, 4, 5, 6, 7, 8], "00000001"),
    ]


def test_a_prompt_continues_the_longest_of_several_beginnings() -> None:
    shortened = call("s", [1, 2, 3], [4])
    assert rows(TURN_1, shortened, TURN_2)[0] == ([1, 2, 3, 4, 5, 6, 7, 8], "00011001")


def test_a_token_never_matches_a_part_of_another_one() -> None:
    # 129 is packed as two bytes, of which the first is that of 1 with the mark that more follows.
    assert len(rows(call("a", [129], [1]), call("b", [129, 129], [2]))) == 2


def test_parallel_tool_calls_continue_one_row() -> None:
    calls = json.dumps([{"role": "assistant", "tool_calls": [{"id": "a"}, {"id": "b"}]}])
    first = call("t1", [1, 2], [3, 4], **{"gen_ai.output.messages": calls})
    second = call("t2", [1, 2, 3, 4, 50, 51], [5])  # both results in one prompt
    assert rows(first, second) == [([1, 2, 3, 4, 50, 51, 5], "0011001")]


def test_several_agents_have_rows_of_their_own_and_segments_name_them() -> None:
    def by(agent: str, one: Any) -> Any:
        one.attributes.add(key="gen_ai.agent.name").value.string_value = agent
        return one

    planner = [by("planner", call("p1", [1], [2])), by("planner", call("p2", [1, 2, 3], [4]))]
    writer = [by("writer", call("w1", [7], [8])), by("writer", call("w2", [7, 8, 9], [10]))]
    mixed = [planner[0], writer[0], planner[1], writer[1]]
    found, _ = fold(enumerate(mixed, 1))
    assert [row.tokens for row in found] == [[1, 2, 3, 4], [7, 8, 9, 10]]
    names = [[segment.agent_name for segment in row.sample.segments] for row in found]
    assert names == [["planner"] * 2, ["writer"] * 2]


def test_calls_without_token_ids_are_counted() -> None:
    bare = span("x", "chat m", "", (1, 2), {"gen_ai.operation.name": "chat"})
    found, _ = fold(enumerate([TURN_1, bare, call("half", [], [1])], 1))
    assert len(found) == 1


# What a row says


def logprobs(*values: float) -> dict[str, str]:
    return {"logprobs.content": json.dumps([{"token": "x", "logprob": v} for v in values])}


def test_log_probabilities_are_beside_their_tokens() -> None:
    first = call("t1", [1, 2, 3], [4, 5], **logprobs(-0.5, -0.25))
    second = call("t2", [1, 2, 3, 4, 5, 6, 7], [8], **logprobs(-2))
    ((row,), told) = fold(enumerate([first, second], 1))
    assert row.logprobs == [0, 0, 0, -0.5, -0.25, 0, 0, -2]
    assert told == []


def test_log_probabilities_are_absent_if_one_token_has_none() -> None:
    first = call("t1", [1, 2, 3], [4, 5], **logprobs(-0.5, -0.25))
    ((row,), told) = fold(enumerate([first, TURN_2], 1))
    assert row.logprobs is None
    assert told == []


def test_too_few_log_probabilities_are_told_and_not_used() -> None:
    ((row,), told) = fold(enumerate([call("t1", [1], [4, 5], **logprobs(-0.5))], 1))
    assert row.logprobs is None
    assert told == ["1 log-probabilities for 2 tokens; not used"]


def test_a_log_probability_beyond_32_bits_is_the_largest() -> None:
    ((row,), _) = fold(enumerate([call("t1", [1], [4], **logprobs(-1e300))], 1))
    assert row.logprobs is not None
    assert -3.5e38 < row.logprobs[0] * 0 + row.logprobs[1] < -3.4e38


@pytest.mark.parametrize(
    ("attributes", "model", "reason", "truncated"),
    [
        ({"gen_ai.response.finish_reasons": ["length"], "gen_ai.request.model": "a", "gen_ai.response.model": "b"}, "b", "length", True),
        ({"gen_ai.response.finish_reasons": '["stop"]', "gen_ai.request.model": "a"}, "a", "stop", False),
        ({"llm.finish_reason": "max_tokens", "llm.model_name": "m"}, "m", "max_tokens", True),
        ({"ai.response.finishReason": "tool-calls", "ai.model.id": "m"}, "m", "tool-calls", False),
        ({"gen_ai.completion.0.finish_reason": "MAX_TOKENS", "gen_ai.completion.0.content": "x"}, "", "MAX_TOKENS", True),
        ({"gen_ai.output.messages": '[{"role":"assistant","parts":[],"finish_reason":"length"}]'}, "", "length", True),
        ({"output.value": '{"id":"t1","model":"m","choices":[{"finish_reason":"stop","message":{"content":"x"}}]}'}, "m", "stop", False),
        ({"agentlightning.operation.input.model": "m", "agentlightning.operation.output.choices.0.finish_reason": "length"}, "m", "length", True),
        ({"llm.hosted_vllm.model": "m", "llm.hosted_vllm.choices": "[{'finish_reason': 'length', 'token_ids': [4]}]"}, "m", "length", True),
        ({"gen_ai.prompt.1.finish_reason": "length"}, "", "", False),
        ({}, "", "", False),
    ],
    ids=str,
)  # fmt: skip
def test_model_and_finish_reason_in_the_words_of_instrumentations(
    attributes: dict[str, Any], model: str, reason: str, *, truncated: bool
) -> None:
    ((row,), _) = fold([(1, call("t1", [1], [4], **attributes))])
    (segment,) = row.sample.segments
    assert (segment.model, segment.finish_reason, row.sample.truncated) == (
        model,
        reason,
        truncated,
    )


def test_messages_are_those_of_the_last_call_and_its_answer() -> None:
    asked = [{"role": "user", "content": "2+2?"}]
    answer = [{"role": "assistant", "content": "4"}]
    first = call("t1", [1], [2], **{"gen_ai.input.messages": json.dumps(asked)})
    second = call(
        "t2",
        [1, 2, 3],
        [4],
        **{
            "gen_ai.input.messages": json.dumps(asked + asked),
            "gen_ai.output.messages": json.dumps(answer),
            "gen_ai.tool.definitions": '[{"name":"f"}]',
        },
    )
    ((row,), _) = fold(enumerate([first, second], 1))
    assert json.loads(row.sample.messages_json) == asked + asked + answer
    assert json.loads(row.sample.tools_json) == [{"name": "f"}]


def test_of_choices_the_message_of_the_first_counts() -> None:
    answered = '{"choices":[{"index":0,"message":{"role":"assistant","content":"a"}},{"index":1}]}'
    ((row,), _) = fold([(1, call("t1", [1], [2], **{"output.value": answered}))])
    assert json.loads(row.sample.messages_json) == [{"role": "assistant", "content": "a"}]


def test_reward_scores_and_publish_number_are_the_attempts_and_segments_have_their_own() -> None:
    reward = span("r", "x", "", (3, 3), {"agentlightning.reward": 0.25})
    about = samples.About(2.0, (("style", 0.5),), 7)
    ((row,), _) = fold(enumerate([TURN_1, TURN_2, reward], 1), about)
    assert (row.sample.reward, dict(row.sample.scores)) == (2.0, {"style": 0.5})
    assert [s.reward if s.HasField("reward") else None for s in row.sample.segments] in (
        [None, 0.25],
        [0.25, None],
    )
    assert [s.publish_number for s in row.sample.segments] == [7, 7]
    assert row.sample.prompt_token_count == 3


@pytest.mark.parametrize("name", TRACES)
def test_recorded_traces_give_rows_for_the_calls_with_token_ids(name: str) -> None:
    trace = load(name)
    wanted = [
        t["response_tokens"]
        for t in trace["triplets"]
        if t.get("prompt_tokens") and t.get("response_tokens")
    ]
    found, _ = fold(numbered(name), **trace.get("options", {}))
    assert sorted(sampled(found)) == sorted(wanted)


def test_recorded_stacks_give_rows() -> None:
    found, told = fold(recorded.spans("openinference-openai"))
    assert [sum(row.mask) for row in found] == [3, 6]
    assert [row.logprobs is not None for row in found] == [False, True]
    assert told == ["1 log-probabilities for 3 tokens; not used"]
    assert {s.model != "" for row in found for s in row.sample.segments} == {True}
    assert [row.sample.segments[-1].finish_reason for row in found] == ["tool_calls", "stop"]


# Properties


def sampled(found: list[RowOf]) -> list[Tokens]:
    """Return the tokens of the segments of all rows."""
    return [
        row.tokens[segment.first_token : segment.end_token]
        for row in found
        for segment in row.sample.segments
    ]


few = st.lists(st.integers(0, 3), min_size=1, max_size=3)


@st.composite
def conversations(draw: Any) -> list[tuple[Tokens, Tokens]]:
    """Calls of which many continue others, branch, repeat or begin alike."""
    made: list[tuple[Tokens, Tokens]] = []
    for _ in range(draw(st.integers(1, 10))):
        start: Tokens = []
        if made and draw(st.booleans()):
            prompt, response = draw(st.sampled_from(made))
            start = prompt + response
        made.append((start + draw(few), draw(few)))
    return made


@given(conversations(), st.randoms(use_true_random=False))
def test_rows_depend_on_tokens_alone_and_train_each_token_once(
    made: list[tuple[Tokens, Tokens]], dice: random.Random
) -> None:
    calls = [(n, call(str(n), *pair)) for n, pair in enumerate(made, 1)]
    found, told = fold(calls)
    shuffled = list(calls)
    dice.shuffle(shuffled)
    again, told_again = fold(shuffled)
    assert [row.sample for row in again] == [row.sample for row in found]
    assert told_again == told
    aside = {int(text.removeprefix("aside ")) for text in told if text.startswith("aside")}
    wanted = [response for n, (_, response) in enumerate(made, 1) if n not in aside]
    assert sorted(sampled(found)) == sorted(wanted)
    for row in found:
        marked = [t for t, bit in zip(row.tokens, row.mask, strict=True) if bit]
        assert marked == [token for part in sampled([row]) for token in part]
        assert row.sample.prompt_token_count == row.mask.index(True)


@given(conversations())
def test_numbers_given_on_arrival_change_nothing_but_the_order_of_rows(
    made: list[tuple[Tokens, Tokens]],
) -> None:
    def shown(order: list[int]) -> Counter[tuple[tuple[int, ...], tuple[bool, ...]]]:
        calls = [(number, call(str(at), *made[at])) for number, at in enumerate(order, 1)]
        return Counter((tuple(row.tokens), tuple(row.mask)) for row in fold(calls)[0])

    assert shown(list(range(len(made)))) == shown(list(reversed(range(len(made)))))


@given(conversations(), st.integers(0, 40), st.randoms(use_true_random=False))
def test_held_token_ids_are_those_that_were_added(
    made: list[tuple[Tokens, Tokens]], limit: int, dice: random.Random
) -> None:
    held = HeldIds(limit)
    added = [Ids(bytes(prompt), bytes(response)) for prompt, response in made]
    for key, ids in enumerate(added):
        held.add(key, ids)
    order = list(range(len(added)))
    for keys in (order, dice.sample(order, len(order))):
        for key in keys:
            assert held.get(key) in (added[key], None)
    if limit >= sum(len(ids.prompt) + len(ids.response) for ids in added):
        assert None not in map(held.get, order)


def test_of_a_conversation_only_what_is_new_is_held() -> None:
    held = HeldIds(300)
    said = b""
    for key in range(100):
        ids = Ids(said + b"\1\2", b"\3")
        held.add(key, ids)
        said = ids.prompt + ids.response
    assert len(said) == 300
    assert held.get(50) == Ids(b"\1\2\3" * 50 + b"\1\2", b"\3")
    assert held.get(99) == Ids(said[:-1], b"\3")


@given(conversations())
def test_the_size_of_blocks_changes_nothing(made: list[tuple[Tokens, Tokens]]) -> None:
    calls = [(n, call(str(n), *pair)) for n, pair in enumerate(made, 1)]
    whole = fold(calls)
    for tokens_of_a_block in (1, 2, 3):
        size = tokens_of_a_block * tokens.TOKEN_BYTES
        with mock.patch.object(folding, "BLOCK_BYTES", size):
            assert fold(calls) == whole


def test_calls_of_many_lengths_that_begin_alike_are_placed_in_few_steps() -> None:
    steps = 0

    class Counted(dict[Any, Any]):
        def get(self, *args: Any) -> Any:
            nonlocal steps
            steps += 1
            return super().get(*args)

    begin = list(range(2_000))
    folded = Fold()
    folded._by_hash = Counted()
    folded._sizes = Counted()
    prompts = {}
    for key in range(1_000):
        prompts[key] = tokens.array_of([*begin, *([key] * (key + 1))])
        folded.add(key, (key, bytes(8)), prompts[key], tokens.array_of([1]))
    unplaced = folded.unplaced()
    assert steps <= 1_000 * 30
    for key in unplaced:
        folded.place(key, prompts[key])
    assert steps <= 1_000 * 200
    assert len(folded.rows()[0]) == 1_000


def test_calls_without_a_common_beginning_are_not_placed() -> None:
    folded = Fold()
    for key in range(100):
        ids = tokens.array_of([key] * (200 + key))
        folded.add(key, (key, bytes(8)), ids, ids)
    assert folded.unplaced() == []


def test_of_a_conversation_each_token_id_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def counting(array: bytes) -> bytes | None:
        ids = of_array(array)
        read.append(tokens.count(ids or b""))
        return ids

    of_array = tokens.of_array
    monkeypatch.setattr(tokens, "of_array", counting)
    said: Tokens = []
    calls = []
    for turn in range(50):
        calls.append(call(str(turn), [*said, turn, turn], [7]))
        said += [turn, turn, 7]
    (row,), _ = fold(enumerate(calls, 1))
    assert row.tokens == said
    assert sum(read) == len(said)
