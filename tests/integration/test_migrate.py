"""`lightningstore migrate`: a namespace goes from a data file to a database and back."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore, open_store

from tests.integration.process import run, serve
from tests.postgres import PostgresServer, make_schema

pytestmark = pytest.mark.asyncio


@pytest_asyncio.fixture
async def url(postgres: PostgresServer) -> str:
    """A database without tables."""
    made = f"{postgres.url}?search_path=s{uuid.uuid4().hex[:16]}"
    await make_schema(made)
    return made


async def test_server_goes_on_over_a_database_and_over_a_file_again(
    url: str, tmp_path: Path
) -> None:
    async with open_store(f"sqlite:///{tmp_path}/runs.db") as store:
        await store.create_namespace("x")
        await store.enqueue_rollout({"q": 1}, rollout_id="ro-default")
    async with open_store(f"sqlite:///{tmp_path}/runs.db", namespace="x") as store:
        await store.enqueue_rollout({"q": 2}, rollout_id="ro-x")
    for options in ((), ("--namespace", "x")):
        code, out, errors = await run("migrate", "runs.db", url, *options, folder=tmp_path)
        assert (code, errors) == (0, "")
        told, then = out.splitlines()
        assert ": 1 rollout, 0 attempts, 0 spans, " in told
        assert "next: lightningstore serve --database-url " in then
        assert "is a backup from now on" in then
    code, _, errors = await run("migrate", "runs.db", url, folder=tmp_path)
    assert (code, errors.count("\n")) == (1, 1)
    assert "namespace 'default' exists in the database" in errors
    server = await serve("--port", "0", "--database-url", url, folder=tmp_path)
    for name in ("default", "x"):
        async with AsyncLightningStore(server.address, namespace=name) as store:
            (claimed,) = await store.dequeue_rollouts()
            assert claimed.rollout_id == f"ro-{name}"
    code, _, errors = await run("migrate", url, "back.db", folder=tmp_path)
    assert code == 1
    assert "namespace 'default' is owned by the server at" in errors
    assert errors.count("\n") == 1
    assert await server.stop() == 0
    code, out, errors = await run(
        "migrate", url, "back.db", "--namespace", "x", "--target-namespace", "y", folder=tmp_path
    )
    assert (code, errors) == (0, "")
    assert "next: lightningstore serve --db back.db" in out
    code, out, _ = await run("migrate", url, "data/", folder=tmp_path)
    assert code == 0
    assert "next: lightningstore serve --data data/" in out
    async with open_store(f"sqlite:///{tmp_path}/back.db", namespace="y") as store:
        assert (await store.get_rollout("ro-x")).status == "preparing"
    async with open_store(f"sqlite:///{tmp_path}/data/default.db") as store:
        assert (await store.get_rollout("ro-default")).status == "preparing"


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("a.db", "b.db"), 2, "one of SOURCE and TARGET must be a data file"),
        (("memory:", "postgresql://h/d"), 2, "the memory back end keeps nothing"),
        (("mysql://h/d", "postgresql://h/d"), 2, "names no storage"),
        (("a.db", "postgresql://u:secret@127.0.0.1:1/d"), 1, "a.db does not exist"),
        (("a.db", "postgresql://h/d", "--namespace", "A"), 2, "--namespace"),
        (("a.db", "postgresql://h/d", "--target-namespace", "A"), 2, "--target-namespace"),
        (("some.db", "postgresql://h/d", "--namespace", "x"), 1, "--target-namespace x"),
        (("some.db", "postgresql://u:secret@127.0.0.1:1/d"), 1, "127.0.0.1:1/d cannot be used"),
        (("postgresql://u:secret@127.0.0.1:1/d", "b.db"), 1, "127.0.0.1:1/d cannot be used"),
        (("postgresql://u:secret@h:port/d", "b.db"), 1, "URL"),
    ],
)
async def test_wrong_use_is_said_without_the_password(
    arguments: tuple[str, ...], code: int, told: str, tmp_path: Path
) -> None:
    async with open_store(f"sqlite:///{tmp_path}/some.db"):
        pass
    before = sorted(path.name for path in tmp_path.iterdir())
    got, out, errors = await run("migrate", *arguments, folder=tmp_path)
    assert (got, out) == (code, "")
    assert told in errors
    assert "secret" not in errors
    assert "Traceback" not in errors
    assert sorted(path.name for path in tmp_path.iterdir()) == before
