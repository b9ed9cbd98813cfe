"""Queries of rollouts as SQL: where the rows come from, conditions, order and page, with parameters. `$1` is the namespace.

Each entry of the tables below has one index that can read it (`migrations/002_indexes.sql`), so no statistics make PostgreSQL
read a namespace for a few rows. A filter that has an index is read by that index, one value at a time. A page in the order of
an index is read in that order. The rest has no index: such a query reads all rows of the namespace, or all that its
filter selects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from lightningstore.service.rules.filters import COLUMNS, rewards_left
from lightningstore.service.rules.rows import GroupQuery, RolloutQuery
from lightningstore.service.rules.statuses import FINISHED
from lightningstore.service.storage.postgres.database import READS

#: Columns that hold texts of callers, as bytes.
TEXTS = frozenset(
    {"rollout_id", "group_id", "resources_id", "latest_attempt_id", "queue", "reward"}
)
_UNIQUE = ("key", "rollout_id")
#: Rows of an order among which a page is looked for before all matches are sorted.
FIRST_ROWS = 10_000
#: Name and value.
Label: TypeAlias = tuple[str, str]
#: How a namespace is read in the order of a column and the key.
_ORDERED = {
    "key": "ns = $1",
    "rollout_id": "ns::bigint = $1 AND rollout_id >= ''",
    "status": "ns::bigint = $1 AND status >= 0",
    "start_time": "ns::bigint = $1 AND start_time >= 0",
    "reward": "ns::bigint = $1 AND reward >= ''",
}
#: How rows with one value of a column are read, in the order of their keys.
_VALUED = {
    "rollout_id": ("bytea", "ns::bigint = $1 AND rollout_id >= '' AND rollout_id = w.value"),
    "group_id": ("bytea", "ns::bigint = $1 AND group_id <> '' AND group_id = w.value"),
    "queue": ("bytea", "ns::bigint = $1 AND queue <> '' AND queue = w.value"),
    "status": ("smallint", "ns::bigint = $1 AND status >= 0 AND status = w.value"),
}
#: Whether a rollout has a label. A lookup for each rollout: EXISTS would become a join.
_HAS_LABEL = """
    (SELECT l.value FROM ls_labels l WHERE l.ns = $1 AND l.rollout_key = key AND l.name = {name}) = {value}
"""
#: Whether the record of the latest attempt contains bytes. Letters are the same in both forms of a record, A-Z in either case.
_CONTAINS = """
    position({bytes}::bytea IN decode(lower((
        SELECT encode(a.record, 'escape')
        FROM (SELECT ns, rollout_key, key AS number, record FROM ls_attempts) a
        WHERE a.ns::bigint = $1 AND a.rollout_key >= 0 AND a.rollout_key = key ORDER BY a.number DESC LIMIT 1
    ) COLLATE "C"), 'escape')) > 0
"""
#: How rollouts with a label are read, in the order of their keys.
_LABELLED = """
SELECT {columns} FROM (
    SELECT rollout_key AS key FROM ls_labels WHERE ns::bigint = $1 AND name = {name} AND value = {value}
) l CROSS JOIN LATERAL (SELECT {others} FROM ls_rollouts WHERE ns = $1 AND key = l.key LIMIT 1) r
WHERE {where} {page}
"""

#: Variants of the query `loaded`.
BY_KEY = {"wanted": "$2::bigint[]", "by": "key", "match": "ns = $1 AND key = w.key"}
BY_ID = {
    "wanted": "$2::bytea[]",
    "by": "rollout_id",
    "match": "ns::bigint = $1 AND rollout_id >= '' AND rollout_id = w.rollout_id",
}
WITH_INPUT = {"input": "p.input_json", "counted": "coalesce(octet_length(i.input_json), 0)"}
WITHOUT_INPUT = {"input": "''::bytea", "counted": "0"}
LOADED = {
    "by_key": READS["loaded"].format(**BY_KEY, **WITH_INPUT, latest=""),
    "by_id": READS["loaded"].format(**BY_ID, **WITH_INPUT, latest=""),
    "latest": READS["loaded"].format(**BY_KEY, **WITH_INPUT, latest="DESC LIMIT 1"),
    "listed": READS["loaded"].format(**BY_KEY, **WITHOUT_INPUT, latest="DESC LIMIT 1"),
    "live": READS["loaded"].format(**BY_KEY, **WITHOUT_INPUT, latest=""),
}


class _Text:
    """A query under construction, with its parameters from `$2` on."""

    def __init__(self, query: RolloutQuery, *columns: str, leader: Label | None = None) -> None:
        """Take the query.

        Args:
            query: The query.
            columns: Columns that are returned in addition to those that it is ordered by.
            leader: The one of several labels by which rows are read; None: the first one.

        """
        self.query = query
        self.parameters: list[Any] = []
        self._columns = tuple(dict.fromkeys(("key", query.order_by, *columns)))
        #: The values that are asked for, by column.
        self._values: dict[str, list[Any]] = {
            "status": list(query.statuses),
            "rollout_id": _encoded(query.rollout_ids),
            "mode": list(query.modes),
            "group_id": _encoded(query.group_ids),
            "queue": _encoded(query.queues),
        }
        self._labels = sorted(query.labels, key=lambda label: (label != leader, label))
        self._tested = [column for column, values in self._values.items() if values]
        if query.rollout_id_contains:
            self._tested.append("contains")
        if query.failure_contains:
            self._tested.append("failure")
        if query.labels:
            self._tested.append("labels")
        if query.reward_range is not None:
            self._tested.append("reward")

    def mark(self, value: Any) -> str:
        """Add a parameter; returns its mark."""
        self.parameters.append(value)
        return f"${len(self.parameters) + 1}"

    def _test(self, column: str) -> str:
        """Return the condition on a column."""
        if column == "contains":
            mark = self.mark(self.query.rollout_id_contains.encode())
            return f"position({mark}::bytea IN rollout_id) > 0"
        if column == "failure":
            return _CONTAINS.format(bytes=self.mark(self.query.attempt_bytes))
        if column == "reward" and self.query.reward_range is not None:
            left = rewards_left(self.query, *self.query.reward_range)
            lowest, highest = map(self.mark, _encoded(left))
            return f"reward BETWEEN {lowest}::bytea AND {highest}::bytea"
        if column == "labels":
            return " AND ".join(_HAS_LABEL.format(**self._label(*of)) for of in self._labels)
        kind = "bytea" if column in TEXTS else "smallint"
        return f"{column} = ANY ({self.mark(self._values[column])}::{kind}[])"

    def _label(self, name: str, value: str) -> dict[str, str]:
        """Return the marks of a label."""
        return {
            k: f"{self.mark(v.encode())}::bytea" for k, v in {"name": name, "value": value}.items()
        }

    def condition(self) -> str:
        """Return all filters as one condition."""
        joined = (" OR " if self.query.any_of else " AND ").join(
            f"({self._test(column)})" for column in self._tested
        )
        return f"({joined})" if joined else "TRUE"

    def sorted_by(self) -> list[str] | None:
        """Return the columns by whose values rows are read, to be sorted then; None if nothing is sorted.

        Empty if rows are read by a label.
        """
        query, order = self.query, self.query.order_by
        if order not in _ORDERED or order == "key":
            return None
        if order == "reward" and query.reward_range is not None:
            return None
        if query.led_by_label:
            return []
        if query.any_of or query.completed is not None or self.is_led:
            return None
        columns = [c for c in ("status", "queue") if c in self._tested and self._has_index(c)]
        return [column for column in columns if column != order] or None

    def count(self, column: str, most: int) -> tuple[str, list[Any]]:
        """Return a query that counts the rows with the values of a column, up to a number, and its parameters."""
        kind, test = _VALUED[column]
        return READS["value_count"].format(kind=kind, test=test), [self._values[column], most]

    @property
    def is_led(self) -> bool:
        """Whether an index leads from ids or groups to the rows that match."""
        return self.query.led_by_label or (
            not self.query.any_of
            and any(
                column in self._tested and self._has_index(column)
                for column in ("rollout_id", "group_id")
            )
        )

    def source(self, place: str, page: str) -> str:
        """Return a subquery for the rows that match.

        Args:
            place: A condition for the position of the page.
            page: Order and limit, which each part of the subquery may have on its own.

        """
        tested = self._tested
        if self.query.completed is not None:
            after, through = map(self.mark, self.query.completed)
            range_ = f"completion_number > {after} AND completion_number <= {through}"
            conditions = [
                "ns::bigint = $1 AND completion_number > 0",
                range_,
                *map(self._test, tested),
                place,
            ]
            columns = ", ".join(self._columns)
            where = " AND ".join(conditions)
            return f"(SELECT {columns} FROM ls_rollouts WHERE {where} {page}) r"
        if self.query.led_by_label:
            return f"({self._labelled(place, page)}) r"
        if self.query.any_of and len(tested) > 1:
            if all(self._has_index(column) for column in tested):
                return f"({' UNION '.join(self._valued(c, [place], page) for c in tested)}) r"
            either = " OR ".join(map(self._test, tested))
            return f"({self._ordered([f'({either})', place], page)}) r"
        driver = next(
            (column for column in _VALUED if column in tested and self._leads(column)), ""
        )
        conditions = [*(self._test(column) for column in tested if column != driver), place]
        part = self._valued(driver, conditions, page) if driver else self._ordered(conditions, page)
        return f"({part}) r"

    def _has_index(self, column: str) -> bool:
        # The indexes on groups and queues leave out the rollouts without one.
        without = column in ("group_id", "queue") and b"" in self._values[column]
        return column in _VALUED and not without

    def _leads(self, column: str) -> bool:
        """Return whether rows are read by the values of a column, and not in the order of the page."""
        if column == "status" and self.query.order_by in ("start_time", "rollout_id"):
            # Few rollouts are live. Of finished ones, the order leads to those of the page.
            return not self.query.statuses & set(FINISHED)
        return self._has_index(column)

    def _ordered(self, conditions: Sequence[str], page: str) -> str:
        """Return a query that reads the namespace in the order of the page."""
        where = " AND ".join((_ORDERED.get(self.query.order_by, _ORDERED["key"]), *conditions))
        return f"SELECT {', '.join(self._columns)} FROM ls_rollouts WHERE {where} {page}"

    def _valued(self, column: str, conditions: Sequence[str], page: str) -> str:
        """Return a query that reads the rows with each value of a column."""
        kind, test = _VALUED[column]
        where = " AND ".join((test, *conditions))
        # LIMIT or OFFSET keeps the inner query apart, so that it runs once for each value.
        inner = (
            f"SELECT {', '.join(self._columns)} FROM ls_rollouts WHERE {where} {page or 'OFFSET 0'}"
        )
        columns = ", ".join(f"one.{name}" for name in self._columns)
        values = f"unnest({self.mark(self._values[column])}::{kind}[]) w (value)"
        return f"SELECT {columns} FROM {values} CROSS JOIN LATERAL ({inner}) one"

    def _labelled(self, place: str, page: str) -> str:
        """Return a query that reads the rows with the first label."""
        first = self._labels.pop(0)
        conditions = [self._test(c) for c in self._tested if c != "labels" or self._labels]
        return _LABELLED.format(
            **self._label(*first),
            columns=", ".join(self._columns),
            others=", ".join(COLUMNS),
            where=" AND ".join((*conditions, place)),
            page=page,
        )


def matching(query: RolloutQuery, leader: Label | None) -> tuple[str, list[Any]]:
    """Return keys and statuses of all rows that match, as a subquery, and its parameters.

    Rows are read by the label `leader` if the query has several; None: by the first one.
    """
    text = _Text(replace(query, order_by="key"), "status", leader=leader)
    return text.source("TRUE", ""), text.parameters


def chosen(query: RolloutQuery, leader: Label | None) -> tuple[str, str, list[Any]]:
    """Return the finished rollouts that match, with all columns: the source, a condition, and the parameters.

    Rows are read by the label `leader` if the query has several; None: by the first one.
    """
    text = _Text(replace(query, order_by="key"), leader=leader)
    if text.is_led:
        source = READS["series_source"].format(source=text.source("TRUE", ""))
        return source, "completion_number > 0", text.parameters
    finished = "ns::bigint = $1 AND end_time > 0 AND completion_number <> 0"
    return "ls_rollouts", f"{finished} AND {text.condition()}", text.parameters


def groups(query: GroupQuery) -> tuple[str, list[Any]]:
    """Return a query of groups, in the order of their keys, and its parameters from `$2` on."""
    parameters: list[Any] = [query.after, query.limit]
    place, order = "key > $2", "ORDER BY key LIMIT $3"
    columns = "key, group_id, deadline_ns, record"
    if query.statuses:
        parameters.append(list(query.statuses))
    if query.group_ids:
        test = "ns::bigint = $1 AND group_id >= '' AND group_id = w.value"
        if query.statuses:
            test += " AND status = ANY ($4::smallint[])"
        parameters.append(_encoded(query.group_ids))
        values = f"unnest(${len(parameters) + 1}::bytea[])"
    elif query.statuses:
        test = "ns::bigint = $1 AND status >= 0 AND status = w.value"
        values = "unnest($4::smallint[])"
    else:
        return f"SELECT {columns} FROM ls_groups WHERE ns = $1 AND {place} {order}", parameters
    inner = f"SELECT {columns} FROM ls_groups WHERE {test} AND {place} {order}"
    return (
        f"SELECT one.* FROM {values} w (value) CROSS JOIN LATERAL ({inner}) one {order}",
        parameters,
    )


def page(query: RolloutQuery, leader: Label | None) -> tuple[str, str, list[Any]]:
    """Return one page: a subquery, its order with limit and offset, and the parameters.

    Args:
        query: The page.
        leader: The one of several labels by which rows are read; None: the first one.

    """
    text = _Text(query, leader=leader)
    place, order = _place(text), _order(query)
    source = text.source(place, f"{order} LIMIT {text.mark(query.limit + query.skip)}")
    return source, f"{order} {_limit(text)}", text.parameters


def counts(query: RolloutQuery, most: int) -> list[tuple[str, list[Any]]] | None:
    """Return queries that count the rows with each filter by which a page is read and then sorted, up to a number.

    None if the page is not sorted. Labels are counted by `label_counts`.
    """
    text = _Text(query)
    columns = text.sorted_by()
    return None if columns is None else [text.count(column, most) for column in columns]


def among_first(query: RolloutQuery) -> tuple[str, str, list[Any]]:
    """Return the part of a page, in the form of `page`, that is among the first rows of its order.

    A page of a filter that many rollouts match is among them, and need not be found by sorting all matches.
    """
    text, order = _Text(query), _order(query)
    first = f"{_ORDERED[query.order_by]} AND {_place(text)} {order} LIMIT {FIRST_ROWS}"
    rows = f"(SELECT * FROM ls_rollouts WHERE {first}) f"
    source = f"(SELECT * FROM {rows} WHERE {text.condition()}) r"
    return source, f"{order} {_limit(text)}", text.parameters


def _place(text: _Text) -> str:
    """Return the condition for the position of a page."""
    query = text.query
    if query.after is None:
        return "TRUE"
    column, sign = query.order_by, "<" if query.descending else ">"
    value, key = query.after
    if column == "key":
        value = key
    elif column in TEXTS:
        value = value.encode()
    if column in _UNIQUE:
        return f"{column} {sign} {text.mark(value)}"
    return f"({column}, key) {sign} ({text.mark(value)}, {text.mark(key)})"


def _order(query: RolloutQuery) -> str:
    direction = "DESC" if query.descending else "ASC"
    key = "" if query.order_by in _UNIQUE else f", key {direction}"
    return f"ORDER BY {query.order_by} {direction}{key}"


def _limit(text: _Text) -> str:
    return f"LIMIT {text.mark(text.query.limit)} OFFSET {text.mark(text.query.skip)}"


def _encoded(texts: Iterable[str]) -> list[bytes]:
    return [text.encode() for text in texts]
