"""Servers for the tests of the client."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from lightningstore.client import LightningStore, Runner, SpanExporter

from .fakes import FakeServer, RealServer
from .runners import Running, Start
from .sinks import Sink
from .twins import Twin


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server whose answers the test decides."""
    fake = FakeServer()
    fake.start()
    yield fake
    fake.stop()
    fake.kept.close()


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealServer]:
    """A real server of this test alone."""
    real = RealServer(tmp_path)
    real.start()
    yield real
    real.kill()
    real.kept.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealServer]:
    """A real server that the tests of a module share."""
    real = RealServer(tmp_path_factory.mktemp("shared"))
    real.start()
    yield real
    real.kill()
    real.kept.close()


@pytest.fixture
def store(shared: RealServer) -> Iterator[LightningStore]:
    """A blocking client of the shared server, whose queue is empty."""
    with LightningStore(shared.address) as client:
        client.cancel_rollouts(
            r.rollout_id for r in client.iter_rollouts(statuses=["queuing", "requeuing"])
        )
        yield client


@pytest.fixture(params=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def twin(kind: str, server: FakeServer) -> AsyncIterator[Twin]:
    twin = Twin(kind, server.address, timeout=5.0)
    yield twin
    await twin.close()
    gc.collect()
    # The next test's collection then looks at that test alone: a collection of all that the modules before have left takes
    # 0.2 s, longer than most tests.
    gc.freeze()


@pytest.fixture
def start(shared: RealServer) -> Iterator[Start]:
    started: list[Running] = []

    def start(fn: Any, *, address: str = "", **options: Any) -> Running:
        options.setdefault("grace", 0.5)
        started.append(Running(Runner(address or shared.address, fn, **options)))
        return started[-1]

    yield start
    for running in started:
        running.stop()


@pytest.fixture
def sink(server: FakeServer) -> Sink:
    sink = Sink()
    server.on["IngestSpans"] = sink
    return sink


@pytest.fixture
def make(server: FakeServer) -> Iterator[Callable[..., SpanExporter]]:
    """Makes exporters to the fake server, which are shut down in the end."""
    made: list[SpanExporter] = []

    def make(**options: Any) -> SpanExporter:
        options = {"rollout_id": "ro-1", "attempt_id": "at-1", "delay": 0.01, **options}
        made.append(SpanExporter(server.address, **options))
        return made[-1]

    yield make
    for exporter in made:
        exporter.shutdown(100)
