"""Completion of ids: what the shell asks for while a command is typed."""

from __future__ import annotations

from collections.abc import Iterable

from lightningstore.service.cli.connection import MOST, Connection, completer

#: Stands for the rollout that was enqueued last, and the resources that were added or updated last.
LATEST = "latest"


def _rollouts(server: Connection, text: str) -> Iterable[tuple[str, str]]:
    from lightningstore.client.message_json import message_to_json  # noqa: PLC0415
    from lightningstore.v1 import rollout_pb2  # noqa: PLC0415

    yield LATEST, "enqueued last"
    request = rollout_pb2.ListRolloutsRequest(
        rollout_id_contains=text, order_by="start_time desc", page_size=MOST, omit_payloads=True
    )
    for rollout in server.call(request).rollouts:
        yield rollout.rollout_id, message_to_json(rollout)["status"]


def _workers(server: Connection, text: str) -> Iterable[tuple[str, str]]:
    from lightningstore.client.message_json import message_to_json  # noqa: PLC0415
    from lightningstore.v1 import worker_pb2  # noqa: PLC0415

    request = worker_pb2.ListWorkersRequest(worker_id_contains=text, page_size=MOST)
    for worker in server.call(request).workers:
        yield worker.worker_id, message_to_json(worker)["status"]


def _resources(server: Connection, text: str) -> Iterable[tuple[str, str]]:
    from lightningstore.v1 import resources_pb2  # noqa: PLC0415

    yield LATEST, "added or updated last"
    request = resources_pb2.ListResourcesRequest(resources_id_contains=text, page_size=MOST)
    for one in server.call(request).resources:
        yield one.resources_id, f"version {one.version}"


rollouts = completer(_rollouts)
workers = completer(_workers)
resources = completer(_resources)
