"""Reads scenarios and rejects unknown content.

A scenario is a JSON object:

| key | value |
| --- | --- |
| `description` | one line, for the table |
| `roles` | names of clients, each in another language; default: one client |
| `server` | options of a separate server, by their long names with `_` |
| `own_namespace` | true: the calls are made in a new namespace, which holds nothing |
| `backends` | the back ends to use |
| `steps` | the steps, in order |

Among the options of `server`, `"auth_tokens": true` provides the tokens `${token_admin}`,
`_algorithm`, `_runner`, `_read_only` and `_expired`, and `"fresh": true` is a new server, which takes
seconds to start in all languages: `own_namespace` is enough for those that need an empty store. The
name of a scenario is that of its file. A step is an object with one of these keys:

| key | action |
| --- | --- |
| `call`: method | makes a call and compares the response |
| `begin`: method, `label` | starts a call; waits until a response stream is accepted |
| `await`: label | waits for the end of a started call or runner |
| `cancel`: label | cancels that call or runner |
| `runner`: label | starts a Runner with the scripted agent, with `options` |
| `stop`: label | stops a runner |
| `export`: `sdk` or `otlp` | exports `spans` for `rollout_id` and `attempt_id`; saves their ids as `ids` |
| `reconnect`: true | gives the client a new connection |
| `server`: `restart` | ends the server with SIGTERM and starts it again; also `stop` and `start` |
| `check`: value | compares a value |

Further keys of a step:

- `role` names the client.
- `request` or `requests`, `timeout` and `metadata` belong to a call.
- `eventually`: true repeats a call until the result is as expected.
- `error` is the expected error, whose domain is always compared. Without it the call must succeed.
- `expect` is the expected response; the messages of a stream are merged into one.
- `values` are expected values of paths: `{"batches[*].spans[*].name": […]}`.
- `save` names the values of paths, or of `[path, alternative]`.
- `elapsed` `{"min", "max"}` limits the seconds since the start.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightningstore.v1 import namespace_pb2, service_pb2

from tests.conformance.match import OPERATORS
from tests.conformance.values import GENERATORS, ScenarioError, names_in

FOLDER = Path(__file__).with_name("scenarios")
#: The methods of the contract, by their names, which no two services share.
METHODS = {
    method.name: method
    for file in (service_pb2.DESCRIPTOR, namespace_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
}

_TOP = {"description", "roles", "server", "own_namespace", "backends", "steps"}
#: What connects without the namespace of the scenario.
_ELSEWHERE = {"runner", "export"}
_SEND = {"request", "requests", "timeout", "metadata"}
_JUDGE = {"error", "expect", "values", "save", "elapsed"}
#: What may go with a step of each kind.
_KEYS: dict[str, set[str]] = {
    "call": {"role", "eventually", *_SEND, *_JUDGE},
    "begin": {"role", "label", *_SEND},
    "await": _JUDGE,
    "cancel": set(),
    "runner": {"role", "options"},
    "stop": set(),
    "export": {"role", "spans", "rollout_id", "attempt_id", "ids"},
    "reconnect": {"role"},
    "server": set(),
    "check": {"expect"},
}
_ERROR = {"code", "reason", "metadata", "fields", "domain", "retry_delay", "message"}
_RUNNER = {"worker_id", "concurrency", "max_rollouts", "heartbeat_period", "queues"}
TOKENS = ("admin", "algorithm", "runner", "read_only", "expired")
BACKENDS = ("memory", "sqlite")


@dataclass(frozen=True)
class Scenario:
    """Something to ask of the store, and what must come of it."""

    name: str
    description: str
    steps: tuple[dict[str, Any], ...]
    roles: tuple[str, ...] = ("client",)
    server: tuple[tuple[str, Any], ...] = ()
    own_namespace: bool = False
    backends: tuple[str, ...] = BACKENDS

    def needs(self, role: str) -> set[str]:
        """Return the ops that a role takes, as languages.json lists them under `unsupported`."""
        found = set()
        for step in self.steps:
            if step.get("role", self.roles[0]) == role:
                kind = kind_of(step)
                found |= {kind, f"export {step[kind]}"} if kind == "export" else {kind}
        return found


def kind_of(step: dict[str, Any]) -> str:
    """Return what a step does. Raises ScenarioError unless it is one thing."""
    kinds = [key for key in step if key in _KEYS]
    if len(kinds) != 1:
        raise ScenarioError(f"one of {', '.join(_KEYS)} is wanted, not {list(step)}")
    return kinds[0]


def load(folder: Path = FOLDER) -> list[Scenario]:
    """Return all scenarios. Raises ScenarioError naming file and step."""
    return [read(path) for path in sorted(folder.glob("*.json"))]


def read(path: Path) -> Scenario:
    """Return the scenario of a file. Raises ScenarioError naming file and step."""
    try:
        return _scenario(path.stem, json.loads(path.read_text(encoding="utf-8")))
    except (ScenarioError, ValueError) as error:
        raise ScenarioError(f"{path.name}: {error}") from None


def _scenario(name: str, data: dict[str, Any]) -> Scenario:
    _known(data, _TOP)
    if not data.get("description") or not data.get("steps"):
        raise ScenarioError("description and steps are wanted")
    scenario = Scenario(
        name,
        data["description"],
        tuple(data["steps"]),
        tuple(data.get("roles", ("client",))),
        tuple(sorted(data.get("server", {}).items())),
        bool(data.get("own_namespace")),
        tuple(data.get("backends", BACKENDS)),
    )
    if not set(scenario.backends) <= set(BACKENDS):
        raise ScenarioError(f"unknown back end in {list(scenario.backends)}")
    checker = _Checker(scenario)
    for number, step in enumerate(scenario.steps, 1):
        try:
            checker.step(step)
        except ScenarioError as error:
            raise ScenarioError(f"step {number}: {error}") from None
    if checker.open:
        raise ScenarioError(f"begun, but never awaited: {', '.join(sorted(checker.open))}")
    return scenario


def _known(data: dict[str, Any], keys: set[str]) -> None:
    unknown = set(data) - keys
    if unknown:
        raise ScenarioError(f"unknown: {', '.join(sorted(unknown))}")


def _words(value: Any) -> None:
    """Refuse words with $ that mean nothing."""
    if isinstance(value, list):
        for item in value:
            _words(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            is_word = key.startswith("$") and not key.startswith("${")
            if is_word and (key not in GENERATORS | OPERATORS or len(value) != 1):
                raise ScenarioError(f"{key} is no word, or not alone")
            _words(item)


class _Checker:
    """Walks through the steps with what is known at each."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._names = {"run", "index"}
        self.open: set[str] = set()
        settings = dict(scenario.server)
        self._fresh = bool(settings.get("fresh"))
        if settings.get("auth_tokens"):
            self._names |= {f"token_{role}" for role in TOKENS}

    def step(self, step: dict[str, Any]) -> None:
        kind = kind_of(step)
        _known(step, {kind, *_KEYS[kind]})
        _words(step)
        unknown = names_in(step) - self._names
        if unknown:
            raise ScenarioError(f"nothing is saved as {', '.join(sorted(unknown))}")
        if step.get("role", self._scenario.roles[0]) not in self._scenario.roles:
            raise ScenarioError(f"unknown role {step['role']!r}")
        if self._scenario.own_namespace and kind in _ELSEWHERE:
            raise ScenarioError(f"{kind} does not connect to the scenario's own namespace")
        check = getattr(self, f"_{kind}", None)
        if check is not None:
            check(step)
        _known(step.get("error", {}), _ERROR)
        _known(step.get("elapsed", {}), {"min", "max"})
        self._names |= set(step.get("save", {}))

    def _call(self, step: dict[str, Any]) -> None:
        self._method(step, step["call"])

    def _begin(self, step: dict[str, Any]) -> None:
        self._method(step, step["begin"])
        self._open(step["label"])

    def _method(self, step: dict[str, Any], name: str) -> None:
        if name not in METHODS:
            raise ScenarioError(f"no method {name!r}")
        streams = METHODS[name].client_streaming
        if ("requests" if streams else "request") not in step or {"request", "requests"} <= set(
            step
        ):
            raise ScenarioError(f"{name} takes {'requests' if streams else 'request'}")

    def _open(self, label: str) -> None:
        if label in self.open:
            raise ScenarioError(f"{label!r} is begun already")
        self.open.add(label)

    def _is_open(self, label: str) -> None:
        if label not in self.open:
            raise ScenarioError(f"nothing is begun as {label!r}")

    def _await(self, step: dict[str, Any]) -> None:
        self._is_open(step["await"])
        self.open.remove(step["await"])

    def _cancel(self, step: dict[str, Any]) -> None:
        self._is_open(step["cancel"])

    def _stop(self, step: dict[str, Any]) -> None:
        self._is_open(step["stop"])

    def _runner(self, step: dict[str, Any]) -> None:
        _known(step.get("options", {}), _RUNNER)
        self._open(step["runner"])

    def _export(self, step: dict[str, Any]) -> None:
        if step["export"] not in ("sdk", "otlp"):
            raise ScenarioError(f"unknown exporter {step['export']!r}")
        if not {"spans", "rollout_id", "attempt_id"} <= set(step):
            raise ScenarioError("spans, rollout_id and attempt_id are wanted")
        self._names |= {step["ids"]} if "ids" in step else set()

    def _server(self, step: dict[str, Any]) -> None:
        if step["server"] not in ("restart", "stop", "start") or not self._fresh:
            raise ScenarioError("server: restart, stop or start, in a scenario with a fresh server")
