"""The judge of the conformance suite: what it lets pass, and what it does not."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from lightningstore.v1.error_reason_pb2 import ErrorReason

from tests.conformance import languages, table
from tests.conformance.driver import DriverError, ProcessDriver, Unsupported
from tests.conformance.match import compare
from tests.conformance.play import Mismatch, Play
from tests.conformance.run import Drivers, Suite
from tests.conformance.scenario import FOLDER, METHODS, Scenario, kind_of, load, read
from tests.conformance.values import ScenarioError, expand, find, merge

SECONDS = 20.0


class FakeDriver:
    """Gives the answers that it was given, one command after the other."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers = list(answers)
        self.sent: list[dict[str, Any]] = []

    def send(self, op: str, **parameters: Any) -> int:
        self.sent.append({"op": op, **parameters})
        return len(self.sent) - 1

    def answer(self, number: int, key: Sequence[str], until: float) -> dict[str, Any]:
        return self.answers[number]

    def close(self) -> None:
        """Nothing to end."""


def scenario(tmp_path: Path, *steps: dict[str, Any], **more: Any) -> Scenario:
    path = tmp_path / "some.json"
    path.write_text(json.dumps({"description": "d", "steps": steps, **more}))
    return read(path)


GET = {
    "call": "GetRollout",
    "request": {"rolloutId": "${run}"},
    "expect": {"rollout": {"priority": 1, "inputJson": {"$json": "é"}, "endTime": None}},
    "values": {"rollout.latestAttempt.spanCount": "9007199254740993"},
    "save": {"attempt": "rollout.latestAttempt.attemptId"},
}
ROLLOUT = {
    "priority": 1,
    "inputJson": "IsOpIg==",
    "latestAttempt": {"attemptId": "at-1", "spanCount": "9007199254740993"},
}
MISSING = {
    "call": "GetAttempt",
    "request": {"rolloutId": "r", "attemptId": "${attempt}"},
    "error": {"code": "NOT_FOUND", "reason": "ERROR_REASON_ATTEMPT_NOT_FOUND", "fields": None},
}
ERROR = {
    "code": "NOT_FOUND",
    "message": "no",
    "reason": "ERROR_REASON_ATTEMPT_NOT_FOUND",
    "domain": "lightningstore",
    "metadata": {"rolloutId": "r"},
}
TRUTH: list[dict[str, Any]] = [
    {"responses": [{"rollout": ROLLOUT}]},
    {"responses": [], "error": ERROR},
]


def play(one: Scenario, *answers: dict[str, Any]) -> FakeDriver:
    driver = FakeDriver(*answers)
    Play(one, {"client": driver}, "word").run()
    return driver


def test_honest_driver_passes(tmp_path: Path) -> None:
    driver = play(scenario(tmp_path, GET, MISSING), *TRUTH)
    assert driver.sent[0]["requests"] == [{"rolloutId": "word"}]
    assert driver.sent[1]["requests"] == [{"rolloutId": "r", "attemptId": "at-1"}]


@pytest.mark.parametrize(
    ("number", "path", "lie"),
    [
        (0, "responses.0.rollout.priority", 2),
        (0, "responses.0.rollout.priority", True),
        (0, "responses.0.rollout.priority", "1"),
        (0, "responses.0.rollout.inputJson", "IsOpIh=="),
        (0, "responses.0.rollout.endTime", "2026-01-01T00:00:00Z"),
        (0, "responses.0.rollout.latestAttempt.spanCount", "9007199254740992"),
        (0, "responses.0.rollout.latestAttempt.spanCount", 9007199254740993),
        (0, "responses.0.rollout.latestAttempt", {}),
        (0, "responses", []),
        (0, "responses", [{"rollout": ROLLOUT}, {"rollout": ROLLOUT}]),
        (0, "error", ERROR),
        (1, "error.code", "UNKNOWN"),
        (1, "error.reason", "ERROR_REASON_ROLLOUT_NOT_FOUND"),
        (1, "error.domain", "elsewhere"),
        (1, "error.fields", ["attempt_id"]),
        (1, "error", None),
        (1, "responses", [{}]),
    ],
)
def test_lie_is_found(tmp_path: Path, number: int, path: str, lie: Any) -> None:
    answers = copy.deepcopy(TRUTH)
    place: Any = answers[number]
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = lie
    with pytest.raises(Mismatch, match=f"^step {number + 1} "):
        play(scenario(tmp_path, GET, MISSING), *answers)


def test_missing_id_of_an_exported_span_is_found(tmp_path: Path) -> None:
    step = {"export": "sdk", "rollout_id": "r", "attempt_id": "a", "spans": ["x", "y"]}
    one = scenario(tmp_path, step)
    play(one, {"span_ids": ["0" * 16, "1" * 16]})
    for ids in (["0" * 16], ["0" * 16, "1"], None):
        with pytest.raises(Mismatch):
            play(one, {"span_ids": ids})


def test_stream_that_ends_too_late_is_found(tmp_path: Path) -> None:
    begin = {"begin": "WaitForRollouts", "label": "w", "request": {}}
    late = {"await": "w", "elapsed": {"min": 10}}
    with pytest.raises(Mismatch, match="took"):
        play(scenario(tmp_path, begin, late), {"responses": [], "started": True})


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([{"call": "Nothing", "request": {}}], "step 1: no method 'Nothing'"),
        ([GET, {**GET, "expects": {}}], "step 2: unknown: expects"),
        ([{"call": "GetRollout", "requests": [{}]}], "GetRollout takes request"),
        ([{"call": "GetRollout", "request": {"a": "${nobody}"}}], "nothing is saved as nobody"),
        ([{"begin": "GetRollout", "label": "x", "request": {}}], "never awaited: x"),
        ([{"await": "x"}], "nothing is begun as 'x'"),
        ([{"call": "GetRollout", "request": {"$jsn": 1}}], r"\$jsn is no word"),
        ([{"call": "GetRollout", "request": {}, "role": "b"}], "unknown role 'b'"),
        ([{"call": "GetRollout", "request": {}, "error": {"cod": 1}}], "unknown: cod"),
        ([{"server": "restart"}], "with a fresh server"),
        ([{"sleep": 1}], "one of call, begin"),
    ],
)
def test_scenario_that_is_written_wrong_is_refused(
    tmp_path: Path, steps: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ScenarioError, match=f"some.json: .*{message}"):
        scenario(tmp_path, *steps)


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        ({"$any": True}, 0, None),
        ({"$re": "a.c"}, "abc", "abcd"),
        ({"$min": 2}, "2", "1"),
        ({"$min": 2}, 2.5, None),
        ({"$in": [1, 2]}, 2, 3),
        ({"$not": 1}, 2, None),
        ({"$not": 1}, 2, 1),
        ({"$set": [1, 2]}, [2, 1], [2, 1, 1]),
        ({"$contains": [1]}, [2, 1], [2]),
        ({"$contains": [1, 1]}, [1, 1], [1]),
        ({"$size": 1}, ["a"], []),
        ({"$exact": {"a": 1}}, {"a": 1.0}, {"a": 1, "b": 2}),
        ({"a": None}, {}, {"a": 1}),
        ([1, 2], [1, 2], [2, 1]),
        ([], None, [1]),
    ],
)
def test_matching(expected: Any, good: Any, bad: Any) -> None:
    assert compare(expected, good) == []
    assert compare(expected, bad) != []


def test_values() -> None:
    assert expand({"$json": {"é": [1, None]}}, {}) == "eyLDqSI6WzEsbnVsbF19"
    assert expand({"$list": [2, "${x}-${index}"]}, {"x": "a"}) == ["a-0", "a-1"]
    assert expand("${x[1]}", {"x": [1, 2]}) == 2
    assert find("a[*].b[0]", {"a": [{"b": [1, 2]}, {}, {"b": [3]}]}) == [1, 3]
    assert merge([{"a": [1], "n": 1}, {"a": [2]}, {"n": 2}]) == {"a": [1, 2], "n": 2}


def test_scenarios_can_be_read_and_each_call_is_in_one() -> None:
    called = {step.get("call", step.get("begin")) for one in load() for step in one.steps}
    assert sorted(METHODS.keys() - called) == []
    assert {kind_of(step) for one in load() for step in one.steps} >= {"export", "runner", "cancel"}


def test_every_error_reason_is_caused_or_excused() -> None:
    text = "".join(path.read_text() for path in FOLDER.glob("*.json"))
    reasons = set(ErrorReason.keys())
    caused = {name for name in reasons if f'"{name}"' in text}
    excused = json.loads((FOLDER.parent / "uncaused.json").read_text())
    assert sorted(caused & excused.keys()) == []
    assert sorted(reasons - caused - excused.keys()) == []
    assert all(excused.values())


def test_page_has_a_row_for_each_scenario_and_a_column_for_each_language() -> None:
    known = list(languages.load().values())
    found = table.parse(table.current(), known)
    assert table.render(load(), known, found) == table.current()


def test_table_is_written_where_it_is_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    one = Scenario("some_thing", "of some kind", ())
    known = list(languages.load().values())[:2]
    cells = {("some_thing", "python"): table.OK, ("some_thing", "go"): table.LEFT_OUT}
    table.write(table.render([one], known, cells), page)
    assert table.parse(table.current(page), known) == cells
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("\nafter\n")
    assert table.join(["✓", "✗", "–"]) == "✗"


SCRIPT = """
import json, sys
for line in sys.stdin:
    command = json.loads(line)
    if command["op"] == "garble":
        print("what?", flush=True)
    elif command["op"] == "export":
        print(json.dumps({"id": command["id"], "unsupported": "none"}), flush=True)
    elif command["op"] != "end":
        print(json.dumps({"id": command["id"], "ok": True, "text": command["text"]}), flush=True)
    else:
        sys.exit(3)
"""


def test_driver_is_held_to_the_protocol(tmp_path: Path) -> None:
    def start() -> ProcessDriver:
        return ProcessDriver([sys.executable, "-c", SCRIPT], tmp_path / "log")

    driver = start()
    assert (
        driver.answer(driver.send("call", text="ж"), ["ok"], time.monotonic() + SECONDS)["text"]
        == "ж"
    )
    with pytest.raises(Unsupported, match="none"):
        driver.answer(driver.send("export"), ["span_ids"], time.monotonic() + SECONDS)
    with pytest.raises(DriverError, match="no answer with started in time"):
        driver.answer(driver.send("call", text=""), ["started"], 0)
    driver.close()
    driver = start()
    with pytest.raises(DriverError, match="an invalid answer"):
        driver.answer(driver.send("garble"), ["ok"], time.monotonic() + SECONDS)
    driver.close()
    driver = start()
    with pytest.raises(DriverError, match="ended"):
        driver.answer(driver.send("end"), ["ok"], time.monotonic() + SECONDS)
    with pytest.raises(DriverError, match="status 3"):
        driver.close()


def test_roles_rotate_and_pass_over_who_cannot(tmp_path: Path) -> None:
    export = {"export": "otlp", "rollout_id": "r", "attempt_id": "a", "spans": []}
    one = scenario(tmp_path, {**export, "role": "a"}, {**export, "role": "b"}, roles=["a", "b"])
    able = [languages.Language(name, name, (), "") for name in ("x", "y")]
    unable = languages.Language("z", "z", (), "", (), frozenset({"export otlp"}))
    suite = Suite([able[0], unable, able[1]], Drivers(tmp_path))
    casts = [suite._cast(one, place) for place in range(3)]
    assert [None if cast is None else {k: v.name for k, v in cast.items()} for cast in casts] == [
        {"a": "x", "b": "y"},
        None,
        {"a": "y", "b": "x"},
    ]
