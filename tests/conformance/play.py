"""Runs a scenario: sends commands to drivers and checks their answers."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from tests.conformance.driver import Driver, DriverError
from tests.conformance.match import compare, show
from tests.conformance.scenario import METHODS, Scenario, kind_of
from tests.conformance.values import ScenarioError, expand, find, merge

#: Seconds that a scenario may take.
DEADLINE = 60.0
_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_DOMAIN = "lightningstore"
#: The metadata key with the namespace of a call.
NAMESPACE_HEADER = "x-lightning-namespace"


class Mismatch(Exception):
    """The store, or a driver, did not answer as expected."""


class Power(Protocol):
    """What can end the server and start it again."""

    def stop(self) -> None:
        """End it."""

    def start(self) -> None:
        """Start it at the same address."""


@dataclass
class _Begun:
    """A call or a runner that is under way."""

    driver: Driver
    number: int
    since: float
    method: str = ""


class Play:
    """One run of a scenario."""

    def __init__(
        self,
        scenario: Scenario,
        drivers: Mapping[str, Driver],
        run: str,
        server: Power | None = None,
        variables: Mapping[str, str] | None = None,
        deadline: float = DEADLINE,
    ) -> None:
        """Prepare a run with a driver for each role and a word that is unique to the run.

        The word also names the namespace of a scenario that has its own.
        """
        self._scenario = scenario
        self._drivers = drivers
        self._power = server
        self._variables: dict[str, Any] = {**(variables or {}), "run": run}
        self._begun: dict[str, _Begun] = {}
        self._metadata = {NAMESPACE_HEADER: run} if scenario.own_namespace else {}
        self._until = time.monotonic() + deadline

    def run(self) -> None:
        """Do all steps. Raises Mismatch, DriverError, Unsupported, ScenarioError."""
        for number, step in enumerate(self._scenario.steps, 1):
            kind = kind_of(step)
            try:
                getattr(self, f"_{kind}")(step)
            except (Mismatch, DriverError, ScenarioError) as error:
                place = f"step {number} ({kind} {json.dumps(step[kind])[:80]})"
                raise type(error)(f"{place}: {error}") from None

    def _expand(self, value: Any) -> Any:
        return expand(value, self._variables)

    def _driver(self, step: dict[str, Any]) -> Driver:
        return self._drivers[step.get("role", self._scenario.roles[0])]

    def _send(self, step: dict[str, Any], method: str) -> _Begun:
        requests = step["requests"] if "requests" in step else [step["request"]]
        more = {"timeout": self._expand(step["timeout"])} if "timeout" in step else {}
        if metadata := self._metadata | self._expand(step.get("metadata", {})):
            more["metadata"] = metadata
        driver = self._driver(step)
        number = driver.send("call", method=method, requests=self._expand(requests), **more)
        return _Begun(driver, number, time.monotonic(), method)

    def _call(self, step: dict[str, Any]) -> None:
        pause = _PAUSE
        while True:
            begun = self._send(step, step["call"])
            answer = begun.driver.answer(begun.number, ["responses"], self._until)
            try:
                return self._judge(step, begun, answer)
            except Mismatch:
                if not step.get("eventually") or time.monotonic() + pause > self._until:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    def _begin(self, step: dict[str, Any]) -> None:
        begun = self._begun[step["label"]] = self._send(step, step["begin"])
        if METHODS[begun.method].server_streaming:
            begun.driver.answer(begun.number, ["started", "responses"], self._until)

    def _await(self, step: dict[str, Any]) -> None:
        begun = self._begun.pop(step["await"])
        if begun.method:
            answer = begun.driver.answer(begun.number, ["responses"], self._until)
        else:
            begun.driver.answer(begun.number, ["ended", "error"], self._until)
            answer = {"responses": [{"ended": True}]}
        self._judge(step, begun, answer)

    def _simply(self, driver: Driver, op: str, **parameters: Any) -> None:
        driver.answer(driver.send(op, **parameters), ["ok"], self._until)

    def _cancel(self, step: dict[str, Any]) -> None:
        begun = self._begun[step["cancel"]]
        self._simply(begun.driver, "cancel", target=begun.number)

    def _stop(self, step: dict[str, Any]) -> None:
        begun = self._begun[step["stop"]]
        self._simply(begun.driver, "stop", target=begun.number)

    def _reconnect(self, step: dict[str, Any]) -> None:
        self._simply(self._driver(step), "reconnect")

    def _runner(self, step: dict[str, Any]) -> None:
        driver = self._driver(step)
        options = {"worker_id": "${run}", **step.get("options", {})}
        number = driver.send("runner", **self._expand(options))
        driver.answer(number, ["started"], self._until)
        self._begun[step["runner"]] = _Begun(driver, number, time.monotonic())

    def _export(self, step: dict[str, Any]) -> None:
        driver = self._driver(step)
        parameters = {key: self._expand(step[key]) for key in ("rollout_id", "attempt_id", "spans")}
        number = driver.send("export", exporter=step["export"], **parameters)
        answer = driver.answer(number, ["span_ids", "error"], self._until)
        ids = answer.get("span_ids")
        wanted = [{"$re": "[0-9a-f]{16}"}] * len(parameters["spans"])
        _refuse(compare(wanted, ids, "span_ids"), answer)
        if "ids" in step:
            self._variables[step["ids"]] = ids

    def _server(self, step: dict[str, Any]) -> None:
        if self._power is None:
            raise ScenarioError("there is no server to restart")
        if step["server"] != "start":
            self._power.stop()
        if step["server"] != "stop":
            self._power.start()

    def _check(self, step: dict[str, Any]) -> None:
        found = self._expand(step["check"])
        _refuse(compare(self._expand(step["expect"]), found, "the value"), {})

    def _judge(self, step: dict[str, Any], begun: _Begun, answer: dict[str, Any]) -> None:
        """Compare an answer with all that the step expects; save what it says."""
        seconds = time.monotonic() - begun.since
        responses, error = answer["responses"], answer.get("error")
        wrong = _compare_error(self._expand(step.get("error")), error)
        method = METHODS.get(begun.method)
        if not wrong and method is not None and not method.server_streaming:
            count = 0 if error else 1
            if len(responses) != count:
                wrong.append(f"{len(responses)} responses, not {count}")
        merged = merge(responses)
        if not wrong and "expect" in step:
            wrong += compare(self._expand(step["expect"]), merged)
        for path, expected in step.get("values", {}).items() if not wrong else ():
            wrong += compare(self._expand(expected), find(path, merged), path)
        elapsed = step.get("elapsed", {})
        if not elapsed.get("min", 0) <= seconds <= elapsed.get("max", DEADLINE):
            wrong.append(f"took {seconds:.2f} seconds, not {elapsed}")
        _refuse(wrong, answer)
        for name, source in step.get("save", {}).items():
            path, *otherwise = source if isinstance(source, list) else [source]
            value = find(path, merged)
            if value is None and not otherwise:
                raise Mismatch(f"there is no {path} in {show(merged)}")
            self._variables[name] = self._expand(otherwise[0]) if value is None else value


def _compare_error(expected: Any, error: Any) -> list[str]:
    if expected is None:
        return [] if error is None else [f"fails with {json.dumps(error)[:500]}"]
    if error is None:
        return [f"succeeds, instead of {expected}"]
    if "reason" in expected:
        expected = {"domain": _DOMAIN, **expected}
    return compare(expected, error, "error")


def _refuse(wrong: list[str], answer: dict[str, Any]) -> None:
    if wrong:
        text = "; ".join(wrong[:5])
        if "error" in answer and "fails with" not in text:
            text += f" (error {json.dumps(answer['error'])[:300]})"
        raise Mismatch(text)
