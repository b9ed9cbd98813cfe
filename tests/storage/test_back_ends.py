"""Back ends by URL, and what they say of themselves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lightningstore.service.storage.back_ends import storage_at
from lightningstore.service.storage.base import UNLIMITED
from lightningstore.v1.statistics_pb2 import DURABILITY_FULL, DURABILITY_NONE, DURABILITY_RELAXED


@pytest.mark.parametrize("url", ["memory:", "memory://"])
def test_memory_describes_itself(url: str) -> None:
    storage = storage_at(url)
    assert (storage.name, storage.location) == ("memory", "memory only")
    assert storage.durability == DURABILITY_NONE
    assert storage.owned_until == UNLIMITED


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///run.db", "run.db"),
        ("sqlite:////data/run.db", "/data/run.db"),
        ("sqlite:///odd://name:x.db", "odd:/name:x.db"),
        ("run.db", "run.db"),
        ("/data/run.db", "/data/run.db"),
        ("./a:b.db", "a:b.db"),
    ],
)
def test_file_is_named_by_url_or_path(url: str, path: str) -> None:
    storage = storage_at(url)
    assert (storage.name, Path(storage.location)) == ("sqlite", Path(path))
    assert storage.durability == DURABILITY_FULL
    assert storage_at(url, full_sync=False).durability == DURABILITY_RELAXED


@pytest.mark.parametrize(
    "url", ["", "sqlite:///", "sqlite:run.db", "sqlite://run.db", "memory:x", "mysql://h/db"]
)
def test_other_url_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(
        ValueError, match="use memory:, sqlite:///path, postgresql://host/database, or a path"
    ):
        storage_at(url)


def test_database_is_named_by_url_without_its_password() -> None:
    storage = storage_at("postgresql://someone:secret@h:5433/db?sslmode=require", namespace="run")
    assert (storage.name, storage.location) == (
        "postgresql",
        "postgresql://h:5433/db, namespace run",
    )
    assert storage.durability == DURABILITY_FULL
    relaxed = storage_at("postgres://h/db", full_sync=False)
    assert relaxed.durability == DURABILITY_RELAXED
    assert relaxed.owned_until == 0


def test_missing_driver_is_said_with_what_installs_it() -> None:
    code = """
import sys
sys.modules["asyncpg"] = None  # importing it fails, as where it is not installed
from lightningstore.service.rules.errors import StorageUnusable
from lightningstore.service.storage.back_ends import storage_at
storage_at("memory:")
try:
    storage_at("postgresql://h/db")
except StorageUnusable as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    command = "pip install 'lightningstore[postgres]'"
    assert done.stdout == f"PostgreSQL needs the package asyncpg: {command}\n"
