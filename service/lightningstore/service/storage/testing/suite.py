"""The storage suite: all cases, as a class to inherit from."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.commits import CommitCases
from lightningstore.service.storage.testing.consumers import ConsumerCases
from lightningstore.service.storage.testing.damage import DamageCases
from lightningstore.service.storage.testing.groups import GroupCases
from lightningstore.service.storage.testing.opening import OpeningCases
from lightningstore.service.storage.testing.ownership import OwnershipCases
from lightningstore.service.storage.testing.removal import RemovalCases
from lightningstore.service.storage.testing.resilience import ResilienceCases
from lightningstore.service.storage.testing.resources import ResourcesCases
from lightningstore.service.storage.testing.rollouts import RolloutCases
from lightningstore.service.storage.testing.spans import SpanCases
from lightningstore.service.storage.testing.values import ValueCases


class StorageSuite(
    OpeningCases,
    OwnershipCases,
    CommitCases,
    ValueCases,
    RolloutCases,
    SpanCases,
    ResourcesCases,
    GroupCases,
    ConsumerCases,
    RemovalCases,
    ResilienceCases,
    DamageCases,
):
    """Every rule of `storage/base.py`. Inherit from it and say how a storage is made.

    What a storage declares decides which cases apply. With DURABILITY_NONE, those that reopen it are skipped; with
    `owned_until` UNLIMITED, those of a lease that ends, for which others override `take_over`. A back end with durability
    overrides `damage`.

    Example:
        class TestMine(StorageSuite):
            async def new_storage(self, place):
                return MyStorage(place / "data")

            async def damage(self, place, kind, name):
                overwrite_record(place / "data", kind, name, bytes([255]))

    """

    pytestmark = pytest.mark.asyncio

    @pytest_asyncio.fixture
    async def storage(self, tmp_path: Path) -> AsyncIterator[Storage]:
        """Provide an open storage, and close everything that the case has opened."""
        async with self.session(tmp_path) as storage:
            yield storage


def case_names(*, with_all: bool = True) -> list[str]:
    """Return the names of the cases; `with_all=False` leaves out those that FaultSuite leaves out."""
    return [
        name
        for name, case in inspect.getmembers(StorageSuite)
        if name.startswith("test_") and (with_all or not hasattr(case, "without_faults"))
    ]


async def run_case(suite: StorageSuite, name: str, place: Path) -> None:
    """Run one case outside of pytest's collection: it raises what the case raises."""
    async with suite.session(place) as storage:
        await getattr(suite, name)(storage)
