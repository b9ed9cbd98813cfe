"""The world of a contract test: a store in one of several ways, with a clock that the test moves."""

from __future__ import annotations

import asyncio
import os
import re
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable
from functools import cache
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.client import AsyncLightningStore
from lightningstore.client.embedded import StoreTransport
from lightningstore.service.operations import store as stores
from lightningstore.service.operations.store import Store
from lightningstore.service.operations.table import table
from lightningstore.service.server.config import Config
from lightningstore.service.server.server import Server, open_store
from lightningstore.service.storage.postgres.database import Database
from lightningstore.service.storage.postgres.store import PostgresStorage
from lightningstore.service.storage.sqlite.file import create
from pydantic_settings import PydanticBaseSettingsSource

from tests.clock import ManualClock
from tests.forwarder import Forwarder
from tests.postgres import UNENDING_SECONDS, PostgresServer, make_schema, namespace_of

#: Back ends and transports. "forwarded" is gRPC through a server that forwards each call: WAYS=sqlite-forwarded.
DEFAULT_WAYS = (
    "memory-inprocess,memory-grpc,sqlite-inprocess,sqlite-grpc,postgres-inprocess,postgres-grpc"
)
WAYS = tuple(os.environ.get("WAYS", DEFAULT_WAYS).split(","))
#: Unless WAYS is set, a module runs in the ways that may differ for it. What gRPC adds is not the back end's: these
#: modules, whose calls go on while the back end works, run over gRPC on each of them, the others on memory alone.
OVER_GRPC = ("test_claims", "test_ingest", "test_restart", "test_wait", "test_watch")
#: What these modules test is decided in the engine, on what it holds in memory. On PostgreSQL, which takes longest, only
#: those of their tests run that open the store again.
IN_MEMORY = (
    "test_attempts",
    "test_cancel",
    "test_enqueue",
    "test_info",
    "test_lifecycle",
    "test_limits",
    "test_linear_claims",
    "test_long_poll",
    "test_pause",
    "test_queues",
    "test_retry",
    "test_samples",
    "test_triplets",
    "test_update_rollout",
    "test_versions",
    "test_wait",
    "test_watch",
    "test_watch_groups",
    "test_watch_resources",
    "test_watchdog",
)


def runs_by_default(module: str, way: str, function: Callable[..., object]) -> bool:
    """Tell whether a test of a module runs in a way although WAYS does not ask for it."""
    on_disk = not {"restart", "durable"}.isdisjoint(function.__code__.co_names)
    match way:
        case "sqlite-grpc":
            return module in OVER_GRPC
        case "postgres-grpc":
            return module in OVER_GRPC and (on_disk or module not in IN_MEMORY)
        case "postgres-inprocess":  # once over PostgreSQL is enough
            return module not in OVER_GRPC and (on_disk or module not in IN_MEMORY)
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the tests that do not run by default."""
    if "WAYS" not in os.environ:
        items[:] = [item for item in items if _is_wanted(item)]


def _is_wanted(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or item.path.parent != Path(__file__).parent:
        return True
    way = item.callspec.params.get("way") if hasattr(item, "callspec") else None
    return way is None or runs_by_default(item.path.stem, way, item.function)


class Settings(Config):
    """The settings of a test, without the environment: reading it takes as long as opening a store in memory."""

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: object, init_settings: PydanticBaseSettingsSource, **others: object
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from."""
        return (init_settings,)


@cache
def _empty_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "empty.db"
        path.touch()
        create(path)
        return path.read_bytes()


def make_data_file(path: Path) -> None:
    """Make the data file of a new store. Making its tables takes longer than most tests do, so they are copied."""
    store_id = f"store-{uuid.uuid4()}".encode()
    path.touch(0o600)
    path.write_bytes(re.sub(rb"store-[0-9a-f-]{36}", store_id, _empty_file()))


class World:
    """A store, the clock it runs by, and the power to restart it."""

    store: AsyncLightningStore
    #: Where the PostgreSQL server of the tests is, if one is needed.
    database_url: str | None = None

    def __init__(self, way: str, folder: Path, **settings: object) -> None:
        self.backend, self.how = way.split("-")
        self.clock = ManualClock()
        self.folder = folder
        if self.backend == "postgres":
            # A server sees all namespaces of its tables; a store alone needs only one, which costs less than tables.
            self.namespace = "default" if self.how == "grpc" else namespace_of(folder)
            schema = f"?search_path={namespace_of(folder)}" if self.how == "grpc" else ""
            settings["database_url"] = f"{self.database_url}{schema}"
        else:
            settings["backend"] = self.backend
        self.config = Settings(db=folder / "contract.db", port=0, grace=0.1, **settings)
        self.service: Store | None = None
        self.server: Server | None = None
        self.forwarder: Forwarder | None = None

    @property
    def durable(self) -> bool:
        """Whether a restart keeps anything."""
        return self.backend != "memory"

    async def start(self) -> None:
        """Open the store."""
        self.service = await self._open()
        if self.how in ("grpc", "forwarded"):
            self.server = Server(self.service, self.config)
            await self.server.start()
            address = self.server.address
            if self.how == "forwarded":
                self.forwarder = Forwarder(address)
                await self.forwarder.start()
                address = self.forwarder.address
            self.store = AsyncLightningStore(address, timeout=10)
        else:
            self.store = AsyncLightningStore.over(StoreTransport(table(self.service)), timeout=10)

    async def _open(self) -> Store:
        if self.config.database_url is None:
            if self.backend == "sqlite" and not self.config.db.exists():
                make_data_file(self.config.db)
            return await open_store(self.config, self.clock)
        url = self.config.database_url.get_secret_value()
        await make_schema(url)
        # By the manual clock, a short lease would end at once.
        storage = PostgresStorage(Database(url, lease_seconds=UNENDING_SECONDS), self.namespace)
        limits, retention = self.config.limits(), self.config.retention()
        return await stores.open_store(storage, self.clock, limits, retention)

    async def stop(self) -> None:
        """Close the store."""
        await self.store.close()
        if self.forwarder is not None:
            await self.forwarder.stop()
            self.forwarder = None
        if self.server is not None:
            await self.server.stop(0.1)
            self.server = None
        elif self.service is not None:
            await self.service.close()
        self.service = None

    async def restart(self, down: float = 0.0) -> None:
        """Close the store and open it again, `down` seconds later."""
        await self.stop()
        self.clock.jump(down)
        await self.start()

    async def settle(self) -> None:
        """Return when the loop is idle and everything sealed is durable."""
        assert self.service is not None
        for _ in range(3):
            await asyncio.sleep(0)
            await self.service.engine.barrier()

    async def advance(self, seconds: float) -> None:
        """Let time pass: what comes due meanwhile happens."""
        await self.clock.advance(seconds)
        await self.settle()


def prepare_way(way: str, request: pytest.FixtureRequest) -> None:
    """Start what a way needs; skips the test where that is missing."""
    if way.startswith("postgres"):
        server: PostgresServer = request.getfixturevalue("postgres")
        World.database_url = server.url


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """Back end and transport."""
    prepare_way(request.param, request)
    return str(request.param)


@pytest_asyncio.fixture
async def world(way: str, tmp_path: Path) -> AsyncIterator[World]:
    """A fresh world with default settings, but for HTTP, which no test here uses."""
    world = World(way, tmp_path, http_port=0)
    await world.start()
    yield world
    await world.stop()
