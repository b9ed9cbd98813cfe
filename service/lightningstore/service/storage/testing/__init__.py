"""The rules of `storage/base.py` as tests that any back end can run, with pytest and pytest-asyncio.

    from lightningstore.service.storage.testing import FaultSuite, StorageSuite

    class TestMine(StorageSuite):
        async def new_storage(self, place):
            return MyStorage(place / "data")

        async def damage(self, place, kind, name):
            overwrite_record(place / "data", kind, name, bytes([255]))

    class TestMineWithFaults(FaultSuite):
        new_storage = TestMine.new_storage

A back end that passes both suites can serve a store. Nothing in the server imports this package.
"""

import pkgutil

import pytest

# Assertions of the cases show their values, as those of a test module do. Must come before the imports.
pytest.register_assert_rewrite(*(f"{__name__}.{m.name}" for m in pkgutil.iter_modules(__path__)))

from lightningstore.service.storage.testing.faults import (  # noqa: E402
    FailingStorage,
    Fault,
    FaultSuite,
    InjectedFault,
)
from lightningstore.service.storage.testing.suite import (  # noqa: E402
    StorageSuite,
    case_names,
    run_case,
)

__all__ = [
    "FailingStorage",
    "Fault",
    "FaultSuite",
    "InjectedFault",
    "StorageSuite",
    "case_names",
    "run_case",
]
