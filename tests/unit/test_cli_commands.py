"""What holds for every command, and how errors of calls are worded."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import click
import grpc
import pytest
from lightningstore.client.datasets import TRAINERS
from lightningstore.service.cli import connection, views
from lightningstore.service.cli.connection import Connection, reason
from lightningstore.service.cli.datasets import OWN_WORDS, WORDS
from lightningstore.service.cli.main import app
from lightningstore.v1.statistics_pb2 import GetServerInfoRequest


def commands(command: click.Command, path: str = "") -> Iterator[tuple[str, click.Command]]:
    """Return all commands with their names."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from commands(found, f"{path} {name}".strip())


def test_no_parameter_of_a_command_takes_the_value_of_another() -> None:
    found = dict(commands(app))
    assert {"servers move", "namespaces update", "serve"} <= found.keys()
    for path, command in found.items():
        names = [parameter.name for parameter in command.params]
        assert len(names) == len(set(names)), path


def test_every_number_has_a_maximum() -> None:
    """Messages hold numbers of 32 or 64 bits: a larger one would end a command with a traceback."""
    for path, command in commands(app):
        for parameter in command.params:
            kind = parameter.type
            assert kind is not click.INT, (path, parameter.name)
            if isinstance(kind, click.IntRange):
                assert kind.max is not None, (path, parameter.name)


@pytest.mark.parametrize(
    "words",
    [
        ("series", "--from", str(2**63)),
        ("series", "--from", "9" * 5000),
        ("series", "--by", "completion_time", "--from", "99999999d"),
        ("rollouts", "--since", "1e300"),
        ("resource", "x", "--version", str(2**31)),
        ("resource", "--publish-number", str(2**63)),
        ("workers", "--min-publish-number", str(2**63)),
        ("enqueue", "1", "--priority", str(2**31)),
        ("enqueue", "1", "--max-attempts", str(2**31)),
        ("enqueue", "1", "--timeout", "1e300"),
        ("claim", "--limit", str(2**31)),
        ("claim", "--wait", "1e300"),
        ("consumers", "create", "c", "--ack-deadline", "1e300"),
        ("namespaces", "create", "n", "--max-queue-length", str(2**63)),
        ("namespaces", "create", "n", "--keep-resource-versions", str(2**31)),
        ("namespaces", "create", "n", "--max-size", "99999999TB"),
        ("namespaces", "create", "n", "--retain-finished", "1e300"),
    ],
)
def test_number_that_no_message_holds_is_a_wrong_option(words: tuple[str, ...]) -> None:
    with pytest.raises(click.BadParameter) as caught:
        app.main(list(words), standalone_mode=False)
    assert caught.value.param is not None
    assert words[-2] in caught.value.param.opts


@pytest.mark.parametrize("text", ["all", "-1", str(2**63 - 1), "9" * 20])
def test_limit_above_every_list_is_unlimited(text: str) -> None:
    assert views.Limit().convert(text, None, None) == math.inf


class _Failed(grpc.RpcError):
    def __init__(self, details: str, trailers: tuple[tuple[str, bytes], ...]) -> None:
        self._details, self._trailers = details, trailers

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.UNAVAILABLE

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return self._trailers


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            _Failed("no server owns it at the moment", (("grpc-status-details-bin", b"x"),)),
            "no server owns it at the moment (UNAVAILABLE)",
        ),
        (
            _Failed("last error: Connection refused", ()),
            "no server answers at h:1 (Connection refused); is `lightningstore serve` running?",
        ),
    ],
)
def test_an_unavailable_server_is_not_a_missing_one(error: _Failed, text: str) -> None:
    assert reason("h:1", error) == text


@pytest.mark.parametrize(("detail", "tries"), [(b"..ERROR_REASON_NOT_OWNER..", 3), (b"other", 1)])
def test_a_call_is_repeated_while_its_namespace_moves(
    monkeypatch: pytest.MonkeyPatch, detail: bytes, tries: int
) -> None:
    errors = [_Failed("moving", (("grpc-status-details-bin", detail),)) for _ in range(2)]
    requests: list[Any] = []

    class Channel:
        def unary_unary(self, *_: Any) -> Any:
            def call(request: Any, **_: Any) -> str:
                requests.append(request)
                if errors:
                    raise errors.pop()
                return "answer"

            return call

    monkeypatch.setattr(connection, "MOVE_DELAY", 0)
    server = Connection({"address": "127.0.0.1:1"})
    server.close()
    monkeypatch.setattr(server, "_channel", Channel())
    try:
        assert server.call(GetServerInfoRequest()) == "answer"
    except grpc.RpcError:
        assert detail == b"other"
    assert len(requests) == tries


def test_the_words_of_the_command_are_those_of_the_client() -> None:
    assert (OWN_WORDS, *sorted(TRAINERS)) == WORDS


def test_starting_a_server_imports_no_optional_parts() -> None:
    """HTTP alone is a third of what its start costs, and a server may be without it."""
    program = "import lightningstore.service.cli.serve, sys; print(*sys.modules)"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    modules = set(ran.stdout.split())
    assert "lightningstore.service.server.server" in modules
    assert not modules & {"aiohttp", "prometheus_client", "asyncpg", "zstandard", "rich"}
