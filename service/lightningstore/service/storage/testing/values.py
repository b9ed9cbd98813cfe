"""Cases: every value comes back as it was written, however odd or large."""

from __future__ import annotations

import os

from lightningstore.service.rules.limits import Limits
from lightningstore.service.rules.rows import RequestRow, ResourcesRow, RolloutRow
from lightningstore.service.storage.base import Storage
from lightningstore.service.storage.testing.cases import Cases, large
from lightningstore.service.storage.testing.records import (
    attempt,
    finished,
    found,
    items,
    loaded,
    put,
    rollout,
    spans,
)
from lightningstore.v1.attempt_pb2 import ATTEMPT_STATUS_FAILED, Failure
from lightningstore.v1.resources_pb2 import Resources
from lightningstore.v1.rollout_pb2 import (
    ROLLOUT_MODE_TRAIN,
    ROLLOUT_STATUS_FAILED,
    RolloutConfig,
)
from lightningstore.v1.worker_pb2 import Worker

MAX_INT64 = (1 << 63) - 1
#: The last second of a Timestamp whose nanoseconds fit into 64 bits.
LAST_SECOND = MAX_INT64 // 1_000_000_000
ODD_IDS = [
    *("é", "e\u0301", "日本語", "🦀" * 10, "\u202eright", "\ufeffmark", "\ufffd", "ß", "SS"),
    *(
        "a b",
        " a",
        "a ",
        "A",
        "a",
        "'",
        '"',
        "''; DROP TABLE rollouts; --",
        "%",
        "_",
        "*",
        "?",
        "\\",
    ),
    *("\t", "\n", "0", "00", "1e3", "null", "x" * 256, "🦀" * 256),
]


class ValueCases(Cases):
    """What is read is what was written."""

    async def test_every_field_of_a_rollout_comes_back(self, storage: Storage) -> None:
        config = RolloutConfig(max_attempts=3, retry_condition=[ATTEMPT_STATUS_FAILED])
        config.timeout.seconds = 5
        row = rollout(
            1,
            position=7,
            available_ns=8,
            mode=ROLLOUT_MODE_TRAIN,
            priority=-2,
            group_id="g",
            resources_id="rs",
            status=ROLLOUT_STATUS_FAILED,
            config=config,
            metadata_json=b'{"a": "\xc3\xa9"}',
            attempt_count=2,
            latest_attempt_id="a2",
            queue="q",
            labels={"a": "1", "b": ""},
            completion_number=4,
        )
        row.rollout.end_time.nanos = 999_999_999
        failure = Failure(type="E", message="m" * 1000, retryable=False)
        tried = attempt(
            2,
            1,
            last_sequence_id=11,
            sequence_number=2,
            status=ATTEMPT_STATUS_FAILED,
            failure=failure,
            worker_id="w",
            resources_id="rs",
            resources_version=3,
            span_count=12,
            metadata_json=b"{}",
        )
        await put(storage, row, attempt(1, 1), tried)
        item = (await loaded(storage, "r1"))["r1"]
        assert (item.row, item.attempts) == (row, [attempt(1, 1), tried])
        (completion,) = await storage.completions(0, 1)
        assert (completion.row, completion.attempts) == (row, [tried])

    async def test_odd_ids_are_kept_apart_and_found(self, storage: Storage) -> None:
        rows = [
            rollout(
                k,
                rollout_id=name,
                group_id=name,
                resources_id=name,
                latest_attempt_id=name,
                queue=name,
                labels={name: name},
            )
            for k, name in enumerate(ODD_IDS, 1)
        ]
        await put(storage, *rows, *(attempt(r.key, r.key, attempt_id=ODD_IDS[0]) for r in rows))
        for row in rows:
            name = row.rollout.rollout_id
            (item,) = await storage.load([name])
            assert item.row == row
            assert await storage.group_members(name) == [name]
            assert await found(storage, rollout_ids=frozenset([name])) == [name]
            assert await found(storage, group_ids=frozenset([name])) == [name]
            assert await found(storage, queues=frozenset([name])) == [name]
            assert await found(storage, labels=frozenset([(name, name)])) == [name]
            containing = [other for other in ODD_IDS if name in other]
            assert await found(storage, rollout_id_contains=name) == containing
        for column in ("rollout_id", "group_id", "resources_id", "latest_attempt_id", "queue"):
            assert await found(storage, order_by=column) == sorted(ODD_IDS), column

    async def test_odd_names_of_resources_workers_and_requests(self, storage: Storage) -> None:
        named = [
            Resources(resources_id=name, version=1, publish_number=n)
            for n, name in enumerate(ODD_IDS, 1)
        ]
        workers = {name: Worker(worker_id=name) for name in ODD_IDS}
        requests = [RequestRow(name, name, n, b"", n) for n, name in enumerate(ODD_IDS)]
        rows = {r.publish_number: ResourcesRow(r.publish_number, r) for r in named}
        await put(storage, workers=workers, requests=requests, resources=rows)
        for record in named:
            assert await storage.get_resources(record.publish_number) == record
        _, snapshot = await self.reopen(storage)
        assert {worker.worker_id for worker in snapshot.workers} == set(ODD_IDS)
        assert snapshot.requests == requests
        assert {version.resources_id for version in snapshot.resources} == set(ODD_IDS)

    async def test_largest_and_smallest_numbers(self, storage: Storage) -> None:
        low, high = -(1 << 31), (1 << 31) - 1
        rows: list[RolloutRow] = [
            rollout(1, priority=low),
            finished(2, MAX_INT64, priority=high, attempt_count=high),
            rollout(MAX_INT64 - 1, position=MAX_INT64, available_ns=MAX_INT64, start_time={}),
        ]
        for row in rows:
            row.rollout.start_time.Clear()
        rows[1].rollout.start_time.seconds = rows[1].rollout.end_time.seconds = LAST_SECOND
        rows[1].rollout.end_time.nanos = MAX_INT64 % 1_000_000_000
        tried = attempt(MAX_INT64, MAX_INT64 - 1, last_sequence_id=MAX_INT64)
        batch = spans(MAX_INT64, MAX_INT64, MAX_INT64, rollout_key=MAX_INT64 - 1)
        requests = [RequestRow("M", "id", (1 << 32) - 1, b"", MAX_INT64)]
        await put(storage, *rows, tried, batch, requests=requests)
        by_id = await loaded(storage, "r1", "r2", f"r{MAX_INT64 - 1}")
        assert [item.row for item in sorted(by_id.values(), key=lambda i: i.row.key)] == rows
        assert by_id[f"r{MAX_INT64 - 1}"].attempts == [tried]
        assert await found(storage, order_by="priority") == ["r1", f"r{MAX_INT64 - 1}", "r2"]
        assert await found(storage, order_by="start_time", descending=True, limit=1) == ["r2"]
        assert [r.place[0] for r in await storage.finished((0, 0), 9)] == [MAX_INT64]
        ended = await storage.finished((0, 0), 9, MAX_INT64)
        assert [row.rollout_id for row in ended] == ["r2"]
        (scanned,) = await items(storage.scan_spans(MAX_INT64 - 1, 1, MAX_INT64))
        assert (scanned.key, scanned.first_sequence_id) == (MAX_INT64, MAX_INT64)
        _, snapshot = await self.reopen(storage)
        assert snapshot.requests == requests

    async def test_empty_values(self, storage: Storage) -> None:
        await put(
            storage,
            rollout(1),
            spans(1, 1, 1, data=b""),
            requests=[RequestRow("M", "", 0, b"", 0)],
        )
        (row,) = await items(storage.scan_spans(1, None, 1))
        assert row.data == b""
        _, snapshot = await self.reopen(storage)
        assert snapshot.requests == [RequestRow("M", "", 0, b"", 0)]

    async def test_bytes_are_not_taken_for_text(self, storage: Storage) -> None:
        content = bytes(range(256)) * 3
        await put(storage, rollout(1), spans(1, 1, 1, data=content), inputs=[(1, content)])
        assert (await loaded(storage, "r1"))["r1"].input_json == content
        (row,) = await items(storage.scan_spans(1, None, 1))
        assert row.data == content

    @large
    async def test_records_as_large_as_the_limits_let_them_be(self, storage: Storage) -> None:
        """A rollout with the largest input and metadata, an attempt, and a batch of the largest message."""
        limits = Limits()
        content = os.urandom(1024) * (limits.input_bytes >> 10)
        row = rollout(1, metadata_json=content[: limits.metadata_bytes])
        tried = attempt(1, 1, metadata_json=content[: limits.metadata_bytes])
        await put(storage, row, tried, inputs=[(1, content)])
        await put(storage, spans(1, 1, 1, data=content * 3))
        (item,) = await storage.load(["r1"])
        (batch,) = await items(storage.scan_spans(1, 1, 1))
        # pytest would take seconds to show the difference of values of this size.
        same = [item.row == row, item.attempts == [tried], item.input_json == content]
        assert same == [True, True, True]
        same_batch = batch.data == content * 3
        assert same_batch
