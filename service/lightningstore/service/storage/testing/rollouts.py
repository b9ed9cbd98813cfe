"""Cases: queries for rollouts, their orders and their pages."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

from lightningstore.service.rules.filters import COLUMNS, matches
from lightningstore.service.rules.limits import Limits
from lightningstore.service.rules.measures import Measures
from lightningstore.service.rules.rewards import reward_range, sortable
from lightningstore.service.rules.rows import RolloutQuery, RolloutRow
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases, large
from lightningstore.service.storage.testing.records import (
    attempt,
    changes_of,
    completed,
    count,
    finished,
    found,
    input_of,
    items,
    loaded,
    loaded_rollout,
    put,
    rollout,
    update,
)
from lightningstore.v1.attempt_pb2 import Failure

#: One value for each filter of a query, and which rollouts of `_varied` match it.
FILTERS: dict[str, tuple[Any, Callable[[RolloutRow], bool]]] = {
    "statuses": (frozenset([1, 4]), lambda r: r.rollout.status in (1, 4)),
    "rollout_ids": (
        frozenset(["r2", "r3", "r4", "r5", "r9", "none"]),
        lambda r: r.rollout.rollout_id in ("r2", "r3", "r4", "r5", "r9"),
    ),
    "rollout_id_contains": ("r1", lambda r: "r1" in r.rollout.rollout_id),
    "modes": (frozenset([0, 2]), lambda r: r.rollout.mode in (0, 2)),
    "group_ids": (frozenset(["", "g1"]), lambda r: r.rollout.group_id in ("", "g1")),
    "reward_range": (
        reward_range(-1.0, 2.0),
        lambda r: r.measures.reward in map(sortable, (-1.0, 0.0, 2.0)),
    ),
    "queues": (frozenset(["", "gpu"]), lambda r: r.rollout.queue in ("", "gpu")),
    "labels": (
        frozenset([("run", "7"), ("split", "a")]),
        lambda r: (r.rollout.labels.get("run"), r.rollout.labels.get("split")) == ("7", "a"),
    ),
}


def _varied_labels(k: int) -> dict[str, str]:
    labels = {"run": str(k % 2 + 7), "split": "ab"[k // 4 % 2], "7": "run"}
    return {key: labels[key] for key in list(labels)[: k % 8]}


def _varied() -> list[Any]:
    """Return rollouts with many equal values in each column, and with missing ones."""
    rows = []
    for k in range(1, 25):
        fields: dict[str, Any] = {
            "mode": k % 4,
            "priority": k * 7 % 5 - 2,
            "group_id": ("", "g1", "g2")[k % 3],
            "resources_id": ("", "b", "B", "a")[k % 4],
            "attempt_count": k % 2,
            "latest_attempt_id": f"a{k}" if k % 2 else "",
            "status": k % 7 + 1,
            "queue": ("", "gpu", "cpu")[k // 2 % 3],
            "labels": _varied_labels(k),
        }
        row = finished(k, 100 - k, k % 5 + 1, **fields) if k % 5 == 0 else rollout(k, **fields)
        row.rollout.start_time.seconds = k % 6
        row.rollout.start_time.nanos = k % 2
        reward = (None, -1.5, -1.0, 0.0, 2.0, 2.5, 1e300)[k % 7]
        rows.append(row._replace(measures=Measures(sortable(reward))))
    return rows


class RolloutCases(Cases):
    """Scans, counts, groups and completions."""

    async def test_scan_shows_input_and_latest_attempt_alone(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2), attempt(1, 1), attempt(2, 2), attempt(3, 1))
        await put(storage, rollout(3))
        scanned = await items(storage.scan_rollouts(RolloutQuery()))
        assert scanned == [
            loaded_rollout(rollout(1), attempt(3, 1)),
            loaded_rollout(rollout(2), attempt(2, 2)),
            loaded_rollout(rollout(3)),
        ]

    async def test_scan_goes_by_key_and_ends_at_its_limit(self, storage: Storage) -> None:
        await put(storage, rollout(1))
        await put(storage, *(rollout(k) for k in range(2, 151)))
        assert await found(storage) == [f"r{k}" for k in range(1, 101)]
        assert await found(storage, limit=0) == []
        assert await found(storage, limit=2, skip=148) == ["r149", "r150"]
        assert await found(storage, limit=2, skip=1, descending=True) == ["r149", "r148"]
        assert await found(storage, skip=150) == []

    async def test_filters_match_alone_and_joined(self, storage: Storage) -> None:
        rows = _varied()
        await put(storage, *rows)
        for chosen in product([False, True], repeat=len(FILTERS)):
            names = [name for name, used in zip(FILTERS, chosen, strict=True) if used]
            for any_of in (False, True):
                fields = {name: FILTERS[name][0] for name in names}
                combine = any if any_of and names else all
                expected = [
                    row.rollout.rollout_id
                    for row in rows
                    if combine(FILTERS[name][1](row) for name in names)
                ]
                query = RolloutQuery(any_of=any_of, **fields)
                assert await found(storage, any_of=any_of, **fields) == expected, query
                assert await count(storage, any_of=any_of, **fields) == len(expected), query

    async def test_filter_that_matches_nothing(self, storage: Storage) -> None:
        await put(storage, *_varied())
        assert await found(storage, rollout_ids=frozenset(["none"])) == []
        assert await found(storage, group_ids=frozenset(["none"])) == []
        assert await found(storage, rollout_id_contains="R1") == []
        many = frozenset(f"none{n}" for n in range(Limits().batch_items - 1)) | {"r7"}
        assert await found(storage, rollout_ids=many) == ["r7"]

    async def test_failure_is_searched_in_the_latest_attempt(self, storage: Storage) -> None:
        lost = Failure(type="Lost", message="no answer \x00 Ä\\n")
        await put(storage, *(rollout(k, labels={"a": str(k % 2)}) for k in range(1, 6)))
        await put(storage, attempt(1, 1, failure=lost), attempt(2, 2), attempt(3, 4, failure=lost))
        await put(storage, attempt(4, 4), attempt(5, 5, failure=Failure(message="LOST")))
        for text in ("NO answer", "\x00 Ä\\N", "lost: no answer"):
            assert await found(storage, failure_contains=text) == ["r1"], text
        assert await found(storage, failure_contains="lost") == ["r1", "r5"]
        assert await found(storage, failure_contains="ä") == []
        labels, modes = frozenset([("a", "0")]), frozenset([1])
        assert await found(storage, failure_contains="lost", labels=labels) == []
        either = {"failure_contains": "lost", "any_of": True}
        assert await found(storage, **either) == ["r1", "r5"]
        assert await found(storage, **either, modes=modes) == ["r1", "r5"]
        assert await found(storage, **either, labels=labels) == ["r1", "r2", "r4", "r5"]
        for order in ("key", "rollout_id", "start_time", "priority"):
            page = {"failure_contains": "lost", "order_by": order, "descending": True}
            assert await found(storage, **page, limit=1) == ["r5"], order
            assert await found(storage, **page, skip=1) == ["r1"], order

    async def test_pages_follow_every_order(self, storage: Storage) -> None:
        rows = _varied()
        await put(storage, *rows)
        matching = frozenset([1, 2, 3, 4, 5])
        for column, descending in product(["key", *COLUMNS], [False, True]):
            expected = sorted(
                ((_value(column, row), row.key) for row in rows if row.rollout.status in matching),
                reverse=descending,
            )
            by_key = {row.key: row for row in rows}
            pages: list[tuple[Any, int]] = []
            while True:
                query = RolloutQuery(
                    statuses=matching,
                    order_by=column,
                    descending=descending,
                    after=pages[-1] if pages else None,
                    limit=5,
                )
                page = await items(storage.scan_rollouts(query))
                pages += [(_value(column, by_key[item.row.key]), item.row.key) for item in page]
                if len(page) < query.limit or len(pages) > len(rows):
                    break
            assert pages == expected, (column, descending)

    async def test_order_goes_with_skip_and_limit(self, storage: Storage) -> None:
        await put(storage, *(rollout(k, priority=k % 2) for k in range(1, 8)))
        query = {"order_by": "priority", "skip": 2, "limit": 3}
        assert await found(storage, **query) == ["r6", "r1", "r3"]
        assert await found(storage, **query, descending=True) == ["r3", "r1", "r6"]
        assert await found(storage, **query, after=(0, 4)) == ["r3", "r5", "r7"]

    async def test_count_ignores_place_and_limit(self, storage: Storage) -> None:
        await put(storage, *(rollout(k) for k in range(1, 8)))
        query = RolloutQuery(limit=1, skip=2, after=(3, 3), order_by="priority", descending=True)
        assert await storage.count_rollouts(query) == {1: 7}

    async def test_count_is_by_status(self, storage: Storage) -> None:
        await put(storage, *(rollout(k, status=k % 3 + 1, queue="q") for k in range(1, 8)))
        await put(storage, rollout(8, status=3))
        assert await storage.count_rollouts(RolloutQuery()) == {1: 2, 2: 3, 3: 3}
        assert await storage.count_rollouts(RolloutQuery(queues=frozenset(["q"]))) == {
            1: 2,
            2: 3,
            3: 2,
        }
        assert await storage.count_rollouts(RolloutQuery(queues=frozenset(["p"]))) == {}

    async def test_labels_are_replaced_as_a_whole(self, storage: Storage) -> None:
        await put(storage, rollout(1, labels={"a": "1", "b": "2"}), rollout(2, labels={"a": "1"}))
        await update(storage, rollout(1, status=3, labels={"a": "9", "c": "2"}))
        assert await found(storage, labels=_labels(a="1")) == ["r2"]
        assert await found(storage, labels=_labels(b="2")) == []
        assert await found(storage, labels=_labels(a="9", c="2")) == ["r1"]
        await update(storage, rollout(1), labels={1: {}})
        assert await found(storage, labels=_labels(c="2")) == []
        assert await found(storage, labels=_labels(a="1")) == ["r2"]

    async def test_labels_stay_when_the_rollout_changes(self, storage: Storage) -> None:
        await put(storage, rollout(1, labels={"a": "1"}))
        changed = changes_of(finished(1, 1, labels={"a": "1"}))
        changed.labels.clear()
        changed.inputs = []
        await storage.commit(changed)
        storage, _ = await self.reopen(storage)
        assert await found(storage, labels=_labels(a="1"), statuses=frozenset([4])) == ["r1"]

    async def test_pages_of_a_label_follow_every_order(self, storage: Storage) -> None:
        rows = _varied()
        await put(storage, *rows)
        names: dict[str, Any] = {"labels": _labels(run="7"), "statuses": frozenset([1, 2, 3, 4, 5])}
        match = matches(RolloutQuery(**names))
        for column, descending in product(["key", "start_time", "queue"], [False, True]):
            expected = sorted(
                ((_value(column, row), row.key) for row in rows if match(row)),
                reverse=descending,
            )
            pages: list[tuple[Any, int]] = []
            while len(pages) <= len(rows):
                after = pages[-1] if pages else None
                query = RolloutQuery(
                    **names, order_by=column, descending=descending, after=after, limit=2
                )
                page = await items(storage.scan_rollouts(query))
                pages += [(_value(column, item.row), item.row.key) for item in page]
                if len(page) < query.limit:
                    break
            assert pages == expected, (column, descending)

    async def test_queue_of_a_rollout_changes(self, storage: Storage) -> None:
        await put(storage, rollout(1, queue="a"), rollout(2))
        await update(storage, rollout(1, queue="b"), rollout(2, queue="a"))
        assert await found(storage, queues=frozenset(["a"])) == ["r2"]
        assert await found(storage, queues=frozenset(["b", ""])) == ["r1"]
        await update(storage, rollout(1))
        assert await found(storage, queues=frozenset([""])) == ["r1"]

    async def test_scan_finds_what_has_changed(self, storage: Storage) -> None:
        await put(storage, rollout(1, group_id="g", status=1), rollout(2, status=1))
        await update(storage, rollout(1, group_id="h", status=3))
        assert await found(storage, statuses=frozenset([1])) == ["r2"]
        assert await found(storage, statuses=frozenset([3])) == ["r1"]
        assert await found(storage, group_ids=frozenset(["g"])) == []
        assert await found(storage, group_ids=frozenset(["h", ""])) == ["r1", "r2"]

    async def test_scan_goes_by_the_last_reward(self, storage: Storage) -> None:
        rows = [rollout(k)._replace(measures=Measures(sortable(float(k)))) for k in (1, 2, 3)]
        await put(storage, *rows)
        await update(storage, rows[0]._replace(measures=Measures(sortable(2.5))), rollout(3))
        assert await found(storage, order_by="reward") == ["r3", "r2", "r1"]
        assert await found(storage, reward_range=reward_range(2.5, None)) == ["r1"]
        assert await found(storage, reward_range=reward_range(None, 2.0)) == ["r2"]

    async def test_group_has_its_members_in_order_of_enqueueing(self, storage: Storage) -> None:
        await put(storage, rollout(1, group_id="g"), rollout(2), rollout(3, group_id="g"))
        await put(storage, rollout(4, group_id="G"))
        assert await storage.group_members("g") == ["r1", "r3"]
        await update(storage, rollout(1, group_id="h"), rollout(2, group_id="g"))
        assert await storage.group_members("g") == ["r2", "r3"]
        assert await storage.group_members("h") == ["r1"]
        await update(storage, rollout(1))
        assert await storage.group_members("h") == []

    async def test_empty_group_id_is_no_group(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2, group_id="g"))
        assert await storage.group_members("") == []

    async def test_load_returns_all_attempts_oldest_first(self, storage: Storage) -> None:
        await put(storage, rollout(1), rollout(2), attempt(3, 2), attempt(4, 1))
        await put(storage, attempt(5, 2), attempt(7, 1))
        by_id = await loaded(storage, "r2", "none", "r1")
        assert sorted(by_id) == ["r1", "r2"]
        assert by_id["r1"] == loaded_rollout(rollout(1), attempt(4, 1), attempt(7, 1))
        assert [row.key for row in by_id["r2"].attempts] == [3, 5]

    async def test_load_of_none_or_of_missing_ones(self, storage: Storage) -> None:
        await put(storage, rollout(1))
        assert await storage.load([]) == []
        assert await storage.load(["none"]) == []
        assert await storage.load(["none", "R1", "r", "r11"]) == []

    @large
    async def test_load_returns_some_until_all_have_come(self, storage: Storage) -> None:
        """Large rollouts may come in parts: each call returns one at least, while any is stored."""
        for k in range(1, 13):
            await put(storage, rollout(k), attempt(k, k), inputs=[(k, bytes([k]) * (2 << 20))])
        await put(storage, *(rollout(k) for k in range(13, 400)))
        ids = [f"r{k}" for k in range(1, 450)]
        by_id = await loaded(storage, *ids)
        assert len(by_id) == 399
        for k in range(1, 13):
            item = by_id[f"r{k}"]
            assert item.input_json == bytes([k]) * (2 << 20)
            assert [row.key for row in item.attempts] == [k]

    @large
    async def test_large_rollouts_are_all_scanned(self, storage: Storage) -> None:
        for k in range(1, 8):
            await put(storage, finished(k, k), inputs=[(k, bytes([k]) * (3 << 20))])
        scanned = await items(storage.scan_rollouts(RolloutQuery()))
        assert [(item.row.key, item.input_json[0]) for item in scanned] == [
            (k, k) for k in range(1, 8)
        ]
        assert [item.row.key for item in await completed(storage)] == list(range(1, 8))

    async def test_completions_go_by_number(self, storage: Storage) -> None:
        await put(storage, *(finished(k, 9 - k) for k in range(5, 0, -1)), rollout(6))
        await put(storage, attempt(1, 5), attempt(2, 5), finished(7, 20))
        page = await storage.completions(4, 3)
        assert [item.row.rollout.completion_number for item in page] == [5, 6, 7]
        (first,) = await storage.completions(0, 1)
        assert first == loaded_rollout(finished(5, 4), attempt(2, 5))
        assert [item.row.key for item in await storage.completions(8, 10)] == [7]
        assert await storage.completions(20, 10) == []

    async def test_completions_leave_out_rollouts_that_were_reopened(
        self, storage: Storage
    ) -> None:
        await put(storage, *(finished(k, k) for k in range(1, 5)))
        await update(storage, rollout(2), finished(3, 5))
        page = await storage.completions(0, 10)
        assert [item.row.key for item in page] == [1, 4, 3]
        await update(storage, finished(2, 6))
        assert [item.row.key for item in await storage.completions(4, 10)] == [3, 2]

    async def test_finished_rollouts_go_by_number(self, storage: Storage) -> None:
        await put(storage, *(finished(k, 10 - k) for k in range(1, 6)), rollout(6))
        await update(storage, rollout(3))
        rows = await storage.finished((0, 0), 2)
        assert [(row.rollout_id, row.input_bytes) for row in rows] == [
            ("r5", len(input_of(5))),
            ("r4", len(input_of(4))),
        ]
        rest = await storage.finished(rows[-1].place, 10)
        assert [row.rollout_id for row in rest] == ["r2", "r1"]
        assert await storage.finished(rest[-1].place, 10) == []

    async def test_finished_rollouts_by_the_time_at_which_they_had_ended(
        self, storage: Storage
    ) -> None:
        rows = [finished(k, k, 10_000 if k <= 50 else k + 10) for k in range(1, 81)]
        await put(storage, *rows, rollout(81))
        await update(storage, rollout(60), finished(61, 90, 10_000))
        ids: list[str] = []
        place = (0, 0)
        while page := await storage.finished(place, 4, 85_000_000_000):
            assert page[0].place > place
            ids += [row.rollout_id for row in page]
            place = page[-1].place
        assert sorted(ids) == sorted(f"r{k}" for k in range(51, 76) if k not in (60, 61))
        assert await storage.finished((0, 0), 10, 60_999_999_999) == []
        (first,) = await storage.finished((0, 0), 10, 61_000_000_000)
        assert (first.rollout_id, first.input_bytes) == ("r51", len(input_of(51)))

    async def test_finished_rollouts_that_ended_together_go_by_key(self, storage: Storage) -> None:
        rows = [finished(k, 30 - k, 50, start_time={"seconds": 5}) for k in range(1, 10)]
        await put(storage, *rows)
        ids: list[str] = []
        place = (0, 0)
        while page := await storage.finished(place, 2, 50_000_000_000):
            assert page[0].place > place
            ids += [row.rollout_id for row in page]
            place = page[-1].place
        assert ids == [f"r{k}" for k in range(1, 10)]


def _labels(**labels: str) -> frozenset[tuple[str, str]]:
    return frozenset(labels.items())


def _value(column: str, row: Any) -> Any:
    return row.key if column == "key" else COLUMNS[column](row)
