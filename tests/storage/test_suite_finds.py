"""The storage suite passes a back end without defects, and finds each of many defects."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from lightningstore.service.storage.base import Changes
from lightningstore.service.storage.testing import FaultSuite, StorageSuite, case_names, run_case

from tests.storage.model import Data, LeasedStorage, ModelStorage
from tests.storage.more_defects import DEFECTIVE


class ModelSuite(StorageSuite):
    async def new_storage(self, place: Path) -> ModelStorage:
        return ModelStorage(place)

    async def damage(self, place: Path, kind: str, name: str) -> None:
        ModelStorage.stores[place].data.damaged.add((kind, name))


class TestModel(ModelSuite):
    pass


class TestModelWithFaults(FaultSuite):
    new_storage = TestModel.new_storage


class LeasedSuite(ModelSuite):
    async def new_storage(self, place: Path) -> LeasedStorage:
        return LeasedStorage(place)

    async def take_over(self, storage: LeasedStorage) -> None:
        storage.end_lease()


class TestLeasedModel(LeasedSuite):
    pass


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("defective", "case"), [pytest.param(*row, id=row[0].__name__) for row in DEFECTIVE]
)
async def test_case_finds_the_defect(
    defective: type[ModelStorage], case: str, tmp_path: Path
) -> None:
    class Suite(LeasedSuite):
        async def new_storage(self, place: Path) -> ModelStorage:
            return defective(place)

    with pytest.raises((Exception, pytest.fail.Exception)):
        await run_case(Suite(), case, tmp_path)


class WritesInputsAfterAwaiting(ModelStorage):
    """A commit that is cancelled leaves a rollout without its input."""

    async def commit(self, changes: Changes) -> None:
        inputs, changes.inputs = changes.inputs, []
        self.apply(self.data, changes)
        await asyncio.sleep(0)
        self.data.inputs.update(inputs)


@pytest.mark.asyncio
async def test_fault_suite_finds_what_a_cancelled_call_breaks(tmp_path: Path) -> None:
    class Suite(FaultSuite):
        async def new_storage(self, place: Path) -> ModelStorage:
            return WritesInputsAfterAwaiting(place)

    with pytest.raises(KeyError):
        for case in case_names(with_all=False):
            await Suite().test_store_is_usable_after_a_failed_call(case, tmp_path / case)


def test_model_has_an_own_store_at_each_place(tmp_path: Path) -> None:
    assert ModelStorage(tmp_path).store.data == Data()
    assert ModelStorage(tmp_path / "x").store is not ModelStorage(tmp_path).store
