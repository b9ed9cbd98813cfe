"""How much is tried, and from which seed. Every random test prints its seed; `--seed` replays it."""

from __future__ import annotations

import os
import random
import subprocess
import zlib
from pathlib import Path

import pytest

from tests.faults.lab import Lab

HERE = Path(__file__).parent
#: How often each test tries, by the name it asks for, at `--scale 1`: the figures of docs/guarantees.md.
TRIES = {
    "kills": 200,
    "kills while deleting": 40,
    "power cuts": 200,
    "lost replies and requests": 10_000,
    "simulated histories": 150,
    "troubles of a watch": 100,
    "crashes of a watch of resources": 100,
    "lists": 20,
    "power cuts, relaxed": 40,
    "backups": 100,
    "flipped bits": 1_000,
    "commit failures": 12,
    "model steps": 100_000,
    "histories": 200,
    "made histories": 200,
    "fuzzed inputs": 1_000_000,
    "cancelled streams": 30_000,
    "waiters": 5_000,
    "ingest streams": 1_000,
    "soak seconds": 600,
    "replies lost": 300,
    "ingested megabytes": 1_000,
    "exported spans": 1_000_000,
    "stall seconds": 45,
    "connection resets": 200,
    "calls under GOAWAY": 10_000,
    "rolling restarts": 10,
    "flood seconds": 5,
    "connections": 20_000,
    "overload seconds": 10,
    "kills of servers": 200,
    "crashes of the database": 20,
    "takeovers": 20,
    "stopped owners": 20,
    "histories of servers": 120,
}
#: Tries of which fewer show nothing.
LEAST = {
    "kills while deleting": 3,
    "commit failures": 3,
    "power cuts": 40,
    "power cuts, relaxed": 20,
    "stall seconds": 8,
    "ingested megabytes": 150,
    "exported spans": 50_000,
    "soak seconds": 20,
    "rolling restarts": 3,
    "flood seconds": 3,
    "connections": 1_000,
    "overload seconds": 3,
    "connection resets": 20,
    "calls under GOAWAY": 3_000,
    "crashes of the database": 2,
    "histories of servers": 4,
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of this folder."""
    parser.addoption("--seed", type=int, help="replay a random test")
    parser.addoption(
        "--scale", type=float, default=1.0, help="how much is tried: 0.05 in CI, 5 in a night"
    )

    parser.addoption("--minutes", type=float, help="run the test of many servers for that long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Give the tests of this folder time: what they wait for has limits of its own."""
    minutes = 10 + 50 * config.getoption("--scale") + 1.5 * (config.getoption("--minutes") or 0)
    for item in items:
        if HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(60 * minutes))


@pytest.fixture
def tries(request: pytest.FixtureRequest):
    """How often to try, by name."""
    scale = request.config.getoption("--scale")
    return lambda name: max(LEAST.get(name, 1), round(TRIES[name] * scale))


@pytest.fixture
def stride(request: pytest.FixtureRequest) -> int:
    """How many steps to take at once, on average, where each would be tried at `--scale 1`."""
    return max(1, round(1 / request.config.getoption("--scale")))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Where chance begins. Printed, so that a failure can be replayed; of CI, the same for the same commit."""
    seed = request.config.getoption("--seed")
    if seed is None and os.environ.get("REQUIRE_ALL"):
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], check=False, cwd=HERE, capture_output=True
        )
        seed = zlib.crc32(head.stdout + request.node.nodeid.encode())
    if seed is None:
        seed = random.SystemRandom().randrange(1 << 32)
    print(f"--seed {seed}")
    return seed


@pytest.fixture
def dice(seed: int) -> random.Random:
    """Chance."""
    return random.Random(seed)


@pytest.fixture
def lab(tmp_path: Path):
    """A server that can be killed and hurt; ended afterwards."""
    with Lab(tmp_path) as lab:
        yield lab
