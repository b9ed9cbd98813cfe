"""Completion of ids: what the shell asks for while a command is typed.

A server is asked within a second, and every error is silent: completion must not get in the way of typing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem
from lightningstore.service.cli import connection

#: Seconds that the server has.
SECONDS = 0.8
#: Ids that are offered at most.
MOST = 100
#: Stands for the rollout that was enqueued last, and the resources that were added or updated last.
LATEST = "latest"

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completer(find: Callable[[connection.Connection, str], Iterable[tuple[str, str]]]) -> Complete:
    """Return the completion of a parameter; `find` returns ids that may begin with a text, each with what it is."""

    def complete(
        context: click.Context,
        _parameter: click.Parameter,
        incomplete: str,
    ) -> list[CompletionItem]:
        given: dict[str, Any] = {}
        while context is not None:
            given = {**{k: v for k, v in context.params.items() if v is not None}, **given}
            context = context.parent  # type: ignore[assignment]
        try:
            server = connection.Connection(connection.take(given), seconds=SECONDS)
            try:
                found = [
                    item for item in find(server, incomplete) if item[0].startswith(incomplete)
                ]
            finally:
                server.close()
        except Exception:
            return []
        return [CompletionItem(name, help=text) for name, text in found[:MOST]]

    return complete


def _rollouts(server: connection.Connection, text: str) -> Iterable[tuple[str, str]]:
    from lightningstore.client.message_json import message_to_json  # noqa: PLC0415
    from lightningstore.v1 import rollout_pb2  # noqa: PLC0415

    yield LATEST, "enqueued last"
    request = rollout_pb2.ListRolloutsRequest(
        rollout_id_contains=text, order_by="start_time desc", page_size=MOST
    )
    for rollout in server.call(request).rollouts:
        yield rollout.rollout_id, message_to_json(rollout)["status"]


def _workers(server: connection.Connection, text: str) -> Iterable[tuple[str, str]]:
    from lightningstore.client.message_json import message_to_json  # noqa: PLC0415
    from lightningstore.v1 import worker_pb2  # noqa: PLC0415

    request = worker_pb2.ListWorkersRequest(worker_id_contains=text, page_size=MOST)
    for worker in server.call(request).workers:
        yield worker.worker_id, message_to_json(worker)["status"]


def _resources(server: connection.Connection, text: str) -> Iterable[tuple[str, str]]:
    from lightningstore.v1 import resources_pb2  # noqa: PLC0415

    yield LATEST, "added or updated last"
    request = resources_pb2.ListResourcesRequest(resources_id_contains=text, page_size=MOST)
    for one in server.call(request).resources:
        yield one.resources_id, f"version {one.version}"


rollouts = completer(_rollouts)
workers = completer(_workers)
resources = completer(_resources)
