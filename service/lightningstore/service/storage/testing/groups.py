"""Cases: groups."""

from __future__ import annotations

from typing import Any

from lightningstore.service.rules.rows import GroupQuery, GroupRow, RolloutQuery
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases
from lightningstore.service.storage.testing.records import (
    attempt,
    finished,
    group,
    input_of,
    items,
    put,
    rollout,
    update,
)
from lightningstore.service.storage.testing.values import MAX_INT64, ODD_IDS

OPEN, COMPLETE = 1, 2


async def _listed(storage: Storage, **query: Any) -> list[int]:
    return [row.key for row in await storage.list_groups(GroupQuery(**query))]


async def _loaded(storage: Storage, *ids: str) -> list[GroupRow]:
    return sorted(await storage.load_groups(list(ids)))


async def _put(storage: Storage, *rows: GroupRow, **fields: Any) -> None:
    await put(storage, groups={row.key: row for row in rows}, **fields)


class GroupCases(Cases):
    """`Changes.groups`, `Changes.removed_groups`, and what reads of groups return."""

    async def test_groups_are_returned_as_they_were_last_committed(self, storage: Storage) -> None:
        first, second = group(1, 77), group(2, number=1, size=3, member_count=3)
        await _put(storage, first, second)
        assert await _loaded(storage, "g2", "none", "g1") == [first, second]
        changed = group(1, 0, number=2, size=4, finished_count=4)
        reopened = group(2, 99, size=3, member_count=2)
        await _put(storage, changed, reopened)
        assert await _loaded(storage, "g1", "g2") == [changed, reopened]
        assert await storage.load_groups([]) == await storage.load_groups(["none"]) == []

    async def test_list_of_groups_is_filtered_and_goes_by_key(self, storage: Storage) -> None:
        names = ["b", "a", "d", "c", "e"]
        rows = [group(k, number=k % 2 and k, group_id=name) for k, name in enumerate(names, 1)]
        for row in rows:
            await _put(storage, row)
        assert await _listed(storage) == [1, 2, 3, 4, 5]
        assert await storage.list_groups(GroupQuery()) == rows
        assert await _listed(storage, limit=2) == [1, 2]
        assert await _listed(storage, after=2, limit=2) == [3, 4]
        assert await _listed(storage, after=5) == []
        assert await _listed(storage, statuses=frozenset([OPEN])) == [2, 4]
        assert await _listed(storage, statuses=frozenset([OPEN]), after=2) == [4]
        assert await _listed(storage, statuses=frozenset([COMPLETE]), limit=2) == [1, 3]
        assert await _listed(storage, statuses=frozenset([OPEN, COMPLETE]), after=3) == [4, 5]
        some = frozenset(["d", "a", "none"])
        assert await _listed(storage, group_ids=some) == [2, 3]
        assert await _listed(storage, group_ids=some, after=2) == [3]
        assert await _listed(storage, group_ids=some, statuses=frozenset([OPEN])) == [2]

    async def test_completions_of_groups_go_by_number(self, storage: Storage) -> None:
        await _put(storage, group(1, number=3), group(2, number=1), group(3), group(4, number=2))
        assert [row.key for row in await storage.group_completions(0, 9)] == [2, 4, 1]
        assert [row.key for row in await storage.group_completions(1, 1)] == [4]
        await _put(storage, group(2), group(3, number=4))
        assert [row.key for row in await storage.group_completions(0, 9)] == [4, 1, 3]
        await _put(storage, group(2, number=5))
        completions = await storage.group_completions(2, 9)
        assert [row.record.completion_number for row in completions] == [3, 4, 5]
        assert [row.key for row in completions] == [1, 3, 2]
        assert await storage.group_completions(5, 9) == []

    async def test_removed_groups_are_in_no_answer(self, storage: Storage) -> None:
        await _put(storage, *(group(k, number=k % 2 and k) for k in range(1, 7)))
        await put(storage, removed_groups=[1, 4])
        await _put(storage, group(3, number=9), group(7), removed_groups=[3, 99])
        assert await _listed(storage) == [2, 5, 6, 7]
        assert await _listed(storage, statuses=frozenset([OPEN])) == [2, 6, 7]
        assert [row.key for row in await storage.group_completions(0, 9)] == [5]
        assert await _loaded(storage, *(f"g{k}" for k in range(1, 8))) == [
            *(group(2), group(5, number=5), group(6), group(7))
        ]

    async def test_id_of_a_removed_group_can_be_used_again(self, storage: Storage) -> None:
        await _put(storage, group(1, number=1, group_id="g"))
        await _put(storage, group(2, group_id="g"), removed_groups=[1])
        assert await _loaded(storage, "g") == [group(2, group_id="g")]
        assert await _listed(storage) == [2]
        assert await storage.group_completions(0, 9) == []

    async def test_open_groups_come_back(self, storage: Storage) -> None:
        _, snapshot = await self.open_at(self.place / "new")
        assert snapshot.groups == []
        rows = [group(1, 5, member_count=2), group(2, number=1), group(3), group(4)]
        await _put(storage, *rows)
        await _put(storage, group(2, size=7), group(3, number=2), removed_groups=[4])
        storage, snapshot = await self.reopen(storage)
        assert sorted(snapshot.groups) == [rows[0], group(2, size=7)]
        assert await _listed(storage) == [1, 2, 3]
        assert [row.key for row in await storage.group_completions(0, 9)] == [3]

    async def test_odd_ids_and_large_numbers_of_groups(self, storage: Storage) -> None:
        rows = [group(k, MAX_INT64, group_id=name) for k, name in enumerate(ODD_IDS, 1)]
        last = group(MAX_INT64, 1, number=MAX_INT64)
        await _put(storage, *rows, last)
        for row in rows:
            assert await _loaded(storage, row.record.group_id) == [row]
            names = frozenset([row.record.group_id])
            assert await storage.list_groups(GroupQuery(group_ids=names)) == [row]
        assert await storage.group_completions(MAX_INT64 - 1, 1) == [last]
        assert await _listed(storage, after=len(rows)) == [MAX_INT64]

    async def test_rollouts_can_be_listed_without_their_inputs(self, storage: Storage) -> None:
        await put(
            storage,
            *(finished(k, k, group_id=f"g{k % 2}") for k in range(1, 300)),
            *(attempt(k, k) for k in range(1, 300)),
            rollout(300, group_id="g1"),
        )
        query = RolloutQuery(group_ids=frozenset(["g1"]), limit=1 << 40, inputs=False)
        listed = await items(storage.scan_rollouts(query))
        assert [item.row.key for item in listed] == [*range(1, 300, 2), 300]
        assert all(item.input_json == b"" for item in listed)
        assert listed[0].row == finished(1, 1, group_id="g1")
        assert [item.attempts for item in listed[:2]] == [[attempt(1, 1)], [attempt(3, 3)]]
        whole = await items(storage.scan_rollouts(RolloutQuery(group_ids=frozenset(["g1"]))))
        assert whole[0].input_json == input_of(1)

    async def test_group_and_its_members_are_one_commit(self, storage: Storage) -> None:
        await put(storage, rollout(1, group_id="g1"), groups={1: group(1, member_count=1)})
        ended = group(1, number=1, member_count=1, finished_count=1)
        await update(storage, finished(1, 1, group_id="g1"), groups={1: ended})
        _, snapshot = await self.reopen(storage)
        assert (snapshot.live, snapshot.groups) == ([], [])
