"""Predicate and SQL of one query pick the same rollouts in the same order."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from lightningstore.service.rules import filters
from lightningstore.service.rules.measures import Measures
from lightningstore.service.rules.rewards import reward_range, sortable
from lightningstore.service.rules.rows import RolloutQuery, RolloutRow
from lightningstore.service.storage.sqlite import filters as sql
from lightningstore.v1.attempt_pb2 import Attempt, Failure
from lightningstore.v1.rollout_pb2 import Rollout

TEXT = st.text(alphabet="aAb%_'\\\x00ü", max_size=3)
LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from(["", "1", "2"]), max_size=3)
ROLLOUTS = st.lists(
    st.builds(
        Rollout,
        rollout_id=TEXT,
        mode=st.integers(0, 3),
        priority=st.integers(-2, 2),
        group_id=st.sampled_from(["", "g", "G", "h"]),
        status=st.integers(1, 7),
        attempt_count=st.integers(0, 2),
        latest_attempt_id=TEXT,
        completion_number=st.integers(0, 3),
        queue=st.sampled_from(["", "gpu", "cpu"]),
        labels=LABELS,
    ),
    max_size=15,
)
REWARDS = st.none() | st.sampled_from([-1e300, -2.0, -1e-9, -0.0, 0.0, 1e-9, 0.5, 2.0, 1e300])


def rows_of(rollouts: list[Rollout], rewards: list[float | None]) -> list[RolloutRow]:
    return [
        RolloutRow(key, rollout, 0, 0, Measures(sortable(reward)))
        for key, (rollout, reward) in enumerate(zip(rollouts, rewards, strict=False), 1)
    ]


def latest(key: int) -> Attempt | None:
    if not key % 4:
        return None
    return Attempt(failure=Failure(type=("", "Ab", "É")[key % 3], message="\x00A b"))


QUERIES = st.builds(
    RolloutQuery,
    statuses=st.frozensets(st.integers(1, 7), max_size=3),
    rollout_ids=st.frozensets(TEXT, max_size=3),
    rollout_id_contains=TEXT,
    modes=st.frozensets(st.integers(0, 3), max_size=2),
    group_ids=st.frozensets(st.sampled_from(["", "g", "h", "none"]), max_size=2),
    queues=st.frozensets(st.sampled_from(["", "gpu", "none"]), max_size=2),
    labels=LABELS.map(lambda labels: frozenset(labels.items())),
    reward_range=st.none() | st.builds(reward_range, REWARDS, REWARDS),
    failure_contains=st.sampled_from(["", "", "aB", "a b", "É", "b: \x00a", "none"]),
    any_of=st.booleans(),
    order_by=st.sampled_from(["key", *filters.COLUMNS]),
    descending=st.booleans(),
    limit=st.integers(1, 4),
)


def database(rows: list[RolloutRow]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.execute(
        f"CREATE TABLE rollouts (key INTEGER PRIMARY KEY, {','.join(filters.COLUMNS)})"
    )
    connection.execute("CREATE TABLE attempts (key INTEGER PRIMARY KEY, rollout_key, record)")
    for row in rows:
        if (attempt := latest(row.key)) is not None:
            record = attempt.SerializeToString()
            connection.execute("INSERT INTO attempts VALUES (?, ?, ?)", [row.key, row.key, record])
    connection.execute(
        "CREATE TABLE labels (rollout_key, name, value, PRIMARY KEY (rollout_key, name))"
    )
    for row in rows:
        for label in row.rollout.labels.items():
            connection.execute("INSERT INTO labels VALUES (?, ?, ?)", [row.key, *label])
    marks = sql.marks(1 + len(filters.COLUMNS))
    for row in rows:
        values = [get(row) for get in filters.COLUMNS.values()]
        connection.execute(f"INSERT INTO rollouts VALUES ({marks})", [row.key, *values])
    return connection


def by_sql(connection: sqlite3.Connection, query: RolloutQuery) -> list[int]:
    source, key, where, parameters = sql.selection(query)
    page, more = sql.page(query, key)
    text = f"SELECT {key} FROM {source} WHERE {where} {page}"
    return [key for (key,) in connection.execute(text, [*parameters, *more])]


@given(ROLLOUTS, st.lists(REWARDS, min_size=15, max_size=15), QUERIES)
def test_sql_and_predicate_agree_page_by_page(
    rollouts: list[Rollout], rewards: list[float | None], query: RolloutQuery
) -> None:
    rows = rows_of(rollouts, rewards)
    matching = [row for row in rows if filters.matches(query, latest)(row)]
    matching.sort(key=lambda r: (filters.sort_value(query, r), r.key), reverse=query.descending)
    expected = [row.key for row in matching]
    connection = database(rows)
    seen: list[int] = []
    place = None
    while True:
        page = by_sql(connection, RolloutQuery(**{**query.__dict__, "after": place}))
        if not page:
            break
        seen += page
        last = rows[page[-1] - 1]
        place = (filters.sort_value(query, last), last.key)
    connection.close()
    assert seen == expected


@given(ROLLOUTS, st.lists(REWARDS, min_size=15, max_size=15), QUERIES, st.integers(0, 5))
def test_skip_passes_over_the_first(
    rollouts: list[Rollout], rewards: list[float | None], query: RolloutQuery, skip: int
) -> None:
    rows = rows_of(rollouts, rewards)
    connection = database(rows)
    everything = by_sql(connection, RolloutQuery(**{**query.__dict__, "limit": 100}))
    skipped = by_sql(connection, RolloutQuery(**{**query.__dict__, "limit": 100, "skip": skip}))
    connection.close()
    assert skipped == everything[skip:]


HOSTILE = ["'; DROP TABLE rollouts; --", '" OR 1=1 --', "%s", "?", "\x00"]


def test_sql_text_is_made_of_constants_alone() -> None:
    """The SQL does not depend on the values, which are parameters."""
    plain = RolloutQuery(
        rollout_ids=frozenset("abcde"),
        rollout_id_contains="x",
        group_ids=frozenset("fghij"),
        queues=frozenset("klmno"),
        labels=frozenset([("p", "q"), ("r", "s")]),
        failure_contains="x",
    )
    hostile = RolloutQuery(
        rollout_ids=frozenset(HOSTILE),
        rollout_id_contains=HOSTILE[0],
        group_ids=frozenset(HOSTILE),
        queues=frozenset(HOSTILE),
        labels=frozenset([(HOSTILE[0], HOSTILE[1]), (HOSTILE[1], HOSTILE[2])]),
        failure_contains=HOSTILE[0],
    )
    for none in ({}, {"rollout_ids": frozenset(), "group_ids": frozenset()}):
        here, there = replace(plain, **none), replace(hostile, **none)
        assert sql.selection(there)[:3] == sql.selection(here)[:3]
        assert sql.page(there, "key")[0] == sql.page(here, "key")[0]
        assert set(HOSTILE) <= set(sql.selection(there).parameters)
