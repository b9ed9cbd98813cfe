"""What holds for every command, and how errors of calls are worded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import grpc
import pytest
from lightningstore.service.cli.connection import reason
from lightningstore.service.cli.main import app


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


class _Failed:
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
            _Failed("no server owns it at the moment", (("grpc-status-details-bin", b""),)),
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
