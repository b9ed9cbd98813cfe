"""Back ends by URL, and what they say of themselves."""

from __future__ import annotations

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
    "url", ["", "sqlite:///", "sqlite:run.db", "sqlite://run.db", "memory:x", "postgresql://h/db"]
)
def test_other_url_is_refused_with_what_would_be_right(url: str) -> None:
    with pytest.raises(ValueError, match="use memory:, sqlite:///path, or a path"):
        storage_at(url)
