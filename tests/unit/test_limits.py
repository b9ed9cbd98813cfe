"""Each limit has one definition, and what the Python client repeats of the server's fits it."""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from dataclasses import fields
from pathlib import Path

import pytest
from lightningstore.client._calls.traces import DERIVED_ROLLOUTS
from lightningstore.client._datasets.batches import MESSAGE_BYTES
from lightningstore.client._runner.failures import MESSAGE_LENGTH, TYPE_LENGTH
from lightningstore.client._transport import channel
from lightningstore.client.exporter import SpanExporter
from lightningstore.client.runner import _worker_id
from lightningstore.service.rules.checks import MAX_FAILURE_MESSAGE_BYTES, MAX_FAILURE_TYPE_BYTES
from lightningstore.service.rules.ids import MAX_ID_LENGTH
from lightningstore.service.rules.limits import MIB, Limits
from lightningstore.service.server import server
from lightningstore.service.server.config import Config

ROOT = Path(__file__).parents[2]
SERVICE = ROOT / "service/lightningstore/service"
LIMIT = re.compile(r"(MAX|DEFAULT|HIGHEST|LARGEST)_|_(BYTES|SECONDS|LENGTH|ITEMS)$")


def test_every_limit_is_an_option_with_its_default() -> None:
    limits = Config().limits()
    for field in fields(Limits):
        if field.name in {
            "eviction_bytes",
            "safe_bytes",
        }:  # by options that are shares of the memory
            continue
        names = {f"max_{field.name}", f"keep_{field.name}"}
        assert names & set(Config.model_fields)
        assert getattr(limits, field.name) == field.default, field.name


def test_no_limit_is_defined_twice() -> None:
    modules = defaultdict(list)
    for path in SERVICE.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id.lstrip("_"), ast.unparse(node.value)
                if LIMIT.search(name) and re.search(r"\d", value):
                    modules[name, value].append(str(path.relative_to(SERVICE)))
    assert {key: where for key, where in modules.items() if len(where) > 1} == {}


def test_limits_that_the_client_repeats_are_the_servers() -> None:
    limits = Limits()
    exporter = inspect.signature(SpanExporter.__init__).parameters
    assert exporter["max_span_bytes"].default == limits.span_bytes
    assert limits.batch_items == DERIVED_ROLLOUTS
    assert MESSAGE_BYTES < limits.message_bytes < channel.MAX_MESSAGE_BYTES
    assert channel.MAX_MESSAGE_BYTES - limits.message_bytes >= MIB
    # A character takes up to four bytes.
    assert 4 * TYPE_LENGTH <= MAX_FAILURE_TYPE_BYTES
    assert 4 * MESSAGE_LENGTH <= MAX_FAILURE_MESSAGE_BYTES


def test_the_clients_pings_are_no_flood_to_the_server() -> None:
    assert channel.KEEPALIVE_MS >= server.MIN_PING_INTERVAL_MS


def test_default_worker_id_is_no_longer_than_ids_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "h" * 2 * MAX_ID_LENGTH)
    assert len(_worker_id(None)) == MAX_ID_LENGTH
