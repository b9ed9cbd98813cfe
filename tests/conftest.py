"""Fixtures of all tests."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.postgres import PostgresServer


def pytest_collection_finish() -> None:
    """Leave the tests themselves out of garbage collection: each full one would look at ten thousand of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that all tests share; those that crash or restart theirs start their own."""
    from tests.postgres import running  # tests of agentlightning run without its driver

    with running() as server:
        yield server
