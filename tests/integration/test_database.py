"""`lightningstore serve --database-url`: a server over PostgreSQL as a process of its own."""

from __future__ import annotations

import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore

from tests.integration.process import run, serve
from tests.postgres import PostgresServer

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def url(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database."""
    name = f"d{uuid.uuid4().hex[:16]}"
    admin = await asyncpg.connect(postgres.url)
    await admin.execute(f"CREATE DATABASE {name}")
    yield postgres.url.removesuffix("postgres") + name
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await admin.close()


async def enqueued(address: str) -> str:
    async with AsyncLightningStore(address) as store:
        (rollout,) = await store.enqueue_rollouts([{"input": {"question": 1}}])
        return rollout.rollout_id


async def test_server_over_a_database_keeps_what_it_answered(url: str, tmp_path: Path) -> None:
    first = await serve("--port", "0", "--database-url", url, folder=tmp_path)
    assert f"{url.replace('postgres@', '')}," in first.first_line
    ids = [await enqueued(first.address)]
    assert await first.stop() == 0
    # Given up by the one that stopped, so that this one does not wait for the end of a lease.
    second = await serve("--port", "0", "--database-url", url, folder=tmp_path)
    ids.append(await enqueued(second.address))
    async with AsyncLightningStore(second.address) as store:
        assert (await store.get_server_info()).backend == "postgresql"
        assert [item.rollout_id for item in await store.list_rollouts()] == ids
    assert not list(tmp_path.iterdir())
    assert await second.stop() == 0


async def test_second_server_shares_the_namespaces_and_takes_them_over(
    url: str, tmp_path: Path
) -> None:
    first = await serve("--port", "0", "--database-url", url, folder=tmp_path)
    second = await serve("--port", "0", "--database-url", url, folder=tmp_path)
    ids = [await enqueued(first.address), await enqueued(second.address)]
    for number in (signal.SIGTERM, signal.SIGKILL):
        ending, staying = (first, second) if number == signal.SIGTERM else (second, first)
        await ending.stop(number)
        ids.append(await enqueued(staying.address))
        async with AsyncLightningStore(staying.address) as store:
            assert [item.rollout_id for item in await store.list_rollouts()] == ids
        if number == signal.SIGTERM:
            first = await serve("--port", "0", "--database-url", url, folder=tmp_path)
    assert await first.stop() == 0


@pytest.mark.parametrize("wrong", ["mysql://someone:secret@host/db", "host:secret"])
async def test_wrong_url_is_said_without_its_password(wrong: str, tmp_path: Path) -> None:
    code, _, errors = await run("serve", "--database-url", wrong, folder=tmp_path)
    assert code == 2
    assert "--database-url" in errors
    assert "postgresql://user@host:5432/database" in errors
    assert "secret" not in errors
