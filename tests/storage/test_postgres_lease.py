"""Servers over one PostgreSQL database: leases, owners, and the tables that they share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage.postgres import lease, schema
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.lease import NoNamespace, Owned
from lightningstore.service.storage.postgres.link import boot_seconds
from lightningstore.service.storage.postgres.store import PostgresStorage

from tests.postgres import PostgresServer

pytestmark = pytest.mark.asyncio

LEASE_SECONDS = 60.0


@pytest_asyncio.fixture
async def admin(postgres: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test itself."""
    connection = await asyncpg.connect(postgres.url)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def servers(postgres: PostgresServer) -> AsyncIterator[list[Database]]:
    """Three servers of one database."""
    made = [
        Database(postgres.url, address=f"host-{n}:4747", lease_seconds=LEASE_SECONDS)
        for n in range(3)
    ]
    for database in made:
        await database.enter()
    yield made
    for database in made:
        await database.leave()


@pytest.fixture
def name() -> str:
    """A namespace that no other test has."""
    return f"n{uuid.uuid4().hex[:16]}"


def server_id(database: Database) -> str:
    assert database.membership._lease is not None
    return database.membership._lease.server_id


async def expire(admin: asyncpg.Connection, database: Database) -> None:
    """End a server's lease in the database, as time does."""
    text = "UPDATE ls_servers SET expires_at = 'epoch' WHERE id = $1"
    await admin.execute(text, server_id(database))


# Owners


async def test_namespace_has_one_owner_until_it_is_given_up(
    servers: list[Database], name: str
) -> None:
    first, second, _ = (database.membership for database in servers)
    assert await first.create(name)
    assert not await second.create(name)
    owned = await first.take(name)
    with pytest.raises(Owned, match="is owned by the server at host-0:4747, whose lease ends in"):
        await second.take(name)
    await first.give_up(owned)
    assert owned.owned_until == 0
    taken = await second.take(name)
    assert taken.epoch == owned.epoch + 1
    assert (taken.ns, taken.store_id) == (owned.ns, owned.store_id)
    await first.give_up(owned)  # takes nothing from the new owner
    with pytest.raises(Owned, match="host-1:4747"):
        await first.take(name)


async def test_namespace_that_does_not_exist_is_not_made_by_taking_it(
    servers: list[Database], name: str
) -> None:
    with pytest.raises(NoNamespace):
        await servers[0].membership.take(name)


async def test_owner_that_takes_again_gets_another_epoch(
    servers: list[Database], name: str
) -> None:
    membership = servers[0].membership
    await membership.create(name)
    epochs = [(await membership.take(name)).epoch for _ in range(3)]
    assert epochs == [1, 2, 3]


async def test_many_that_want_a_free_namespace_get_it_once(
    servers: list[Database], admin: asyncpg.Connection, name: str
) -> None:
    await servers[0].membership.create(name)
    for turn in range(10):
        takes = [server.membership.take(name) for server in servers]
        outcomes = await asyncio.gather(*takes, return_exceptions=True)
        won = [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]
        assert len(won) == 1
        assert won[0].epoch == turn + 1
        await servers[outcomes.index(won[0])].membership.give_up(won[0])


async def test_server_that_is_gone_loses_everything_and_does_not_come_back(
    servers: list[Database], admin: asyncpg.Connection, name: str
) -> None:
    first, second, _ = (database.membership for database in servers)
    await first.create(name)
    await first.create(f"{name}-other")
    owned, other = await first.take(name), await first.take(f"{name}-other")
    await expire(admin, servers[0])
    taken = await second.take(name)
    assert taken.epoch == owned.epoch + 1
    # Its row is gone: renewing the lease would be reading memory that is out of date.
    renewed = await admin.fetchval(lease.SQL["renew"], server_id(servers[0]), LEASE_SECONDS)
    assert renewed is None
    assert (await second.take(f"{name}-other")).epoch == other.epoch + 1


async def test_lease_that_ended_goes_on_if_nobody_took_anything(
    servers: list[Database], admin: asyncpg.Connection, name: str
) -> None:
    first, second, _ = (database.membership for database in servers)
    await first.create(name)
    await first.take(name)
    await expire(admin, servers[0])
    assert await admin.fetchval(lease.SQL["renew"], server_id(servers[0]), LEASE_SECONDS) == 1
    with pytest.raises(Owned):
        await second.take(name)


async def test_renewal_under_way_is_waited_for_and_counts(
    servers: list[Database], admin: asyncpg.Connection, postgres: PostgresServer, name: str
) -> None:
    first, second, _ = (database.membership for database in servers)
    await first.create(name)
    await first.take(name)
    await expire(admin, servers[0])
    renewing = await asyncpg.connect(postgres.url)
    transaction = renewing.transaction()
    await transaction.start()
    await renewing.fetchval(lease.SQL["renew"], server_id(servers[0]), LEASE_SECONDS)
    take = asyncio.create_task(second.take(name))
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'DELETE FROM ls_s%'"
    while not await admin.fetchval(waiting):
        await asyncio.sleep(0.01)
    await transaction.commit()
    with pytest.raises(Owned):
        await take
    await renewing.close()


async def test_take_that_looked_before_another_one_came_gets_nothing(
    servers: list[Database], admin: asyncpg.Connection, name: str
) -> None:
    first, second, _ = (database.membership for database in servers)
    await first.create(name)
    owned = await first.take(name)
    await first.give_up(owned)
    await second.take(name)
    ids = [server_id(database) for database in servers]
    stale = await admin.fetchval(lease.SQL["take"], owned.ns, ids[2], "", owned.epoch)
    assert stale is None
    stranger = await admin.fetchval(
        lease.SQL["take"], owned.ns, "no server", ids[1], owned.epoch + 1
    )
    assert stranger is None


# Leases


async def test_servers_and_owners_are_listed(servers: list[Database], name: str) -> None:
    first, second, _ = (database.membership for database in servers)
    await first.create(name)
    owned = await second.take(name)
    view = await first.look()
    for n, database in enumerate(servers):
        assert view.servers[server_id(database)] == f"host-{n}:4747"
    (row,) = [row for row in view.namespaces if row.name == name]
    assert (row.epoch, row.owner, row.address) == (
        owned.epoch,
        server_id(servers[1]),
        "host-1:4747",
    )


async def test_server_that_leaves_frees_everything_at_once(
    postgres: PostgresServer, servers: list[Database], name: str
) -> None:
    leaving = Database(postgres.url, lease_seconds=LEASE_SECONDS)
    await leaving.enter()
    await leaving.membership.create(name)
    owned = await leaving.membership.take(name)
    await leaving.leave()
    assert owned.owned_until == 0
    taken = await servers[0].membership.take(name)
    assert taken.epoch == owned.epoch + 1


async def test_lease_is_renewed_and_counted_from_before_the_renewal(
    postgres: PostgresServer,
) -> None:
    database = Database(postgres.url, lease_seconds=1.0)
    await database.enter()
    held = await database.membership.join()
    first = held.owned_until
    assert first <= boot_seconds() + 1.0
    while held.owned_until == first:
        await asyncio.sleep(0.01)
    assert held.owned_until <= boot_seconds() + 1.0
    await database.leave()


async def test_renewal_that_finds_no_row_ends_the_lease_for_good(
    postgres: PostgresServer, admin: asyncpg.Connection, name: str
) -> None:
    database = Database(postgres.url, lease_seconds=1.0)
    await database.enter()
    membership = database.membership
    await membership.create(name)
    owned = await membership.take(name)
    await admin.execute("DELETE FROM ls_servers WHERE id = $1", server_id(database))
    await asyncio.wait_for(owned.lease.lost.wait(), 30)
    assert owned.owned_until == 0
    again = await membership.take(name)  # as another server
    assert again.epoch == owned.epoch + 1
    assert again.owned_until > boot_seconds()
    assert owned.owned_until == 0
    await database.leave()


async def test_namespace_is_opened_once_in_a_process(servers: list[Database], name: str) -> None:
    storage = PostgresStorage(servers[0], name)
    second = PostgresStorage(servers[0], name)
    await storage.open()
    with pytest.raises(StorageUnusable, match="is open in this process"):
        await second.open()
    await storage.close()
    await second.open()
    await second.close()


# Tables


@pytest_asyncio.fixture
async def empty(postgres: PostgresServer, admin: asyncpg.Connection) -> AsyncIterator[str]:
    """The URL of an empty database."""
    name = f"d{uuid.uuid4().hex[:16]}"
    await admin.execute(f"CREATE DATABASE {name}")
    yield postgres.url.removesuffix("postgres") + name
    await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_servers_that_start_together_make_the_tables_once(empty: str) -> None:
    storages = [PostgresStorage(Database(empty), f"n{n}") for n in range(6)]
    snapshots = await asyncio.gather(*(storage.open() for storage in storages))
    assert len({snapshot.store_id for snapshot in snapshots}) == 6
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("SELECT version FROM ls_schema") == schema.SCHEMA_VERSION
    assert await connection.fetchval("SELECT count(DISTINCT ns) FROM ls_namespaces") == 6
    await connection.close()
    for storage in storages:
        await storage.close()


async def test_database_of_a_newer_version_is_refused(empty: str) -> None:
    storage = PostgresStorage(Database(empty), "default")
    await storage.open()
    await storage.close()
    connection = await asyncpg.connect(empty)
    await connection.execute("UPDATE ls_schema SET version = 1000")
    await connection.close()
    with pytest.raises(StorageUnusable, match="schema 1000, made by a newer version"):
        await storage.open()


async def test_migrations_are_applied_one_after_the_other(
    empty: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = PostgresStorage(Database(empty), "default")
    first = await storage.open()
    await storage.close()
    made = schema.SCHEMA_VERSION
    more = [(made + 1, "CREATE TABLE ls_x (n integer)"), (made + 2, "INSERT INTO ls_x VALUES (7)")]
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, *more])
    monkeypatch.setattr(schema, "SCHEMA_VERSION", made + 2)
    assert (await storage.open()).store_id == first.store_id
    await storage.close()
    connection = await asyncpg.connect(empty)
    assert await connection.fetchval("SELECT n FROM ls_x") == 7
    assert await connection.fetchval("SELECT version FROM ls_schema") == made + 2
    await connection.close()


async def test_database_without_the_right_to_make_tables_is_said(
    empty: str, admin: asyncpg.Connection
) -> None:
    role = f"r{uuid.uuid4().hex[:16]}"
    await admin.execute(f"CREATE ROLE {role} LOGIN")
    connection = await asyncpg.connect(empty)
    await connection.execute("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    await connection.close()
    with pytest.raises(StorageUnusable, match="permission denied for schema public"):
        await PostgresStorage(Database(empty.replace("postgres@", f"{role}@")), "default").open()
    await admin.execute(f"DROP ROLE {role}")
