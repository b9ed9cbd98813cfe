"""The keyword arguments of a connection are the same wherever an address is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from lightningstore.client import AsyncLightningStore, LightningStore, Runner, SpanExporter
from lightningstore.client.connection import ConnectionOptions, endpoint

ADDRESS = "127.0.0.1:1"


def runner(*args: Any, **connection: Any) -> Runner:
    return Runner(*args, lambda *_: None, **connection)


@pytest.mark.parametrize(
    "make", [endpoint, LightningStore, AsyncLightningStore, SpanExporter, runner]
)
def test_unknown_argument_is_refused(make: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument: tokn"):
        make(ADDRESS, tokn="secret")


@pytest.mark.parametrize("make", [SpanExporter, runner])
def test_unknown_argument_is_refused_beside_a_client(make: Callable[..., object]) -> None:
    with LightningStore(ADDRESS) as store, pytest.raises(TypeError, match="tokn"):
        make(store, tokn="secret")


@pytest.mark.parametrize("make", [LightningStore, SpanExporter, runner])
def test_arguments_reach_the_connection(make: Callable[..., Any]) -> None:
    options: ConnectionOptions = {
        "metadata": {"X-Team": "a"},
        "token": "secret",
        "allow_insecure_token": True,
    }
    made = make(ADDRESS, **options)
    store = made if isinstance(made, LightningStore) else made._store
    try:
        assert store._transport._holder.endpoint == endpoint(ADDRESS, **options)
        assert dict(endpoint(ADDRESS, **options).metadata) == {
            "x-team": "a",
            "authorization": "Bearer secret",
        }
    finally:
        store.close()
